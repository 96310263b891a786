"""LoRA weights as one value: a layout that says what the numbers mean, and the numbers.

An adapter is arithmetic and bytes. It does not know the model it belongs to, PyTorch, or the network.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

A_SUFFIX, B_SUFFIX = ".lora_A.weight", ".lora_B.weight"
MAX_TENSORS = 20_000
BLOCK = 1 << 15
MAX_PARAMETERS = 250_000_000  # as float32, with all names, that still is a body that can be sent

TensorName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,200}$")]
Shape = Annotated[tuple[Annotated[int, Field(ge=1, le=1 << 20)], ...], Field(min_length=2, max_length=2)]


class InvalidAdapter(ValueError):
    """Bytes or tensors that are not an adapter of the expected layout; the text says how."""


class LoraConfig(BaseModel):
    """The LoRA hyperparameters that every node of a federation shares."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=8, ge=1, le=1024, description="inner dimension r of the factors A and B")
    alpha: int = Field(default=16, ge=1, le=65536, description="the product B·A is scaled by alpha / rank")
    target_modules: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,100}$")], ...] = Field(
        default=("q_proj", "v_proj"), min_length=1, max_length=64, description="modules that get factors"
    )
    last_layers: int | None = Field(
        default=None, ge=1, le=1024, description="adapt only this many of the topmost layers; all when unset"
    )


class Layout(BaseModel):
    """Names and shapes of an adapter's tensors, in PEFT's names and sorted order, with their LoRA configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lora: LoraConfig
    tensors: Annotated[tuple[tuple[TensorName, Shape], ...], Field(min_length=1, max_length=MAX_TENSORS)]

    @model_validator(mode="after")
    def _is_canonical(self) -> Self:
        names = [name for name, _ in self.tensors]
        if names != sorted(set(names)):
            raise ValueError("tensors must be sorted by name, without duplicates")
        if self.size > MAX_PARAMETERS:
            raise ValueError(f"{self.size} parameters are more than the {MAX_PARAMETERS} allowed")
        return self

    @cached_property
    def size(self) -> int:
        """How many parameters the adapter has."""
        return sum(math.prod(shape) for _, shape in self.tensors)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON: two nodes with equal digests mean the same numbers by the same bytes."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @cached_property
    def rows(self) -> int:
        """How many rows all factors have, each counted along its shorter side."""
        return sum(min(shape) for _, shape in self.tensors)

    @cached_property
    def safetensors_header(self) -> bytes:
        """What comes before the numbers in `adapter_model.safetensors`, which has them in this order.

        Written here as the library writes it: it would make the whole body first, twice.
        """
        # one metadata key only: safetensors keeps several in hash-map order, and the digest is of these bytes
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for (name, shape), span in zip(self.tensors, self._spans, strict=True):
            entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": (4 * span.start, 4 * span.stop)}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def with_rank(self, rank: int) -> Self:
        """The layout of the same modules at another rank; alpha moves along, so that alpha / rank stays if it can."""
        old = self.lora.rank
        alpha = self.lora.alpha * rank // old if self.lora.alpha * rank % old == 0 else self.lora.alpha
        lora = self.lora.model_copy(update={"rank": rank, "alpha": alpha})
        tensors = tuple(
            (name, (rank, shape[1]) if name.endswith(A_SUFFIX) else (shape[0], rank)) for name, shape in self.tensors
        )
        return type(self)(lora=lora, tensors=tensors)

    def split(self, values: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Views of the flat `values`, shape (size,), as named tensors of this layout's shapes."""
        return {
            name: values[span].reshape(shape) for (name, shape), span in zip(self.tensors, self._spans, strict=True)
        }

    @cached_property
    def _spans(self) -> tuple[slice, ...]:
        """Where each tensor's values are."""
        stops = list(accumulate(math.prod(shape) for _, shape in self.tensors))
        return tuple(map(slice, [0, *stops], stops))


