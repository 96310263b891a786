"""Delta codecs: Adapter to bytes and back, with the loss stated and the decoder's memory bounded by the layout.

| id | body | loss |
|---|---|---|
| fp32 | little-endian float32 values in layout order | none |
| fp16 | zstd of the float16 values' low bytes, then their high bytes | half of the last of 11 bits; 65504 is the most |
| int8 | zstd of one float32 scale per row, then int8 values row by row | half a step at most: row maximum / 254 |
| kltp | whitened, rotated, rounded with one step, packed: see kltp.py and docs/codec.md | what its step says |
| safetensors | a PEFT adapter file, for global adapters | none |

A row runs along a factor's longer side, so A and B both have `rank` rows. Bytes come from strangers: decoding
allocates what the layout asks for and nothing that a peer claims, and every fault is a CodecError.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas import kltp
from schemas.adapter import Adapter, InvalidAdapter, Layout
from schemas.frames import CodecError as CodecError
from schemas.frames import compress, decompress, largest_frame
from schemas.messages import CodecId, UpdateCodecId

_FLOAT, _HALF = np.dtype("<f4"), np.dtype("<f2")
_LEVEL = 3
_LEVELS = 127
_LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(_LEVELS), np.float32(0))
_LARGEST_HALF = float(np.finfo(np.float16).max)
_SAFETENSORS_HEADER_PER_TENSOR = 512


class Codec(NamedTuple):
    """One way to write an adapter, the most bytes that a valid body can take, and how small a delta usually gets."""

    encode: Callable[[Adapter, Adapter | None, float], bytes]
    decode: Callable[[bytes, Layout], Adapter]
    largest: Callable[[Layout], int]
    loses: str
    typical_ratio: float  # bytes of fp32 to its bytes, for deltas as in docs/codec.md


def encode(adapter: Adapter, codec: CodecId, *, end: Adapter | None = None, step: float = 1.0) -> bytes:
    """The adapter's bytes. A non-finite value is a ValueError: no codec sends what no peer may load.

    Only kltp heeds the options. `end` is the adapter that a delta leads to, whose products the loss is measured in;
    without it every value counts alike. A larger `step` takes fewer bytes and loses more: see kltp.encode.
    """
    if not adapter.is_finite:
        raise ValueError("the adapter holds NaN or infinite values and cannot be sent")
    return CODECS[codec].encode(adapter, end, step)


def decode(body: bytes, layout: Layout, codec: CodecId) -> Adapter:
    """The adapter in `body`, finite and of `layout`; anything else raises CodecError."""
    if len(body) > (largest := largest_body(layout, codec)):
        raise CodecError(f"{len(body)} bytes are more than the {largest} this layout can need as {codec}")
    adapter = CODECS[codec].decode(body, layout)
    if not adapter.is_finite:
        raise CodecError("the adapter holds NaN or infinite values")
    return adapter


def largest_body(layout: Layout, codec: CodecId) -> int:
    """An upper bound in bytes for any valid body, so that a claim beyond it is refused before it is sent."""
    return CODECS[codec].largest(layout)


def _encode_fp32(adapter: Adapter, *_: object) -> bytes:
    return adapter.values.astype(_FLOAT, copy=False).tobytes()


def _decode_fp32(body: bytes, layout: Layout) -> Adapter:
    return Adapter(layout, _floats(body, layout.size))


def _encode_fp16(adapter: Adapter, *_: object) -> bytes:
    halves = np.clip(adapter.values, -_LARGEST_HALF, _LARGEST_HALF).astype(_HALF)
    # shuffled: the high bytes hold sign and exponent and are much alike
    return compress(halves.view(np.uint8).reshape(-1, 2).T.tobytes(), _LEVEL)


def _decode_fp16(body: bytes, layout: Layout) -> Adapter:
    planes = np.frombuffer(decompress(body, 2 * layout.size), dtype=np.uint8).reshape(2, -1)
    return Adapter(layout, np.ascontiguousarray(planes.T).view(_HALF).ravel().astype(np.float32))


def _encode_int8(adapter: Adapter, *_: object) -> bytes:
    scales, symbols = [], []
    for tensor in adapter.tensors().values():
        rows = _rows(tensor)
        scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(_LEVELS)
        scale = np.minimum(scale, _LARGEST_SCALE)  # rounded up, the largest float would decode to infinity
        # a row so small that its scale is zero is sent as zeros
        ratio = np.divide(rows, scale, out=np.zeros_like(rows), where=scale > 0)
        scales.append(scale.ravel())
        symbols.append(np.clip(np.rint(ratio), -_LEVELS, _LEVELS).astype(np.int8).ravel())
    raw = np.concatenate(scales).astype(_FLOAT).tobytes() + np.concatenate(symbols).tobytes()
    return compress(raw, _LEVEL)


def _decode_int8(body: bytes, layout: Layout) -> Adapter:
    raw = decompress(body, 4 * layout.rows + layout.size)
    scales = _floats(raw[: 4 * layout.rows], layout.rows)[:, None]
    symbols = np.frombuffer(raw, dtype=np.int8, offset=4 * layout.rows)
    values, start, row = np.empty(layout.size, dtype=np.float32), 0, 0
    with np.errstate(over="ignore", invalid="ignore"):  # a hostile scale is found by the finite check
        for tensor in map(_rows, layout.split(values).values()):
            stop, end = start + tensor.size, row + tensor.shape[0]
            np.multiply(symbols[start:stop].reshape(tensor.shape), scales[row:end], out=tensor)
            start, row = stop, end
    return Adapter(layout, values)


def _encode_safetensors(adapter: Adapter, *_: object) -> bytes:
    return adapter.to_safetensors()


def _decode_safetensors(body: bytes, layout: Layout) -> Adapter:
    try:
        return Adapter.from_safetensors(layout, body)
    except InvalidAdapter as error:
        raise CodecError(str(error)) from None


def _rows(tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    """The factor as (rows, columns) with no more rows than columns: a view."""
    return tensor if tensor.shape[0] <= tensor.shape[1] else tensor.T


def _floats(raw: bytes, count: int) -> NDArray[np.float32]:
    if len(raw) != 4 * count:
        raise CodecError(f"expected {4 * count} bytes for {count} values, got {len(raw)}")
    return np.frombuffer(raw, dtype=_FLOAT).astype(np.float32)


def _largest_int8(layout: Layout) -> int:
    return largest_frame(4 * layout.rows + layout.size)


def _largest_safetensors(layout: Layout) -> int:
    return 4 * layout.size + _SAFETENSORS_HEADER_PER_TENSOR * len(layout.tensors) + 1024


CODECS: dict[CodecId, Codec] = {
    "kltp": Codec(
        kltp.encode, kltp.decode, kltp.largest_body, "little that the products notice; its step says how much", 32.0
    ),
    "int8": Codec(_encode_int8, _decode_int8, _largest_int8, "half a step: a row's largest magnitude / 254", 4.0),
    "fp16": Codec(
        _encode_fp16,
        _decode_fp16,
        lambda layout: largest_frame(2 * layout.size),
        "half of the last of 11 bits; what is beyond 65504 becomes that",
        2.4,
    ),
    "fp32": Codec(_encode_fp32, _decode_fp32, lambda layout: 4 * layout.size, "nothing", 1.0),
    "safetensors": Codec(_encode_safetensors, _decode_safetensors, _largest_safetensors, "nothing", 1.0),
}
UPDATE_CODECS: tuple[UpdateCodecId, ...] = ("kltp", "int8", "fp16", "fp32")
