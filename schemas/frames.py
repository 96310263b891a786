"""Bytes in zstd frames, read within bounds: the refusal that all codecs share, and integers as bytes that zstd likes.

A reader says how many bytes a frame must hold. It knows nothing of adapters.
"""

from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

LARGEST_SYMBOL = 8191


class CodecError(ValueError):
    """Bytes that are not an adapter of the expected layout in the stated codec."""


def compress(raw: bytes, level: int) -> bytes:
    """One zstd frame that states its content size."""
    return zstandard.ZstdCompressor(level=level, write_content_size=True).compress(raw)


def decompress(body: bytes, size: int) -> bytes:
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


def largest_frame(size: int) -> int:
    """An upper bound for a frame of `size` bytes; zstd's own worst case is below it."""
    return size + (size >> 7) + 1024


def packed_size(count: int, largest: int) -> int:
    """Bytes that `pack` makes of `count` symbols whose magnitudes are at most `largest`."""
    return 2 * count if 2 * largest + 1 > 256 else -(-count // _digits(largest))


def pack(symbols: NDArray[np.int16], largest: int) -> bytes:
    """Symbols, shape (count,), as the digits of a number in each byte, as many as fit; else low bytes, then high bytes.

    zstd codes a byte in no less than a bit, and symbols near zero carry less than that: so they share bytes.
    """
    base, count = 2 * largest + 1, symbols.size
    shifted = symbols.astype(np.int32) + largest
    if base > 256:
        return (shifted & 255).astype(np.uint8).tobytes() + (shifted >> 8).astype(np.uint8).tobytes()
    digits = _digits(largest)
    filled = np.concatenate([shifted, np.full(-count % digits, largest, dtype=np.int32)])
    return (filled.reshape(-1, digits) @ base ** np.arange(digits)).astype(np.uint8).tobytes()


def unpack(raw: bytes, count: int, largest: int) -> NDArray[np.integer[Any]]:
    """What `pack` packed, shape (count,), as int8 or int16; CodecError for a byte or a pair that no symbols make."""
    base = 2 * largest + 1
    planes = np.frombuffer(raw, dtype=np.uint8)
    if base > 256:
        wide = planes[count:].astype(np.uint16) << 8 | planes[:count]
        _check(int(wide.max(initial=0)) < base)
        return wide.astype(np.int16) - np.int16(largest)
    digits = _digits(largest)
    _check(int(planes.max(initial=0)) < base**digits)
    table = np.arange(base**digits)[:, None] // base ** np.arange(digits) % base - largest
    return table.astype(np.int8)[planes].ravel()[:count]


def _check(valid: bool) -> None:
    if not valid:
        raise CodecError("packed symbols are out of range")


def _digits(largest: int) -> int:
    """How many digits of base 2 * largest + 1 one byte holds."""
    digits = 1
    while (2 * largest + 1) ** (digits + 1) <= 256:
        digits += 1
    return digits
