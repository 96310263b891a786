"""The codec `kltp`: a delta in whitened coordinates, rounded with one step, its symbols packed and compressed.

Rows of coefficients that round to zero are not sent; for the others go their symbols, and the column of T that leads
back, as integers. All that the decoder adds up are integers below 2^53, so float64 is exact in any order and by any
library: a body decodes to the same bits wherever arithmetic is IEEE 754. docs/codec.md has the bytes and the bounds.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.adapter import Adapter, Layout
from schemas.frames import LARGEST_SYMBOL, CodecError, compress, decompress, largest_frame, pack, packed_size, unpack
from schemas.whitening import Coordinates, Tensor, as_rows, transform

VERSION = b"KLT\x01"
FINEST, COARSEST = 0.5, 16.0  # steps, in root mean squares of all coefficients
BUCKETS, LOWEST = 24, -6  # how many half octaves of a row's root mean square, and the first, counted from one step
LARGEST_ENTRY = 32767
LEVEL = 19
BLOCK = 4096  # columns that are multiplied at a time
_HEADER, _LENGTH, _LARGEST = struct.Struct("<4sd"), struct.Struct("<I"), struct.Struct("<H")
_LARGEST_FLOAT = float(np.finfo(np.float32).max)


class Component(NamedTuple):
    """One row that is sent: its symbols, shape (columns,), and its column of T, shape (rows,)."""

    bucket: int
    symbols: NDArray[Any]
    column: NDArray[Any]


class Contents(NamedTuple):
    """What a body says."""

    step: float
    exponents: NDArray[np.int16]  # of two, for each factor: the unit of T's entries
    buckets: NDArray[np.uint8]  # of every row of every factor, in layout order; 0 is a row that is not sent
    components: list[Component]  # by bucket, then in layout order


def encode(delta: Adapter, end: Adapter | None, step: float) -> bytes:
    """The delta in about one bit for each value at step 1, half a bit at step 2.

    `end` is the adapter that the delta leads to: errors count by what they do to its products, and without it all
    alike. `step` is the quantiser's, in root mean squares of the coefficients. ValueError for NaN and infinity, an end
    of another layout, and a step out of bounds.
    """
    if not FINEST <= step <= COARSEST:
        raise ValueError(f"the step must be {FINEST:g} to {COARSEST:g}, got {step:g}")
    if end is not None and end.layout != delta.layout:
        raise ValueError("the delta and the adapter that it leads to are of different layouts")
    if not delta.is_finite or not (end is None or end.is_finite):
        raise ValueError("the adapter holds NaN or infinite values and cannot be sent")
    return _write(_quantised(transform(delta, end), step))


def decode(body: bytes, layout: Layout) -> Adapter:
    """The delta in `body`, every value finite; anything but a body of this layout raises CodecError."""
    contents, _ = read(body, layout)
    sent: dict[int, list[Component]] = {}
    for (_, factor), component in zip(_order(contents.buckets, layout), contents.components, strict=True):
        sent.setdefault(factor, []).append(component)
    values = np.zeros(layout.size, dtype=np.float32)
    for factor, (name, tensor) in enumerate(layout.split(values).items()):
        if factor in sent:
            _restore(as_rows(name, tensor), sent[factor], _unit(contents.step, int(contents.exponents[factor])))
    return Adapter(layout, values)


def read(body: bytes, layout: Layout) -> tuple[Contents, dict[str, int]]:
    """What `body` says, and its bytes by part; CodecError where it cannot be a body of this layout.

    The layout and what was read before decide the size of every part before it is decompressed.
    """
    reader = _Reader(body)
    version, step = reader.take("header", _HEADER)
    if version != VERSION:
        raise CodecError(f"the body is no kltp of version {VERSION[-1]}")
    if not (math.isfinite(step) and step >= 0):
        raise CodecError("the quantiser's step is not a number that can be used")
    rows = [min(shape) for _, shape in layout.tensors]
    index = reader.frame("index", 2 * len(rows) + sum(rows))
    exponents = np.frombuffer(index, dtype="<i2", count=len(rows))
    buckets = np.frombuffer(index, dtype=np.uint8, offset=2 * len(rows))
    if (worst := int(buckets.max())) > BUCKETS:
        raise CodecError(f"a row is in bucket {worst}; there are {BUCKETS}")
    order = list(_order(buckets, layout))
    heights = [rows[factor] for _, factor in order]
    columns = _cut(_entries(reader.frame("matrices", 2 * sum(heights))), heights)
    components: list[Component] = []
    for bucket, owners in _by_bucket(order):
        (largest,) = reader.take("symbols", _LARGEST)
        if not 1 <= largest <= LARGEST_SYMBOL:
            raise CodecError(f"a bucket's largest symbol is {largest}; it must be 1 to {LARGEST_SYMBOL}")
        widths = [max(layout.tensors[factor][1]) for factor in owners]
        raw = reader.frame("symbols", packed_size(sum(widths), largest))
        symbols = _cut(unpack(raw, sum(widths), largest), widths)
        components += map(Component, [bucket] * len(owners), symbols, columns[len(components) :])
    reader.end()
    return Contents(step, exponents, buckets, components), reader.sizes


def largest_body(layout: Layout) -> int:
    """An upper bound in bytes for any body of this layout."""
    rows = [min(shape) for _, shape in layout.tensors]
    parts = (2 * len(rows) + sum(rows), 2 * sum(row * row for row in rows), 2 * layout.size)
    fixed = _HEADER.size + len(parts) * _LENGTH.size
    return fixed + sum(map(largest_frame, parts)) + BUCKETS * (_LARGEST.size + _LENGTH.size + largest_frame(0))


def _quantised(coordinates: list[Coordinates], step: float) -> Contents:
    """Everything rounded: symbols in steps, T in units that add as much error as they save bytes."""
    values = sum(each.coefficients.size for each in coordinates)
    squares = sum(float(np.sum(each.coefficients**2)) for each in coordinates)
    peak = max(float(np.abs(each.coefficients).max()) for each in coordinates)
    unit = max(step * math.sqrt(squares / values), peak / LARGEST_SYMBOL)
    exponents, buckets = list[int](), list[NDArray[np.uint8]]()
    components: list[Component] = []
    for each in coordinates:
        scaled = np.rint(each.coefficients / unit) if unit > 0 else np.zeros_like(each.coefficients)
        bucket = _buckets(scaled)
        live = bucket > 0
        shifted = np.ldexp(each.inverse[:, live], -_shift(bucket[live]))
        exponents.append(exponent := _exponent(shifted, each))
        buckets.append(bucket)
        entries = np.rint(np.ldexp(shifted, -exponent)).astype(np.int16)
        components += map(Component, bucket[live].tolist(), scaled[live].astype(np.int16), entries.T)
    components.sort(key=lambda component: component.bucket)  # stable: within a bucket in layout order
    return Contents(unit, np.array(exponents, dtype=np.int16), np.concatenate(buckets), components)


def _buckets(symbols: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The bucket of every row, shape (rows,); 0 where all its symbols are zero."""
    power = np.mean(symbols**2, axis=1)
    half_octaves = np.floor(np.log2(power, out=np.zeros_like(power), where=power > 0))
    bucket = np.clip(half_octaves, LOWEST, LOWEST + BUCKETS - 1) - LOWEST + 1
    return np.where(power > 0, bucket, 0).astype(np.uint8)


