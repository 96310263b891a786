"""A GGUF file's tensors where they lie: mapped into memory, as the bytes of their blocks, in milliseconds.

The format is that of ggml's docs/gguf.md. Only the architecture's name and the tensors are read; other metadata,
vocabulary included, are stepped over. It does not know what the tensors are for.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from base_model.wheel import BaseModelError

MAGIC, VERSIONS = b"GGUF", (2, 3)
STRING, ARRAY, UINT32 = 8, 9, 4
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a metadata value by its type
MOST_TENSORS, MOST_KEYS, MOST_DIMENSIONS = 100_000, 10_000, 4


class Kind(NamedTuple):
    """How a tensor's weights are stored: so many of them in a block of so many bytes."""

    name: str
    weights: int
    size: int


KINDS = {0: Kind("F32", 1, 4), 1: Kind("F16", 1, 2), 3: Kind("Q4_1", 32, 20), 8: Kind("Q8_0", 32, 34)}
OTHER_KINDS = {2: "Q4_0", 6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 30: "BF16"}


@dataclass(frozen=True)
class BlockTensor:
    """A tensor as its rows' bytes, (rows, bytes of a row); `kind` says how to read them. A vector is one row."""

    name: str
    kind: str
    shape: tuple[int, ...]  # of its weights: (size,), or (out, in)
    rows: NDArray[np.uint8]


@dataclass(frozen=True)
class GgufFile:
    """The name of the architecture, and every tensor by its name in the file."""

    architecture: str
    tensors: dict[str, BlockTensor]
    unread: dict[str, str]  # the kinds of those that are of a kind that is not read


def open_gguf(path: Path) -> GgufFile:
    """Map a GGUF file and find its tensors. Raises BaseModelError for a file that is cut short or is something else."""
    try:
        with path.open("rb") as file:
            # copy on write: PyTorch wants memory that could be written, and nobody does
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return _File(content).read()
    except OSError as fault:
        raise BaseModelError(f"cannot read {path}: {fault.strerror}") from None
    except (struct.error, ValueError, UnicodeDecodeError) as fault:
        raise BaseModelError(f"{path} is not a whole GGUF file ({fault}); fetch it again") from None


class _File:
    """The bytes and how far they are read."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._at = content, 0

    def read(self) -> GgufFile:
        if self._content[:4] != MAGIC:
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version, tensors, keys = self._next("<IQQ")
        if version not in VERSIONS or tensors > MOST_TENSORS or keys > MOST_KEYS:
            raise ValueError(f"version {version}, {tensors} tensors, {keys} keys")
        architecture, alignment = "", 32
        for _ in range(keys):
            key, kind = self._string(), self._next("<I")[0]
            if (key, kind) == ("general.architecture", STRING):
                architecture = self._string()
            elif (key, kind) == ("general.alignment", UINT32):
                (alignment,) = self._next("<I")
            else:
                self._skip(kind)
        found = [self._tensor() for _ in range(tensors)]
        if alignment < 1:
            raise ValueError("alignment 0")
        data = -(-self._at // alignment) * alignment
        tensors, unread = dict[str, BlockTensor](), dict[str, str]()
        for name, sizes, kind, offset in found:
            if kind in KINDS:
                tensors[name] = self._mapped(name, sizes, KINDS[kind], data + offset)
            else:
                unread[name] = OTHER_KINDS.get(kind, f"number {kind}")
        return GgufFile(architecture, tensors, unread)

    def _next(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self._content, self._at)
        self._at += struct.calcsize(form)
        return values

    def _string(self) -> str:
        (length,) = self._next("<Q")
        self._forward(length)
        return self._content[self._at - length : self._at].decode("utf-8")

    def _skip(self, kind: int) -> None:
        if kind == STRING:
            self._forward(self._next("<Q")[0])
        elif kind != ARRAY:
            self._forward(_size(kind))
        else:
            of, count = self._next("<IQ")
            if of == STRING:
                for _ in range(count):
                    self._forward(self._next("<Q")[0])
            else:
                self._forward(_size(of) * count)

    def _forward(self, count: int) -> None:
        if count > len(self._content) - self._at:
            raise ValueError("a value ends behind the file")
        self._at += count

    def _tensor(self) -> tuple[str, list[int], int, int]:
        name, (dimensions,) = self._string(), self._next("<I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise ValueError(f"{dimensions} dimensions")
        shape = [size for _ in range(dimensions) for size in self._next("<Q")]
        kind, offset = self._next("<IQ")
        return name, shape, kind, offset

    def _mapped(self, name: str, sizes: list[int], kind: Kind, start: int) -> BlockTensor:
        width, *others = sizes
        row_bytes, rest = divmod(width * kind.size, kind.weights)
        rows = math.prod(others)
        if rest or not rows * row_bytes or start + rows * row_bytes > len(self._content):
            raise ValueError(f"the weights of {name[:200]!a} are not all there")
        flat = np.frombuffer(self._content, np.uint8, rows * row_bytes, start)
        return BlockTensor(name, kind.name, tuple(reversed(sizes)), flat.reshape(rows, row_bytes))


def _size(kind: int) -> int:
    if kind not in SIZES:
        raise ValueError(f"metadata of type {kind}")
    return SIZES[kind]
