"""A base model's weights as the serving graph takes them: dense float32, or the quantised blocks of a GGUF file.

Blocks are never quantised again: what is served are exactly the numbers that training starts from. Nothing here loads
PyTorch. Names are those of the safetensors files.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  it teaches NumPy bfloat16, which safetensors files may hold
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from base_model.wheel import BaseModelError
from edge_node.serving.architecture import Architecture

BLOCK = 32  # weights that share a scale
MIDDLE_4, MIDDLE_8 = 8, 128  # what MatMulNBits subtracts from 4-bit and 8-bit weights
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@dataclass(frozen=True)
class Dense:
    """A tensor in float32."""

    values: NDArray[np.float32]


class Q41(NamedTuple):
    """GGUF's Q4_1: w = scale * (q - 8) + offset, with q packed two to a byte, the earlier weight in the low half."""

    packed: NDArray[np.uint8]  # (out, in / 32, 16)
    scale: NDArray[np.float32]  # (out, in / 32)
    offset: NDArray[np.float32]  # (out, in / 32)


class Q80(NamedTuple):
    """GGUF's Q8_0: w = scale * (q - 128)."""

    shifted: NDArray[np.uint8]  # (out, in / 32, 32)
    scale: NDArray[np.float32]  # (out, in / 32)


Weight = Dense | Q41 | Q80
ReadWeight = Callable[[str], Weight | None]
"""Called as read(name); None for a tensor that the model does not have."""


def dense_weights(folder: Path) -> ReadWeight:
    """Read tensors of a folder of safetensors files, one at a time."""
    files = {key: path for path in sorted(folder.glob("*.safetensors")) for key in _keys(path)}

    def read(name: str) -> Weight | None:
        return Dense(_dense(files[name], name)) if name in files else None

    return read


def gguf_weights(path: Path, architecture: Architecture) -> ReadWeight:
    """Read tensors of a GGUF file, one at a time; the reader raises BaseModelError for a type that is not served."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    tensors = {str(tensor.name): tensor for tensor in reader.tensors}
    # llama.cpp wants the two halves of each head's rotary dimensions interleaved for this architecture alone
    is_interleaved = reader.fields["general.architecture"].contents() == "llama"

    def read(name: str) -> Weight | None:
        tensor = tensors.get(gguf_name(name))
        if tensor is None:
            return None
        weight = _from_gguf(tensor)
        if not is_interleaved:
            return weight
        if "q_proj" in name:
            return _halves_apart(weight, architecture.heads)
        return _halves_apart(weight, architecture.kv_heads) if "k_proj" in name else weight

    return read


def dequantised(weight: Weight) -> NDArray[np.float32]:
    """The numbers that a weight stands for, (out, in)."""
    match weight:
        case Dense(values):
            return values
        case Q41(packed, scale, offset):
            q = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*scale.shape, BLOCK).astype(np.float32)
            blocks = scale[..., None] * q + (offset - MIDDLE_4 * scale)[..., None]
        case Q80(shifted, scale):
            blocks = scale[..., None] * (shifted.astype(np.float32) - MIDDLE_8)
    return np.asarray(blocks.reshape(blocks.shape[0], -1), dtype=np.float32)


def _keys(path: Path) -> Iterator[str]:
    with safe_open(path, framework="np") as file:
        yield from file.keys()


def _dense(path: Path, name: str) -> NDArray[np.float32]:
    with safe_open(path, framework="np") as file:
        return np.asarray(file.get_tensor(name), dtype=np.float32)


def gguf_name(name: str) -> str:
    """The name that llama.cpp's files have for a tensor of the safetensors files."""
    renamed = name.replace("model.embed_tokens", "token_embd").replace("model.norm", "output_norm")
    renamed = renamed.replace("lm_head", "output").replace("model.layers.", "blk.")
    for ours, theirs in GGUF_NAMES.items():
        renamed = renamed.replace(ours, theirs)
    return renamed


def _from_gguf(tensor: Any) -> Weight:
    rows = np.asarray(tensor.data)
    match tensor.tensor_type.name:
        case "F32" | "F16":
            return Dense(rows.astype(np.float32))
        case "Q4_1":
            return _q41(rows)
        case "Q8_0":
            return _q80(rows)
    raise BaseModelError(
        f"{tensor.name} is of type {tensor.tensor_type.name}, and only F32, F16, Q4_1 and Q8_0 are served exactly; "
        "use the precision fp32, or a Q4_1 file of this model"
    )


def _q41(rows: NDArray[np.uint8]) -> Q41:
    """Blocks of 20 bytes: scale and minimum in float16, then 16 bytes; weight i is in byte i's low half, 16+i high."""
    blocks = rows.reshape(rows.shape[0], -1, 20)
    scale, minimum = (_float16(blocks[..., at : at + 2]) for at in (0, 2))
    q = np.concatenate([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], axis=-1)
    return Q41(q[..., 0::2] | (q[..., 1::2] << 4), scale, minimum + MIDDLE_4 * scale)


def _q80(rows: NDArray[np.uint8]) -> Q80:
    """Blocks of 34 bytes: scale in float16, then 32 signed bytes."""
    blocks = rows.reshape(rows.shape[0], -1, 34)
    # adding 128 to a signed byte is flipping its highest bit
    return Q80(blocks[..., 2:] ^ np.uint8(MIDDLE_8), _float16(blocks[..., :2]))


def _float16(pairs: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(pairs).view("<f2")[..., 0].astype(np.float32)


def _halves_apart(weight: Weight, heads: int) -> Weight:
    """Rows of each head with first the one, then the other half of the rotary dimensions."""

    def reorder(rows: NDArray[Any]) -> NDArray[Any]:
        return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

    match weight:
        case Dense(values):
            return Dense(reorder(values))
        case Q41():
            return Q41(*(reorder(part) for part in weight))
        case Q80():
            return Q80(*(reorder(part) for part in weight))