def _shift(bucket: NDArray[Any]) -> NDArray[Any]:
    """Weaker rows have T in coarser units, by so many powers of two: 0 to 11."""
    return (BUCKETS - bucket.astype(np.int64)) // 2


def _exponent(shifted: NDArray[np.float64], coordinates: Coordinates) -> int:
    """The unit in which rounding T adds rows / columns of the symbols' own error; larger if entries would not fit."""
    if shifted.size == 0:
        return 0
    rows, columns = coordinates.coefficients.shape
    # a row of bucket b has a mean square of about 2 * 4^octave steps, octave = (LOWEST + b - 1) // 2
    octave = (LOWEST + BUCKETS - 1) // 2
    wanted = round(math.log2(rows / (2 * columns * coordinates.price)) / 2) - octave
    fits = math.ceil(math.log2(float(np.abs(shifted).max()) / LARGEST_ENTRY))
    return max(wanted, fits)


def _write(contents: Contents) -> bytes:
    index = contents.exponents.astype("<i2").tobytes() + contents.buckets.tobytes()
    columns = [component.column for component in contents.components]
    parts = [_HEADER.pack(VERSION, contents.step), *_frame(index), *_frame(_planes(columns))]
    groups: dict[int, list[NDArray[Any]]] = {}
    for component in contents.components:
        groups.setdefault(component.bucket, []).append(component.symbols)
    for rows in groups.values():
        symbols = np.concatenate(rows)
        largest = int(np.abs(symbols).max())
        parts += [_LARGEST.pack(largest), *_frame(pack(symbols, largest))]
    return b"".join(parts)


