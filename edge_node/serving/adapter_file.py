"""ONNX Runtime's adapter file: written straight from views of an adapter, mapped by ONNX Runtime.

ONNX Runtime can write it, too, at several times the cost: it takes a copy of every factor and lets the file grow as it
goes, and this is most of what a new version costs. The format is a flatbuffer, of which all but the numbers is the same
for adapters of one layout: that frame is made once. onnxruntime/lora/adapter_format describes it, and a test compares
every number with what ONNX Runtime writes. It does not know what factors mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import flatbuffers
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidProtobuf, RuntimeException

ONNX_FAULTS = (Fail, InvalidArgument, InvalidProtobuf, RuntimeException, RuntimeError)
IDENTIFIER, FORMAT_VERSION, FLOAT32 = b"TORT", 1, 1
ROOM = 512  # bytes for a factor's name, shape and offsets; the buffer grows where that is not enough
BUFFER = 1 << 20
ALIGNMENT = 8  # of numbers in the file, which are used where they lie
Shape = tuple[int, ...]


class Factor(NamedTuple):
    """A LoRA factor as the graph takes it, but for its scale: (in, rank) or (rank, out), a view of any order."""

    values: NDArray[np.float32]
    scale: float = 1.0


class DamagedAdapterFile(ValueError):
    """ONNX Runtime cannot load an adapter file."""


def write_factors(factors: Mapping[str, Factor], path: Path) -> None:
    """Write factors by the names of the graph's inputs; an existing file is replaced whole, never written into."""
    frame = _frame(tuple((name, factor.values.shape) for name, factor in factors.items()))
    scratch = np.empty(max(factor.values.size for factor in factors.values()), "<f4")
    half = path.with_name(f"{path.name}.half")
    # written, not mapped: filling fresh pages through a mapping takes twice the time
    with half.open("wb", buffering=BUFFER) as file:
        # flatbuffers grow towards their beginning, so the last factor comes first
        for before, (values, scale) in zip(frame.pieces, reversed(list(factors.values())), strict=True):
            file.write(before)
            numbers = scratch[: values.size].reshape(values.shape)
            np.multiply(values, np.float32(scale), out=numbers)  # transposed, scaled and copied at once
            file.write(numbers.data)
        file.write(frame.end)
    half.replace(path)


@dataclass(frozen=True, eq=False)
class LoadedFactors:
    """Factors mapped from a file. The values point into what the file's reader has mapped: one object holds both."""

    reader: Any  # onnxruntime.AdapterFormat
    values: Mapping[str, Any]  # OrtValues by the names of the graph's inputs


def load_factors(path: Path) -> LoadedFactors:
    """Map the factors of a file, to be run with.

    A file that is damaged in its structure raises DamagedAdapterFile; its numbers have no checksum.
    """
    try:
        onnxruntime.LoraAdapter().Load(str(path.resolve()))  # looks at the structure, which reading does not
        reader = onnxruntime.AdapterFormat.read_adapter(str(path.resolve()))
    except ONNX_FAULTS as fault:
        raise DamagedAdapterFile(f"ONNX Runtime cannot load it: {fault}") from fault
    return LoadedFactors(reader, reader.get_parameters())


class _Frame(NamedTuple):
    """A file without its numbers: what stands before those of each factor, in the file's order, and at its end."""

    pieces: tuple[bytes, ...]
    end: bytes


@lru_cache(maxsize=2)  # a node serves adapters of one layout, and base models change seldom
def _frame(shapes: tuple[tuple[str, Shape], ...]) -> _Frame:
    builder = flatbuffers.Builder(sum(_bytes(shape) + ROOM for _, shape in shapes))
    numbers, parameters = list[int](), list[int]()
    for name, shape in shapes:
        numbers.append(_zeros(builder, _bytes(shape)))
        parameters.append(_parameter(builder, name, shape, numbers[-1]))
    builder.StartVector(4, len(parameters), 4)
    for parameter in reversed(parameters):
        builder.PrependUOffsetTRelative(parameter)
    listed = builder.EndVector()
    builder.StartObject(4)
    builder.PrependInt32Slot(0, FORMAT_VERSION, 0)
    builder.PrependUOffsetTRelativeSlot(3, listed, 0)
    builder.Finish(builder.EndObject(), file_identifier=IDENTIFIER)
    content = memoryview(builder.Bytes)[builder.Head() :]
    return _without_numbers(content, numbers, [_bytes(shape) for _, shape in shapes])


def _without_numbers(content: memoryview, offsets: list[int], sizes: list[int]) -> _Frame:
    """Cut the numbers out; `offsets` are those of their vectors, which flatbuffers count from the end."""
    pieces, done = list[bytes](), 0
    for offset, size in zip(reversed(offsets), reversed(sizes), strict=True):
        start = len(content) - offset + 4  # behind the vector's length
        pieces.append(bytes(content[done:start]))
        done = start + size
    return _Frame(tuple(pieces), bytes(content[done:]))


def _parameter(builder: Any, name: str, shape: Shape, numbers: int) -> int:
    """Where in the buffer one factor is described."""
    dimensions, text = _dimensions(builder, shape), builder.CreateString(name)
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(0, text, 0)
    builder.PrependUOffsetTRelativeSlot(1, dimensions, 0)
    builder.PrependInt32Slot(2, FLOAT32, 0)
    builder.PrependUOffsetTRelativeSlot(3, numbers, 0)
    where: int = builder.EndObject()
    return where


def _zeros(builder: Any, size: int) -> int:
    """Room for a factor's numbers."""
    builder.StartVector(1, size, ALIGNMENT)
    builder.Pad(size)
    where: int = builder.EndVector()
    return where


def _dimensions(builder: Any, shape: Shape) -> int:
    builder.StartVector(8, len(shape), 8)
    for size in reversed(shape):
        builder.PrependInt64(size)
    where: int = builder.EndVector()
    return where


def _bytes(shape: Shape) -> int:
    return 4 * int(np.prod(shape))
