"""kltp: what it protects, what it takes, and that it decodes to the same bits everywhere."""

import hashlib
import math
import struct
from collections.abc import Sequence

import hypothesis.strategies as st
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from numpy.typing import NDArray

from schemas import kltp
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.codec import decode, encode
from schemas.frames import LARGEST_SYMBOL

RANK = 4


def layout_of(modules: int, width: int, rank: int = RANK) -> Layout:
    shapes = (("A", (rank, width)), ("B", (width // 2, rank)))
    tensors = tuple((f"m{i:02}.lora_{factor}.weight", shape) for i in range(modules) for factor, shape in shapes)
    return Layout(lora=LoraConfig(rank=rank), tensors=tensors)


def trained(layout: Layout, seed: int, scale: float = 1e-3) -> tuple[Adapter, Adapter]:
    """A delta and the adapter it leads to as training makes them: rows much alike, B small beside A."""
    random = np.random.default_rng(seed)
    start, delta = {}, {}
    for name, (height, width) in layout.tensors:
        strengths = 2.0 ** -np.arange(layout.lora.rank)
        common = random.standard_normal((layout.lora.rank, layout.lora.rank)) * strengths
        is_a = ".lora_A." in name
        rows = common @ random.standard_normal((layout.lora.rank, width if is_a else height))
        delta[name] = (scale * (rows if is_a else rows.T)).astype(np.float32)
        first = random.uniform(-0.05, 0.05, (height, width)) if is_a else np.zeros((height, width))
        start[name] = first.astype(np.float32)
    change = Adapter.from_tensors(layout, delta)
    return change, Adapter.from_tensors(layout, start) + change


def product_errors(delta: Adapter, restored: Adapter, end: Adapter) -> list[NDArray[np.float64]]:
    """What the error of each factor does to its product, to first order."""
    wrong, factors = (restored - delta).tensors(), {n: v.astype(np.float64) for n, v in end.tensors().items()}
    modules = sorted({name.partition(".")[0] for name in wrong})
    return [
        error
        for module in modules
        for a, b in [(f"{module}.lora_A.weight", f"{module}.lora_B.weight")]
        for error in (factors[b] @ wrong[a], wrong[b] @ factors[a])
    ]


def norm(errors: Sequence[NDArray[np.float64]]) -> float:
    return math.sqrt(sum(float(np.sum(error**2)) for error in errors))


# --- what arrives ---


@given(st.integers(0, 1000), st.sampled_from([0.5, 1.0, 2.0, 8.0]), st.sampled_from([1e-12, 1e-3, 1.0, 1e9]))
@settings(max_examples=30)
def test_the_error_in_the_products_is_at_most_half_a_step_for_each_value(seed: int, step: float, scale: float) -> None:
    layout = layout_of(modules=3, width=64)
    delta, end = trained(layout, seed, scale)
    body = kltp.encode(delta, end, step)
    unit = kltp.read(body, layout)[0].step
    error = norm(product_errors(delta, decode(body, layout, "kltp"), end))
    assert error <= 1.05 * math.sqrt(layout.size) * unit / 2  # rounded matrices add a little


def test_knowing_where_the_delta_leads_makes_a_smaller_error_in_the_products_with_fewer_bytes() -> None:
    layout = layout_of(modules=4, width=256)
    delta, end = trained(layout, seed=1)
    with_end, without = kltp.encode(delta, end, 1.0), kltp.encode(delta, None, 1.5)
    errors = [norm(product_errors(delta, decode(body, layout, "kltp"), end)) for body in (with_end, without)]
    assert len(with_end) < len(without)
    assert errors[0] < 0.9 * errors[1]


def test_a_delta_with_rows_that_are_much_alike_is_many_times_smaller_than_in_int8() -> None:
    layout = layout_of(modules=10, width=576, rank=8)
    delta, end = trained(layout, seed=2)
    assert len(encode(delta, "kltp", end=end)) * 10 < len(encode(delta, "int8"))


def test_a_larger_step_takes_fewer_bytes_and_loses_more() -> None:
    layout = layout_of(modules=4, width=256)
    delta, end = trained(layout, seed=3)
    bodies = [kltp.encode(delta, end, step) for step in (0.5, 1.0, 2.0, 4.0, 8.0)]
    errors = [norm(product_errors(delta, decode(body, layout, "kltp"), end)) for body in bodies]
    sizes = [len(body) for body in bodies]
    assert sizes == sorted(sizes, reverse=True) and errors == sorted(errors)


# --- what else may come out of a training ---


def test_no_change_at_all_stays_none() -> None:
    delta = Adapter.zeros(layout_of(modules=2, width=16))
    body = kltp.encode(delta, delta, 1.0)
    assert decode(body, delta.layout, "kltp") == delta
    assert len(body) < 100


@pytest.mark.parametrize("factor", ["A", "B"])
def test_a_factor_that_was_not_trained_stays_as_it_was(factor: str) -> None:
    delta, end = trained(layout_of(modules=2, width=64), seed=4)
    half = delta.only("A") if factor == "A" else delta.only("B")
    restored = decode(kltp.encode(half, end - delta + half, 0.5), delta.layout, "kltp")
    untouched = restored.only("B") if factor == "A" else restored.only("A")
    assert untouched == Adapter.zeros(delta.layout)
    assert restored.cosine(half) > 0.9


def test_where_the_other_factor_is_zero_a_factor_still_arrives() -> None:
    """Seen by its products such a delta does nothing yet; but it is averaged with others'."""
    delta, _ = trained(layout_of(modules=2, width=64), seed=5)
    half = delta.only("A")
    assert decode(kltp.encode(half, half, 0.5), delta.layout, "kltp").cosine(half) > 0.95


@pytest.mark.parametrize(("rank", "width"), [(1, 64), (1, 2), (8, 8), (16, 4), (2, 5000)])
def test_every_shape_of_factors_works(rank: int, width: int) -> None:
    layout = layout_of(modules=2, width=width, rank=rank)
    delta, end = trained(layout, seed=7)
    restored = decode(kltp.encode(delta, end, 0.5), layout, "kltp")
    assert norm(product_errors(delta, restored, end)) < 0.2 * norm(product_errors(delta, Adapter.zeros(layout), end))


def test_one_value_beside_a_hundred_thousand_zeros_arrives() -> None:
    layout = layout_of(modules=1, width=20_000)
    values = np.zeros(layout.size, dtype=np.float32)
    values[777] = -3.0
    restored = decode(kltp.encode(Adapter(layout, values), None, 0.5), layout, "kltp").values
    assert np.flatnonzero(restored).tolist() == [777]
    assert restored[777] == pytest.approx(-3.0, rel=0.01)


LARGEST = float(np.finfo(np.float32).max)


@given(st.lists(st.floats(-LARGEST, LARGEST, width=32), min_size=24, max_size=24))
def test_any_finite_values_give_finite_values(values: list[float]) -> None:
    layout = layout_of(modules=1, width=4)
    delta = Adapter(layout, np.array(values, dtype=np.float32))
    assert decode(kltp.encode(delta, delta, 1.0), layout, "kltp").is_finite


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_in_the_delta_and_in_where_it_leads(bad: float) -> None:
    layout = layout_of(modules=1, width=4)
    fine, broken = Adapter.zeros(layout), Adapter(layout, np.full(layout.size, bad, dtype=np.float32))
    for delta, end in ((broken, fine), (fine, broken)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            kltp.encode(delta, end, 1.0)


@pytest.mark.parametrize("step", [0.0, 0.49, 16.1, math.nan, math.inf, -1.0])
def test_a_step_out_of_bounds_is_a_wrong_call(step: float) -> None:
    delta = Adapter.zeros(layout_of(modules=1, width=4))
    with pytest.raises(ValueError, match=r"0\.5 to 16"):
        kltp.encode(delta, None, step)


def test_an_end_of_another_layout_is_a_wrong_call() -> None:
    with pytest.raises(ValueError, match="different layouts"):
        kltp.encode(Adapter.zeros(layout_of(1, 4)), Adapter.zeros(layout_of(1, 8)), 1.0)


# --- the same bits everywhere ---

GOLDEN_LAYOUT = layout_of(modules=2, width=12, rank=2)
GOLDEN_BODY = bytes.fromhex(
    "4b4c5401487f265de2a9f43e1900000028b52ffd20108100000000f9ff0000faff0000090800000c081900000028b52ffd20"
    "108100000009050111060214000000000000000003000f00000028b52ffd20063100001a031f1f2d2105000c00000028b52f"
    "fd200319000070263a0a000f00000028b52ffd2006310000001204070c08"
)
GOLDEN_DIGEST = "680411a048827707b08bc2bd0e0ca04983ff2a3479c6c73f6f67ad31fa976e3c"


def test_a_body_written_once_decodes_to_the_same_bits_for_ever() -> None:
    assert hashlib.sha256(decode(GOLDEN_BODY, GOLDEN_LAYOUT, "kltp").values.tobytes()).hexdigest() == GOLDEN_DIGEST


def read_by_the_document(body: bytes, layout: Layout) -> dict[str, list[list[float]]]:
    """Rows of every factor, read as docs/codec.md says, in Python's own integers."""
    at, heights = 12, [min(shape) for _, shape in layout.tensors]
    (step,) = struct.unpack_from("<d", body, 4)

    def frame() -> bytes:
        nonlocal at
        (length,) = struct.unpack_from("<I", body, at)
        at += 4 + length
        return zstandard.decompress(body[at - length : at])

    index = frame()
    exponents = struct.unpack_from(f"<{len(heights)}h", index)
    owners = [factor for factor, height in enumerate(heights) for _ in range(height)]
    sent = sorted((bucket, row) for row, bucket in enumerate(index[2 * len(heights) :]) if bucket)
    planes, symbols = frame(), {}
    unsigned = [
        low | high << 8 for low, high in zip(planes[: len(planes) // 2], planes[len(planes) // 2 :], strict=True)
    ]
    entries = iter(u // 2 if u % 2 == 0 else -(u // 2) - 1 for u in unsigned)
    columns = {row: [next(entries) for _ in range(heights[owners[row]])] for _, row in sent}
    for bucket in sorted({bucket for bucket, _ in sent}):
        (largest,) = struct.unpack_from("<H", body, at)
        at += 2
        base, raw = 2 * largest + 1, frame()
        digits = max(d for d in range(1, 9) if d == 1 or base**d <= 256)
        stream = iter([byte // base**i % base - largest for byte in raw for i in range(digits)])
        for row in (row for b, row in sent if b == bucket):
            symbols[row] = [next(stream) for _ in range(max(layout.tensors[owners[row]][1]))]
    found = {}
    for factor, (name, shape) in enumerate(layout.tensors):
        rows = [(bucket, row) for bucket, row in sent if owners[row] == factor]
        sums = [
            [sum(columns[k][i] * 2 ** ((24 - b) // 2) * symbols[k][j] for b, k in rows) for j in range(max(shape))]
            for i in range(min(shape))
        ]
        found[name] = [[step * 2.0 ** exponents[factor] * total for total in row] for row in sums]
    return found


@pytest.mark.parametrize("seed", range(5))
def test_a_reader_written_from_the_document_reads_the_same_bits(seed: int) -> None:
    layout = layout_of(modules=3, width=18)
    body = kltp.encode(*trained(layout, seed), 0.5)
    tensors = decode(body, layout, "kltp").tensors()
    for name, rows in read_by_the_document(body, layout).items():
        expected = np.array(rows, dtype=np.float64).astype(np.float32)
        assert (tensors[name] if ".lora_A." in name else tensors[name].T).tolist() == expected.tolist()


def test_the_sums_of_the_decoder_stay_exact_in_float64_for_the_largest_layout() -> None:
    """Entries, symbols, shifts and rows at their limits: below 2^53, float64 adds integers without rounding."""
    most_rows = math.isqrt(250_000_000)
    most_shift = (kltp.BUCKETS - 1) // 2
    assert (kltp.LARGEST_ENTRY + 1) * 2**most_shift * LARGEST_SYMBOL * most_rows < 2**53
