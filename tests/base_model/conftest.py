"""The tiny model: resolved, loaded, and as a GGUF file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter, TokenType
from numpy.typing import NDArray
from safetensors.numpy import load_file

from base_model.language_model import LanguageModel
from base_model.reference import ResolvedModel, resolve
from schemas.adapter import LoraConfig

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
}


@pytest.fixture
def resolved(tiny_model_dir: Path, tmp_path: Path) -> ResolvedModel:
    return resolve(str(tiny_model_dir), tmp_path / "cache")


@pytest.fixture
def model(resolved: ResolvedModel) -> LanguageModel:
    return LanguageModel.load(resolved)


@pytest.fixture
def lora() -> LoraConfig:
    return LoraConfig(rank=4, alpha=8, target_modules=("q_proj", "v_proj", "down_proj"))


@pytest.fixture(scope="session")
def tiny_gguf(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a GGUF file, with float32 tensors in GGUF's names and its order of rotary dimensions."""
    path = tmp_path_factory.mktemp("tiny-gguf") / "tiny.gguf"
    writer = GGUFWriter(path, "llama")
    config = json.loads((tiny_model_dir / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
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
    _add_tokenizer(writer, json.loads((tiny_model_dir / "tokenizer.json").read_text()))
    for name, tensor in load_file(tiny_model_dir / "model.safetensors").items():
        if "q_proj" in name or "k_proj" in name:
            tensor = _interleaved(tensor, heads if "q_proj" in name else kv_heads)
        writer.add_tensor(_gguf_name(name), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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
    """GGUF keeps the two halves of each head's rotary dimensions interleaved."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _gguf_name(name: str) -> str:
    renamed = name.replace("model.layers.", "blk.")
    for ours, theirs in GGUF_NAMES.items():
        renamed = renamed.replace(ours, theirs)
    return renamed
