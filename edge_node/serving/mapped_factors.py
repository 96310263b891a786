"""An adapter's factors as ONNX Runtime takes them: written to a file without a name, and used where they are mapped.

Nothing of them lies in this process's own memory, and they are there once. ONNX Runtime has an adapter file of its own;
but what runs on bound memory ignores it, and reading its factors copies each. It does not know what factors mean.
"""

import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

SHARED_MEMORY = Path("/dev/shm")
BUFFER = 1 << 20


class Factor(NamedTuple):
    """A LoRA factor as the graph takes it, but for its scale: (in, rank) or (rank, out), a view of any order."""

    values: NDArray[np.float32]
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class MappedFactors:
    """Factors in a mapping. The values point into the memory and do not keep it: one object holds both."""

    memory: mmap.mmap
    values: Mapping[str, Any]  # onnxruntime.OrtValue by the names of the graph's inputs


def map_factors(factors: Mapping[str, Factor]) -> MappedFactors:
    """Scale factors, by the names of the graph's inputs, and map them. Raises OSError where there is no room."""
    largest = np.empty(max(factor.values.size for factor in factors.values()), "<f4")
    # in memory where the machine has a place for that
    home = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    with tempfile.TemporaryFile(buffering=BUFFER, prefix="alignfed-", dir=home) as file:
        # written, not mapped: filling fresh pages through a mapping takes twice the time
        for values, scale in factors.values():
            numbers = largest[: values.size].reshape(values.shape)
            np.multiply(values, np.float32(scale), out=numbers)  # transposed, scaled and copied at once
            file.write(numbers.data)
        file.flush()
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return MappedFactors(memory, dict(_values(memory, factors)))


def _values(memory: mmap.mmap, factors: Mapping[str, Factor]) -> Iterator[tuple[str, Any]]:
    """Each factor where it lies, one behind the other."""
    numbers, start = np.frombuffer(memory, "<f4"), 0
    for name, factor in factors.items():
        end = start + factor.values.size
        yield name, onnxruntime.OrtValue.ortvalue_from_numpy(numbers[start:end].reshape(factor.values.shape))
        start = end
