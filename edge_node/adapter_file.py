"""ONNX Runtime's adapter file: written straight from views of an adapter, mapped by ONNX Runtime.

ONNX Runtime can write it, too, at three times the cost: it takes a copy of every factor and lets the file grow as it
goes, and this is most of what a new version costs. The format is a flatbuffer that onnxruntime/lora/adapter_format
describes; a test compares every byte that matters with ONNX Runtime's own. It does not know what factors mean.
"""

from collections.abc import Mapping
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
ALIGNMENT = 8  # of numbers in the file, which are used where they lie


class Factor(NamedTuple):
    """A LoRA factor as the graph takes it, but for its scale: (in, rank) or (rank, out), a view of any order."""

    values: NDArray[np.float32]
    scale: float = 1.0


class DamagedAdapterFile(ValueError):
    """ONNX Runtime cannot load an adapter file."""


def write_factors(factors: Mapping[str, Factor], path: Path) -> None:
    """Write factors by the names of the graph's inputs; an existing file is replaced whole, never written into."""
    size = sum(factor.values.nbytes + ROOM for factor in factors.values())
    builder = flatbuffers.Builder(size)
    parameters = [_parameter(builder, name, factor) for name, factor in factors.items()]
    builder.StartVector(4, len(parameters), 4)
    for parameter in reversed(parameters):
        builder.PrependUOffsetTRelative(parameter)
    listed = builder.EndVector()
    builder.StartObject(4)
    builder.PrependInt32Slot(0, FORMAT_VERSION, 0)
    builder.PrependUOffsetTRelativeSlot(3, listed, 0)
    builder.Finish(builder.EndObject(), file_identifier=IDENTIFIER)
    half = path.with_name(f"{path.name}.half")
    half.write_bytes(memoryview(builder.Bytes)[builder.Head() :])
    half.replace(path)


def load_factors(path: Path) -> tuple[Any, Any]:
    """A LoraAdapter mapped from the file and the RunOptions that put it to use; hold both or neither.

    A file that is damaged in its structure raises DamagedAdapterFile; its numbers have no checksum.
    """
    adapter = onnxruntime.LoraAdapter()
    try:
        adapter.Load(str(path.resolve()))
    except ONNX_FAULTS as fault:
        raise DamagedAdapterFile(f"ONNX Runtime cannot load it: {fault}") from fault
    options = onnxruntime.RunOptions()
    options.add_active_adapter(adapter)
    return adapter, options


def _parameter(builder: Any, name: str, factor: Factor) -> int:
    """Where in the buffer one factor is described."""
    data, shape, text = _data(builder, factor), _shape(builder, factor.values.shape), builder.CreateString(name)
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(0, text, 0)
    builder.PrependUOffsetTRelativeSlot(1, shape, 0)
    builder.PrependInt32Slot(2, FLOAT32, 0)
    builder.PrependUOffsetTRelativeSlot(3, data, 0)
    where: int = builder.EndObject()
    return where


def _data(builder: Any, factor: Factor) -> int:
    """The numbers: transposed, scaled and copied into the buffer at once."""
    values = factor.values
    builder.StartVector(1, values.nbytes, ALIGNMENT)
    builder.head -= values.nbytes  # as CreateByteVector does it, but without the bytes in between
    room = np.frombuffer(builder.Bytes, "<f4", values.size, builder.Head()).reshape(values.shape)
    np.multiply(values, np.float32(factor.scale), out=room)
    where: int = builder.EndVector()
    return where


def _shape(builder: Any, shape: tuple[int, ...]) -> int:
    builder.StartVector(8, len(shape), 8)
    for size in reversed(shape):
        builder.PrependInt64(size)
    where: int = builder.EndVector()
    return where