@dataclass(frozen=True, eq=False)
class Adapter:
    """LoRA factors A, shape (rank, in), and B, shape (out, rank), as one read-only float32 vector, shape (size,)."""

    layout: Layout
    values: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.values.dtype != np.float32 or self.values.shape != (self.layout.size,):
            raise InvalidAdapter(
                f"expected {self.layout.size} float32 values, got {self.values.shape} of {self.values.dtype}"
            )
        self.values.flags.writeable = False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.layout, self.values)  # what comes out of a pickle is read-only too

    @classmethod
    def zeros(cls, layout: Layout) -> Self:
        """The adapter whose every factor is zero: as a delta, no change at all."""
        return cls(layout, np.zeros(layout.size, dtype=np.float32))

    @classmethod
    def from_tensors(cls, layout: Layout, tensors: dict[str, NDArray[np.float32]]) -> Self:
        """Join named tensors into one value; names and shapes must be exactly the layout's."""
        expected = dict(layout.tensors)
        if tensors.keys() != expected.keys():
            odd = sorted(tensors.keys() ^ expected.keys())
            raise InvalidAdapter(f"{len(odd)} tensors are missing or unexpected, first: {odd[0][:200]!a}")
        for name, shape in expected.items():
            if tensors[name].shape != shape:
                raise InvalidAdapter(f"{name} has shape {tensors[name].shape}, expected {shape}")
        flat = [np.asarray(tensors[name], dtype=np.float32).ravel() for name, _ in layout.tensors]
        return cls(layout, np.concatenate(flat))

    @classmethod
    def from_safetensors(cls, layout: Layout, body: bytes) -> Self:
        """Read a safetensors body of this layout; anything else raises InvalidAdapter."""
        header = layout.safetensors_header
        if len(body) == len(header) + 4 * layout.size and body.startswith(header):  # one that we wrote
            values = np.frombuffer(body, dtype="<f4", offset=len(header))  # where they are: nothing is copied
            return cls(layout, values.astype(np.float32, copy=False))
        try:
            tensors = load_safetensors(body)
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise InvalidAdapter(f"not a safetensors file: {str(error)[:200]!a}") from None
        if any(tensor.dtype != np.float32 for tensor in tensors.values()):
            raise InvalidAdapter("every tensor must be float32")
        return cls.from_tensors(layout, tensors)

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Named read-only views: A has shape (rank, in_features), B has shape (out_features, rank)."""
        return self.layout.split(self.values)

    def to_safetensors(self) -> bytes:
        """The bytes of `adapter_model.safetensors` as PEFT reads it; equal adapters give equal bytes."""
        return self.layout.safetensors_header + self.values.astype("<f4", copy=False).tobytes()

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the safetensors bytes: what `sha256sum adapter_model.safetensors` prints."""
        hashed = hashlib.sha256(self.layout.safetensors_header)
        hashed.update(self.values.astype("<f4", copy=False).data)  # without a copy of them
        return hashed.hexdigest()

    def clipped(self, norm: float) -> Self:
        """This adapter, shortened where its Euclidean norm is over `norm`; never longer than that."""
        if self.norm <= norm:
            return self
        return self * (norm / self.norm * (1 - 1e-6))  # below, whichever way the products are rounded

    def only(self, factor: Literal["A", "B"]) -> Self:
        """This adapter with the other factor of every module zero."""
        kept = {
            name: values if name.endswith({"A": A_SUFFIX, "B": B_SUFFIX}[factor]) else np.zeros_like(values)
            for name, values in self.tensors().items()
        }
        return self.from_tensors(self.layout, kept)

    @cached_property
    def norm(self) -> float:
        """Euclidean norm of all values, summed in float64."""
        return math.sqrt(float(np.einsum("i,i->", self.values, self.values, dtype=np.float64)))

    def cosine(self, other: Self) -> float:
        """Cosine of the angle between the two as vectors, in float64; 0 where either is zero."""
        dot = float(np.einsum("i,i->", self.values, other.values, dtype=np.float64))
        return dot / lengths if (lengths := self.norm * other.norm) > 0 else 0.0

    @property
    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        # piece by piece: the answers alone would take a quarter of the values' memory
        return all(np.isfinite(self.values[start : start + BLOCK]).all() for start in range(0, len(self.values), BLOCK))

    # overflow gives infinity without a warning here: `is_finite` is how callers ask

    @np.errstate(over="ignore", invalid="ignore")
    def __add__(self, other: Self) -> Self:
        return self._like(other, self.values + other.values)

    @np.errstate(over="ignore", invalid="ignore")
    def __sub__(self, other: Self) -> Self:
        return self._like(other, self.values - other.values)

    @np.errstate(over="ignore", invalid="ignore")
    def __mul__(self, factor: float) -> Self:
        return type(self)(self.layout, self.values * np.float32(factor))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Adapter):
            return NotImplemented
        return self.layout == other.layout and self.values.tobytes() == other.values.tobytes()

    __hash__ = None  # type: ignore[assignment]  # a value of megabytes: use its digest as a key

    def _like(self, other: Self, values: NDArray[np.float32]) -> Self:
        if self.layout.digest != other.layout.digest:
            raise InvalidAdapter("adapters of different layouts cannot be combined")
        return type(self)(self.layout, values)


@np.errstate(over="ignore", invalid="ignore")
def weighted_sum(deltas: list[Adapter], weights: ArrayLike) -> Adapter:
    """sum_i weights[i] * deltas[i], added in the order given, in float64, then rounded once to float32."""
    if not deltas:
        raise ValueError("weighted_sum needs at least one delta")
    layout, weighted = deltas[0].layout, list(zip(deltas, np.asarray(weights, dtype=np.float64), strict=True))
    if any(delta.layout.digest != layout.digest for delta in deltas):
        raise InvalidAdapter("adapters of different layouts cannot be combined")
    total = np.empty(layout.size, dtype=np.float32)
    for start in range(0, layout.size, BLOCK):  # which stay in the processor's cache
        block = slice(start, start + BLOCK)
        total[block] = sum(weight * delta.values[block] for delta, weight in weighted)
    return Adapter(layout, total)