def _frame(raw: bytes) -> tuple[bytes, bytes]:
    frame = compress(raw, LEVEL)
    return _LENGTH.pack(len(frame)), frame


def _planes(columns: list[NDArray[np.int16]]) -> bytes:
    """Entries as 0, -1, 1, -2, ... -> 0, 1, 2, 3, ...: all low bytes, then all high bytes, which are mostly zero."""
    entries = np.concatenate([np.zeros(0, dtype=np.int16), *columns]).astype(np.int32)
    folded = np.where(entries < 0, -2 * entries - 1, 2 * entries)
    return (folded & 255).astype(np.uint8).tobytes() + (folded >> 8).astype(np.uint8).tobytes()


def _entries(planes: bytes) -> NDArray[np.int16]:
    """What `_planes` wrote."""
    half = len(planes) // 2
    low, high = np.frombuffer(planes, dtype=np.uint8, count=half), np.frombuffer(planes, dtype=np.uint8, offset=half)
    folded = high.astype(np.uint16) << 8 | low
    return ((folded >> 1) ^ -(folded & 1)).astype(np.int16)


@dataclass
class _Reader:
    """Takes a body apart from its beginning, and counts its bytes by part."""

    body: bytes
    position: int = 0
    sizes: dict[str, int] = field(default_factory=dict)

    def take(self, part: str, form: struct.Struct) -> tuple[Any, ...]:
        """The numbers that come next."""
        return form.unpack(self._next(part, form.size))

    def frame(self, part: str, size: int) -> bytes:
        """What the next frame holds, exactly `size` bytes."""
        (length,) = self.take(part, _LENGTH)
        return decompress(self._next(part, length), size)

    def end(self) -> None:
        """Refuse what is left."""
        if self.position != len(self.body):
            raise CodecError(f"{len(self.body) - self.position} bytes too many")

    def _next(self, part: str, size: int) -> bytes:
        if size > len(self.body) - self.position:
            raise CodecError(f"the body ends within its {part}")
        self.position += size
        self.sizes[part] = self.sizes.get(part, 0) + size
        return self.body[self.position - size : self.position]


def _order(buckets: NDArray[np.uint8], layout: Layout) -> Iterator[tuple[int, int]]:
    """Bucket and factor of every row that is sent, in the order in which they are."""
    factors = np.repeat(np.arange(len(layout.tensors)), [min(shape) for _, shape in layout.tensors])
    ordered = np.argsort(buckets, kind="stable")[np.count_nonzero(buckets == 0) :]
    return zip(buckets[ordered].tolist(), factors[ordered].tolist(), strict=True)


def _by_bucket(order: list[tuple[int, int]]) -> Iterator[tuple[int, list[int]]]:
    """Every bucket that has rows, and their factors."""
    groups: dict[int, list[int]] = {}
    for bucket, factor in order:
        groups.setdefault(bucket, []).append(factor)
    return iter(groups.items())


def _cut(values: NDArray[Any], lengths: list[int]) -> list[NDArray[Any]]:
    ends = np.cumsum(lengths).tolist()
    return [values[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _unit(step: float, exponent: int) -> float:
    try:
        return math.ldexp(step, exponent)
    except OverflowError:
        raise CodecError(f"a scale of {step:g} * 2^{exponent} is out of range") from None


@np.errstate(over="ignore")
def _restore(rows: Tensor, components: list[Component], unit: float) -> None:
    """Fill a factor's rows, (rows, columns). What would be beyond float32 is its largest number."""
    shifts = _shift(np.array([component.bucket for component in components]))
    matrix = np.ldexp(np.stack([component.column for component in components], axis=1).astype(np.float64), shifts)
    for start in range(0, rows.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        symbols = np.stack([component.symbols[block] for component in components]).astype(np.float64)
        rows[:, block] = np.clip(unit * (matrix @ symbols), -_LARGEST_FLOAT, _LARGEST_FLOAT)
