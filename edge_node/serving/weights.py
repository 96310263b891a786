"""A base model's weights as the serving graph takes them: dense float32, or the quantised blocks of a GGUF file.

Blocks are never quantised again: what is served are exactly the numbers that training starts from. Nothing here loads
PyTorch. Names are those of the safetensors files.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import ml_dtypes  # noqa: F401  it teaches NumPy bfloat16, which safetensors files may hold
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from base_model.architecture import Architecture
from base_model.gguf_blocks import BLOCK, GgufWeights, Q41Blocks, Q80Blocks, q41_blocks, q80_blocks
from base_model.gguf_file import BlockTensor, open_gguf

FLOATS = {"F32": "<f4", "F16": "<f2"}
MIDDLE_4, MIDDLE_8 = 8, 128  # what MatMulNBits subtracts from 4-bit and 8-bit weights


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
    weights = GgufWeights(open_gguf(path), architecture)

    def read(name: str) -> Weight | None:
        tensor = weights.find(name)
        return None if tensor is None else _from_gguf(tensor, weights.order(name, tensor.shape[0]))

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


def _from_gguf(tensor: BlockTensor, order: NDArray[np.int64] | None) -> Weight:
    if tensor.kind in FLOATS:
        values = tensor.rows.view(FLOATS[tensor.kind]).reshape(tensor.shape).astype(np.float32)
        return Dense(values if order is None else values[order])
    rows = tensor.rows if order is None else tensor.rows[order]
    return _q41(q41_blocks(rows)) if tensor.kind == "Q4_1" else _q80(q80_blocks(rows))


def _q41(blocks: Q41Blocks) -> Q41:
    scale, minimum = (part[..., 0].astype(np.float32) for part in (blocks.scale, blocks.minimum))
    q = np.concatenate([blocks.packed & 15, blocks.packed >> 4], axis=-1)
    return Q41(q[..., 0::2] | (q[..., 1::2] << 4), scale, minimum + MIDDLE_4 * scale)


def _q80(blocks: Q80Blocks) -> Q80:
    # adding 128 to a signed byte is flipping its highest bit
    return Q80(blocks.q.view(np.uint8) ^ np.uint8(MIDDLE_8), blocks.scale[..., 0].astype(np.float32))
