"""Tiny models ready to be served: random, real, and a few hundred kilobytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from base_model.layout import layout_of
from base_model.reference import ResolvedModel, resolve
from edge_node.export import ServedModel, export
from edge_node.inference import Inference
from edge_node.session import Session
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
