"""What tests of several packages share: a tiny model, a link with faults, and a browser."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants
from numpy.typing import NDArray
from safetensors.numpy import load_file

from base_model.gguf_blocks import GGUF_NAMES
from base_model.reference import ResolvedModel, resolve
from chaos.proxy import FaultProxy
from chaos.tiny_model import make_tiny_model
from tests.browser import CHROMIUM, Browser


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a randomly initialised two-layer Llama and a byte-level tokenizer: real, and 0.3 MB."""
    folder = tmp_path_factory.mktemp("tiny-model")
    make_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def quantised(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    """The tiny model as a GGUF file of Q4_1 blocks and a Q8_0 embedding, beside its conversion to float32."""
    path = tmp_path_factory.mktemp("quantised") / "tiny.gguf"
    _write_gguf(path, tiny_model_dir)
    return resolve(str(path), path.parent / "cache")


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., None]:
    """write_gguf(path, model folder, architecture)."""
    return _write_gguf


def _write_gguf(path: Path, folder: Path, architecture: str = "llama") -> None:
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text()))
    for name, values in load_file(folder / "model.safetensors").items():
        kind = GGMLQuantizationType.Q4_1
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            values = _interleaved(values, heads if "q_proj" in name else kv_heads)
        if values.ndim == 1:
            writer.add_tensor(_gguf_name(name), values)
            continue
        if "embed_tokens" in name:
            kind = GGMLQuantizationType.Q8_0
        writer.add_tensor(_gguf_name(name), quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: GGUFWriter, tokenizer: dict[str, Any]) -> None:
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([TokenType.CONTROL] + [TokenType.NORMAL] * (len(vocabulary) - 1))
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_unk_token_id(0)


def _interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _gguf_name(name: str) -> str:
    renamed = name.replace("model.layers.", "blk.").replace("model.embed_tokens", "token_embd")
    renamed = renamed.replace("model.norm", "output_norm")
    for ours, theirs in GGUF_NAMES.items():
        renamed = renamed.replace(ours, theirs)
    return renamed


@pytest.fixture
def fault_proxy() -> Iterator[Callable[[int], FaultProxy]]:
    """fault_proxy(port): a link with faults to a program on that loopback port."""
    proxies: list[FaultProxy] = []

    def start(target_port: int) -> FaultProxy:
        proxies.append(FaultProxy(target_port))
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.close()


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The browser of all tests of this process; `browser` gives each an empty page."""
    if CHROMIUM is None:
        pytest.skip("needs chromium (apt install chromium)")
    running = Browser(tmp_path_factory.mktemp("browser"))
    yield running
    running.end()


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    """A browser with an empty page."""
    chromium.begin_anew()
    return chromium
