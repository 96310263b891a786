"""Delta codecs: Adapter to bytes and back, with the loss stated and the decoder's memory bounded by the layout.

| id | body | loss |
|---|---|---|
| fp32 | little-endian float32 values in layout order | none |
| int8 | zstd of one float32 scale per row, then int8 values row by row | half a step at most: row maximum / 254 |
| safetensors | a PEFT adapter file, for global adapters | none |

A row runs along a factor's longer side, so A and B both have `rank` rows. Bytes come from strangers: decoding
allocates what the layout asks for and nothing that a peer claims, and every fault is a CodecError.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

from schemas.adapter import Adapter, InvalidAdapter, Layout
from schemas.messages import CodecId

_FLOAT = np.dtype("<f4")
_LEVELS = 127
_LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(_LEVELS), np.float32(0))
_SAFETENSORS_HEADER_PER_TENSOR = 512


class CodecError(ValueError):
    """Bytes that are not an adapter of the expected layout in the stated codec."""


class Codec(NamedTuple):
    """One way to write an adapter, and the most bytes that a valid body can take."""

    encode: Callable[[Adapter], bytes]
    decode: Callable[[bytes, Layout], Adapter]
    largest: Callable[[Layout], int]


def encode(adapter: Adapter, codec: CodecId) -> bytes:
    """The adapter's bytes. A non-finite value is a ValueError: no codec sends what no peer may load."""
    if not adapter.is_finite:
        raise ValueError("the adapter holds NaN or infinite values and cannot be sent")
    return CODECS[codec].encode(adapter)


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


def _encode_fp32(adapter: Adapter) -> bytes:
    return adapter.values.astype(_FLOAT, copy=False).tobytes()


def _decode_fp32(body: bytes, layout: Layout) -> Adapter:
    return Adapter(layout, _floats(body, layout.size))


def _encode_int8(adapter: Adapter) -> bytes:
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
    return zstandard.ZstdCompressor(level=3, write_content_size=True).compress(raw)


def _decode_int8(body: bytes, layout: Layout) -> Adapter:
    rows = [min(shape) for _, shape in layout.tensors]
    raw = _decompress(body, 4 * sum(rows) + layout.size)
    scales = np.split(_floats(raw[: 4 * sum(rows)], sum(rows)), np.cumsum(rows)[:-1])
    symbols = np.frombuffer(raw, dtype=np.int8, offset=4 * sum(rows))
    values, start = np.empty(layout.size, dtype=np.float32), 0
    for scale, tensor in zip(scales, layout.split(values).values(), strict=True):
        stop = start + tensor.size
        with np.errstate(over="ignore", invalid="ignore"):  # a hostile scale is found by the finite check
            _rows(tensor)[...] = symbols[start:stop].reshape(scale.size, -1) * scale[:, None]
        start = stop
    return Adapter(layout, values)


def _encode_safetensors(adapter: Adapter) -> bytes:
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


def _decompress(body: bytes, size: int) -> bytes:
    """Exactly `size` bytes out of one zstd frame. The frame's own claim is checked first: the library believes it."""
    try:
        if (claimed := zstandard.frame_content_size(body)) != size:
            raise CodecError(f"the compressed body claims {claimed} bytes, expected {size}")
        decompressor = zstandard.ZstdDecompressor()
        raw: bytes = decompressor.decompress(body, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"not a zstd frame: {error}") from None
    if len(raw) != size:
        raise CodecError(f"expected {size} bytes after decompression, got {len(raw)}")
    return raw


def _largest_int8(layout: Layout) -> int:
    raw = 4 * sum(min(shape) for _, shape in layout.tensors) + layout.size
    return raw + (raw >> 7) + 1024  # zstd's own worst case is below this


def _largest_safetensors(layout: Layout) -> int:
    return 4 * layout.size + _SAFETENSORS_HEADER_PER_TENSOR * len(layout.tensors) + 1024


CODECS: dict[CodecId, Codec] = {
    "fp32": Codec(_encode_fp32, _decode_fp32, lambda layout: 4 * layout.size),
    "int8": Codec(_encode_int8, _decode_int8, _largest_int8),
    "safetensors": Codec(_encode_safetensors, _decode_safetensors, _largest_safetensors),
}
UPDATE_CODECS: tuple[CodecId, ...] = ("int8", "fp32")
