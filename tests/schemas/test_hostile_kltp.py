"""kltp: bytes from strangers cost a refusal in words and bounded memory, or give an adapter that may be loaded."""

import math
import struct
import tracemalloc
from collections.abc import Sequence

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from schemas import kltp
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.codec import CodecError, decode, largest_body
from schemas.frames import LARGEST_SYMBOL, compress

LARGEST = float(np.finfo(np.float32).max)
LAYOUT = Layout(lora=LoraConfig(rank=2), tensors=(("x.lora_A.weight", (2, 6)), ("x.lora_B.weight", (3, 2))))


def learnt(seed: int) -> tuple[Adapter, Adapter]:
    """A delta and where it leads."""
    values = np.random.default_rng(seed).standard_normal((2, LAYOUT.size)).astype(np.float32)
    return Adapter(LAYOUT, 1e-3 * values[0]), Adapter(LAYOUT, values[1])


HONEST = [kltp.encode(*learnt(seed), step) for seed in range(4) for step in (0.5, 1.0, 4.0)]


def finite_or_refused(body: bytes, layout: Layout = LAYOUT) -> Adapter | None:
    """The adapter, which must be one that may be loaded, or None for a refusal in words."""
    try:
        found = decode(body, layout, "kltp")
    except CodecError as refusal:
        assert str(refusal).isprintable() and len(str(refusal)) < 300
        return None
    assert found.is_finite and found.layout == layout
    return found


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(body: bytes) -> None:
    assert finite_or_refused(body) is None
    assert finite_or_refused(kltp.VERSION + body) is None


@given(st.sampled_from(HONEST), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6))
@settings(max_examples=300)
def test_changed_bytes_are_refused_or_give_finite_values(body: bytes, changes: list[tuple[int, int]]) -> None:
    changed = bytearray(body)
    for position, value in changes:
        changed[position % len(body)] = value
    finite_or_refused(bytes(changed))


def test_every_flipped_bit_and_every_truncation_is_refused_or_gives_finite_values() -> None:
    body = HONEST[0]
    for position in range(8 * len(body)):
        flipped = bytearray(body)
        flipped[position // 8] ^= 1 << position % 8
        finite_or_refused(bytes(flipped))
    for length in range(len(body)):
        assert finite_or_refused(body[:length]) is None
    assert finite_or_refused(body + b"\0") is None


def framed(raw: bytes) -> bytes:
    frame = compress(raw, 3)
    return struct.pack("<I", len(frame)) + frame


def body_of(
    step: float = 1.0,
    exponents: Sequence[int] = (0, 0),
    buckets: Sequence[int] = (1, 0, 0, 0),
    matrices: bytes = bytes([2, 0, 0, 0]),
    groups: Sequence[tuple[int, bytes]] = ((1, bytes([1, 1])),),
) -> bytes:
    """A body for LAYOUT, part by part: one row of the first factor, T = [1, 0], symbols packed five to the byte."""
    index = struct.pack("<2h", *exponents) + bytes(buckets)
    symbols = b"".join(struct.pack("<H", largest) + framed(raw) for largest, raw in groups)
    return kltp.VERSION + struct.pack("<d", step) + framed(index) + framed(matrices) + symbols


def test_the_parts_of_a_body_mean_what_the_document_says() -> None:
    # the byte 1 + 3 * 2 + 9 * 0 + 27 * 1 + 81 * 1 is the symbols 0, 1, -1, 0, 0, and a byte of 1 the symbol 0
    found = finite_or_refused(body_of(step=0.25, exponents=(-11, 0), groups=((1, bytes([115, 1])),)))
    assert found is not None
    assert found.values.tolist() == [0, 0.25, -0.25, 0, 0, 0] + [0] * 12


@given(
    st.floats(min_value=0, allow_infinity=False),
    st.tuples(st.integers(-32768, 32767), st.integers(-32768, 32767)),
    st.integers(1, kltp.BUCKETS),
    st.binary(min_size=4, max_size=4),
    st.integers(1, LARGEST_SYMBOL),
    st.binary(min_size=12, max_size=12),
)
@settings(max_examples=300)
def test_any_numbers_in_a_body_of_the_right_shape_give_finite_values_or_a_refusal(
    step: float, exponents: tuple[int, int], bucket: int, matrices: bytes, largest: int, symbols: bytes
) -> None:
    size = 12 if largest > 127 else next(-(-6 // d) for d in range(8, 0, -1) if (2 * largest + 1) ** d <= 256)
    groups = [(largest, symbols[:size])]
    finite_or_refused(body_of(step, exponents, (bucket, 0, 0, 0), matrices, groups))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"step": math.nan}, "step"),
        ({"step": math.inf}, "step"),
        ({"step": -1.0}, "step"),
        ({"step": 1e300, "exponents": (1000, 0)}, "out of range"),
        ({"buckets": (25, 0, 0, 0)}, "bucket 25"),
        ({"buckets": (0, 0, 0, 0)}, "claims"),
        ({"buckets": (1, 1, 0, 0)}, "claims"),
        ({"buckets": (1, 0, 0, 0, 0)}, "claims"),
        ({"matrices": bytes(6)}, "claims"),
        ({"groups": ((0, bytes(2)),)}, "largest symbol"),
        ({"groups": ((8192, bytes(12)),)}, "largest symbol"),
        ({"groups": ((1, bytes([243, 0])),)}, "out of range"),
        ({"groups": ((200, bytes(6) + b"\xff" * 6),)}, "out of range"),
        ({"groups": ()}, "ends within"),
        ({"groups": ((1, bytes(2)), (1, bytes(2)))}, "too many"),
    ],
)
def test_a_part_that_cannot_be_is_refused_by_name(changes: dict[str, object], reason: str) -> None:
    assert finite_or_refused(body_of()) is not None
    with pytest.raises(CodecError, match=reason):
        decode(body_of(**changes), LAYOUT, "kltp")  # type: ignore[arg-type]


def test_scales_that_leave_float32_end_at_its_largest_number() -> None:
    found = finite_or_refused(body_of(step=1e200, exponents=(0, 0), groups=((1, bytes([2, 1])),)))
    assert found is not None
    assert found.values[0] == np.float32(LARGEST)


@pytest.mark.parametrize("part", ["index", "matrices", "symbols"])
def test_a_frame_that_claims_a_gigabyte_is_refused_before_it_is_opened(part: str) -> None:
    bomb = struct.pack("<I", 13) + b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", 1 << 30) + bytes(4)
    honest = body_of()
    starts = {"index": 12}
    starts["matrices"] = 12 + 4 + struct.unpack_from("<I", honest, 12)[0]
    starts["symbols"] = starts["matrices"] + 4 + struct.unpack_from("<I", honest, starts["matrices"])[0] + 2
    tracemalloc.start()
    with pytest.raises(CodecError, match="claims"):
        decode(honest[: starts[part]] + bomb, LAYOUT, "kltp")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("shape", [(2, 300_000), (400, 400), (1, 300_000)])
def test_the_widest_symbols_take_no_more_memory_than_a_stated_multiple_of_the_layout(shape: tuple[int, int]) -> None:
    layout = Layout(lora=LoraConfig(), tensors=(("x", shape),))
    values = np.zeros(layout.size, dtype=np.float32)
    values[:: shape[1] // 2] = 1.0  # few and large: symbols that need two bytes
    body = kltp.encode(Adapter(layout, values), None, 0.5)
    assert len(body) <= largest_body(layout, "kltp")
    tracemalloc.start()
    decode(body, layout, "kltp")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 16 * layout.size + (1 << 20)
