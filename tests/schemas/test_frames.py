"""Packed symbols and zstd frames: what goes in comes out, in the space that is promised."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from schemas.frames import LARGEST_SYMBOL, CodecError, compress, decompress, largest_frame, pack, packed_size, unpack


@given(st.integers(1, LARGEST_SYMBOL), st.data())
def test_symbols_come_back_from_as_many_bytes_as_promised(largest: int, data: st.DataObject) -> None:
    symbols = data.draw(st.lists(st.integers(-largest, largest), max_size=40))
    packed = pack(np.array(symbols, dtype=np.int16), largest)
    assert len(packed) == packed_size(len(symbols), largest)
    assert unpack(packed, len(symbols), largest).tolist() == symbols


@pytest.mark.parametrize(("largest", "per_byte"), [(1, 5), (2, 3), (3, 2), (7, 2), (8, 1), (127, 1), (128, 0.5)])
def test_small_symbols_share_bytes(largest: int, per_byte: float) -> None:
    assert packed_size(3000, largest) == 3000 / per_byte


@pytest.mark.parametrize(
    ("raw", "largest"), [(b"\xf3", 1), (b"\x7d", 2), (b"\xe1", 7), (b"\xff", 127), (b"\0\xff", 200)]
)
def test_bytes_that_no_symbols_make_are_refused(raw: bytes, largest: int) -> None:
    with pytest.raises(CodecError, match="out of range"):
        unpack(raw, 1, largest)


@given(st.binary(max_size=2000), st.sampled_from([1, 3, 19]))
def test_a_frame_gives_back_its_bytes_and_stays_below_its_bound(raw: bytes, level: int) -> None:
    frame = compress(raw, level)
    assert decompress(frame, len(raw)) == raw
    assert len(frame) <= largest_frame(len(raw))
    with pytest.raises(CodecError, match="claims"):
        decompress(frame, len(raw) + 1)
