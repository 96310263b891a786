"""Weights of a GGUF file as PyTorch takes them: they stay blocks in the mapped file, and become numbers when asked.

Nothing keeps the numbers: a layer is dequantised, used, and forgotten. Names are those of the safetensors files. It
does not know what the weights are for.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from base_model.wheel import BaseModelError
from edge_node.serving.architecture import Architecture
from edge_node.serving.weights import gguf_name
from edge_node.training.gguf_file import BlockTensor, GgufFile

LOW_HALVES = 0x0F0F0F0F0F0F0F0F  # of eight bytes at once


@dataclass(frozen=True)
class BlockWeight:
    """One weight: its rows as bytes of the file, (out, bytes), and the order in which they are wanted."""

    kind: str
    rows: Tensor  # uint8
    order: Tensor | None = None  # int64, (out,)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """All its numbers, (out, in)."""
        return _dense(self.kind, self.rows if self.order is None else self.rows[self.order], dtype)

    def dense_rows(self, chosen: Tensor | slice, dtype: torch.dtype) -> Tensor:
        """The numbers of some rows, (chosen, in)."""
        return _dense(self.kind, self.rows[chosen], dtype)

    def pieces(self, rows: int) -> Iterator[slice]:
        """Slices of at most so many rows."""
        return (slice(start, start + rows) for start in range(0, len(self.rows), rows))


class BlockWeights:
    """The tensors of a GGUF file by the names of safetensors files."""

    def __init__(self, file: GgufFile, architecture: Architecture) -> None:
        self._tensors, self._architecture = file.tensors, architecture
        # llama.cpp wants the two halves of each head's rotary dimensions interleaved for this architecture alone
        self._is_interleaved = file.architecture == "llama"

    def __contains__(self, name: str) -> bool:
        return gguf_name(name) in self._tensors

    def weight(self, name: str) -> BlockWeight:
        """A matrix. Raises BaseModelError for one that is missing or of a kind that is not read."""
        tensor = self._found(name)
        return BlockWeight(tensor.kind, torch.from_numpy(tensor.rows), self._order(name, len(tensor.rows)))

    def vector(self, name: str) -> Tensor:
        """A norm's scale or a bias, (size,), in float32."""
        tensor = self._found(name)
        values = _dense(tensor.kind, torch.from_numpy(tensor.rows), torch.float32).flatten()
        order = self._order(name, len(values))
        return values.clone() if order is None else values[order]

    def _found(self, name: str) -> BlockTensor:
        tensor = self._tensors.get(gguf_name(name))
        if tensor is None:
            raise BaseModelError(f"{gguf_name(name)} is missing, or of a kind that is not trained from")
        return tensor

    def _order(self, name: str, rows: int) -> Tensor | None:
        heads = {"q_proj": self._architecture.heads, "k_proj": self._architecture.kv_heads}
        count = next((count for module, count in heads.items() if module in name), None)
        if count is None or not self._is_interleaved:
            return None
        return torch.from_numpy(np.ascontiguousarray(np.arange(rows).reshape(count, -1, 2).swapaxes(1, 2)).reshape(-1))


def _dense(kind: str, rows: Tensor, dtype: torch.dtype) -> Tensor:
    match kind:
        case "F32":
            return rows.contiguous().view(torch.float32).to(dtype)
        case "F16":
            return rows.contiguous().view(torch.float16).to(dtype)
        case "Q4_1":
            return _q41(rows.view(len(rows), -1, 20)).to(dtype)
        case "Q8_0":
            blocks = rows.view(len(rows), -1, 34)
            return (
                (blocks[..., 2:].contiguous().view(torch.int8).float() * _float16(blocks[..., :2])).flatten(1).to(dtype)
            )
    raise ValueError(f"{kind} is no kind of block")


def _q41(blocks: Tensor) -> Tensor:
    """Blocks of 20 bytes: scale and minimum in float16, then 16 bytes; weight i is in byte i's low half, 16+i high."""
    packed = blocks[..., 4:].contiguous().view(torch.int64)
    halves = packed.new_empty(*packed.shape[:2], 4)
    torch.bitwise_and(packed, LOW_HALVES, out=halves[..., :2])
    torch.bitwise_and(packed >> 4, LOW_HALVES, out=halves[..., 2:])
    q = halves.view(torch.uint8).float()
    return q.mul_(_float16(blocks[..., :2])).add_(_float16(blocks[..., 2:4])).flatten(1)


def _float16(pairs: Tensor) -> Tensor:
    return pairs.contiguous().view(torch.float16).float()
