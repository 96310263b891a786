"""Weights of a GGUF file as PyTorch takes them: they stay blocks in the mapped file, and become numbers when asked.

Nothing keeps the numbers: a layer is dequantised, used, and forgotten. Names are those of the safetensors files. It
does not know what the weights are for.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from base_model.gguf_blocks import GgufWeights, Q41Blocks, gguf_name, q41_blocks, q80_blocks
from base_model.gguf_file import BlockTensor
from base_model.wheel import BaseModelError

LOW_HALVES = 0x0F0F0F0F0F0F0F0F  # of eight bytes at once


@dataclass(frozen=True)
class BlockWeight:
    """One weight: its rows as bytes of the file, (out, bytes), and the order in which they are wanted."""

    kind: str
    rows: NDArray[np.uint8]
    order: NDArray[np.int64] | None = None  # (out,)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """All its numbers, (out, in)."""
        return _dense(self.kind, self.rows if self.order is None else self.rows[self.order], dtype)

    def dense_rows(self, chosen: NDArray[np.int64] | slice, dtype: torch.dtype) -> Tensor:
        """The numbers of some rows, (chosen, in)."""
        return _dense(self.kind, self.rows[chosen], dtype)

    def pieces(self, rows: int) -> Iterator[slice]:
        """Slices of at most so many rows."""
        return (slice(start, start + rows) for start in range(0, len(self.rows), rows))


class BlockWeights:
    """The tensors of a GGUF file by the names of safetensors files."""

    def __init__(self, weights: GgufWeights) -> None:
        self._weights = weights

    def __contains__(self, name: str) -> bool:
        return self._weights.find(name) is not None

    def weight(self, name: str) -> BlockWeight:
        """A matrix. Raises BaseModelError for one that is missing or of a type that is not read."""
        tensor = self._found(name)
        return BlockWeight(tensor.kind, tensor.rows, self._weights.order(name, tensor.shape[0]))

    def vector(self, name: str) -> Tensor:
        """A norm's scale or a bias, (size,), in float32."""
        tensor = self._found(name)
        values = _dense(tensor.kind, tensor.rows, torch.float32).flatten()
        order = self._weights.order(name, tensor.shape[0])
        return values.clone() if order is None else values[torch.from_numpy(order)]

    def _found(self, name: str) -> BlockTensor:
        tensor = self._weights.find(name)
        if tensor is None:
            raise BaseModelError(f"{gguf_name(name)} is missing")
        return tensor


def _dense(kind: str, rows: NDArray[np.uint8], dtype: torch.dtype) -> Tensor:
    match kind:
        case "F32":
            return torch.from_numpy(rows).view(torch.float32).to(dtype)
        case "F16":
            return torch.from_numpy(rows).view(torch.float16).to(dtype)
        case "Q4_1":
            return _q41(q41_blocks(rows)).to(dtype)
        case "Q8_0":
            blocks = q80_blocks(rows)
            return (torch.from_numpy(blocks.q).float() * _scale(blocks.scale)).flatten(1).to(dtype)
    raise ValueError(f"{kind} is no kind of block")


def _q41(blocks: Q41Blocks) -> Tensor:
    packed = torch.from_numpy(blocks.packed).contiguous().view(torch.int64)
    halves = packed.new_empty(*packed.shape[:2], 4)
    torch.bitwise_and(packed, LOW_HALVES, out=halves[..., :2])
    torch.bitwise_and(packed >> 4, LOW_HALVES, out=halves[..., 2:])
    q = halves.view(torch.uint8).float()
    return q.mul_(_scale(blocks.scale)).add_(_scale(blocks.minimum)).flatten(1)


def _scale(values: NDArray[np.float16]) -> Tensor:
    return torch.from_numpy(values).float()
