"""Tiny models ready to be served: random, real, and a few hundred kilobytes."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from base_model.chat_tokens import ChatTokens
from base_model.layout import layout_of
from base_model.reference import ResolvedModel, resolve
from edge_node.serving.answering import Answering, Ended, Question
from edge_node.serving.export import ServedModel, export
from edge_node.serving.generation import Sampling
from edge_node.serving.inference import Inference
from edge_node.serving.session import Session
from schemas.adapter import Adapter, LoraConfig

EVERY_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def resolved(tiny_model_dir: Path, cache: Path) -> ResolvedModel:
    return resolve(str(tiny_model_dir), cache)


@pytest.fixture(scope="session")
def served(resolved: ResolvedModel, cache: Path) -> ServedModel:
    """The tiny model in float32."""
    return export(resolved, cache, "fp32")


@pytest.fixture(scope="session")
def session(served: ServedModel) -> Session:
    return Session(served)


@pytest.fixture
def inference(session: Session) -> Inference:
    """The tiny model, with no adapter yet."""
    return Inference(session)


@pytest.fixture(scope="session")
def make_adapter(resolved: ResolvedModel) -> Callable[..., Adapter]:
    """make_adapter(seed, **LoRA settings): random factors, large enough that answers depend on them."""

    def make(seed: int, **lora: Any) -> Adapter:
        layout = layout_of(resolved, LoraConfig(**{"rank": 4, "alpha": 8, "target_modules": EVERY_LINEAR} | lora))
        return Adapter(layout, np.random.default_rng(seed).normal(0, 0.1, layout.size).astype(np.float32))

    return make


@pytest.fixture(scope="session")
def endless(resolved: ResolvedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's tokenizer without an end of text: answers are as long as they may be."""
    folder = shutil.copytree(resolved.path, tmp_path_factory.mktemp("endless") / "model")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({k: v for k, v in values.items() if not k.startswith("eos_token")}))
    return folder


@pytest.fixture
def too_short_s(session: Session, endless: Path) -> float:
    """A tenth of the time that an answer of 1,900 tokens takes here and now: machines differ tenfold."""
    answering, ended = Answering(Inference(session), ChatTokens(endless), 1, 1, timeout_s=600), threading.Event()
    began = time.monotonic()
    answering.ask(
        Question([{"role": "user", "content": "turn on the desk lamp"}], Sampling(1900)),
        lambda news: ended.set() if isinstance(news, Ended) else None,
    )
    assert ended.wait(600)
    answering.stop()
    return (time.monotonic() - began) / 10
