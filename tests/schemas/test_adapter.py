"""Adapters as values: their arithmetic, their file, and what is refused as a file."""

import hashlib
import json
import struct
import tracemalloc
from itertools import permutations
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.numpy import save

from schemas.adapter import (
    MAX_PARAMETERS,
    MAX_TENSORS,
    Adapter,
    InvalidAdapter,
    Layout,
    LoraConfig,
    weighted_sum,
)

LAYOUT = Layout(lora=LoraConfig(rank=2), tensors=(("x.lora_A.weight", (2, 3)), ("x.lora_B.weight", (4, 2))))
OTHER = Layout(lora=LoraConfig(rank=2), tensors=(("x.lora_A.weight", (2, 4)), ("x.lora_B.weight", (3, 2))))

BIT_PATTERNS = st.lists(st.integers(0, 2**32 - 1), min_size=LAYOUT.size, max_size=LAYOUT.size)
ANY_ADAPTER = BIT_PATTERNS.map(lambda bits: Adapter(LAYOUT, np.array(bits, dtype=np.uint32).view(np.float32)))


def adapter(*values: float) -> Adapter:
    padded = [*values, *[0.0] * (LAYOUT.size - len(values))]
    return Adapter(LAYOUT, np.array(padded, dtype=np.float32))


def file_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file as an attacker writes it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


A, B = "x.lora_A.weight", "x.lora_B.weight"
HONEST = {A: tensor([2, 3], 0, 24), B: tensor([4, 2], 24, 56)}


# --- the value ---


@given(ANY_ADAPTER)
def test_a_file_gives_back_the_very_same_bits(before: Adapter) -> None:
    after = Adapter.from_safetensors(LAYOUT, before.to_safetensors())
    assert after == before
    assert after.values.tobytes() == before.values.tobytes()


@given(ANY_ADAPTER)
def test_the_digest_is_what_sha256sum_says_of_the_file(any_adapter: Adapter) -> None:
    assert any_adapter.digest == hashlib.sha256(any_adapter.to_safetensors()).hexdigest()


@given(ANY_ADAPTER)
def test_equal_adapters_give_equal_bytes_however_they_were_put_together(before: Adapter) -> None:
    for order in permutations(before.tensors().items()):
        again = Adapter.from_tensors(LAYOUT, dict(order))
        assert again.to_safetensors() == before.to_safetensors()


@given(ANY_ADAPTER)
def test_the_bytes_are_those_that_the_library_writes(any_adapter: Adapter) -> None:
    assert any_adapter.to_safetensors() == save(any_adapter.tensors(), metadata={"format": "pt"})


@given(ANY_ADAPTER)
def test_the_file_of_another_writer_is_read_as_well(any_adapter: Adapter) -> None:
    foreign = save(any_adapter.tensors(), metadata={"format": "np"})
    assert foreign != any_adapter.to_safetensors()
    assert Adapter.from_safetensors(LAYOUT, foreign) == any_adapter


def test_the_file_is_one_that_safetensors_and_peft_read(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(adapter(1, 2, 3).to_safetensors())
    with safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.get_tensor(A).tolist() == [[1, 2, 3], [0, 0, 0]]


def test_minus_zero_is_another_adapter_since_it_has_another_digest() -> None:
    assert adapter(0.0) != adapter(-0.0)
    assert adapter(0.0).digest != adapter(-0.0).digest


def test_the_values_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        adapter(1).values[0] = 2
    with pytest.raises(ValueError, match="read-only"):
        adapter(1).tensors()[A][0, 0] = 2
    with pytest.raises(TypeError, match="unhashable"):
        hash(adapter(1))


def test_arithmetic_is_that_of_the_values() -> None:
    assert adapter(1, 2) + adapter(3, 4) == adapter(4, 6)
    assert adapter(5, 7) - adapter(1, 2) == adapter(4, 5)
    assert adapter(1, -2) * 0.5 == adapter(0.5, -1)
    assert adapter(1, 2) - adapter(1, 2) == Adapter.zeros(LAYOUT)


def test_the_norm_does_not_overflow_where_float32_squares_would() -> None:
    assert adapter(3, -4).norm == 5
    assert adapter(3e30, 4e30).norm == pytest.approx(5e30)


def test_the_sum_is_rounded_once_at_the_end() -> None:
    terms = [adapter(1e8), adapter(1), adapter(-1e8)]
    assert weighted_sum(terms, [1, 1, 1]) == adapter(1)  # in float32 the 1 would be lost
    assert weighted_sum([adapter(2, 4), adapter(6, 8)], [0.25, 0.5]) == adapter(3.5, 5)


def test_a_sum_needs_a_weight_for_every_delta_and_at_least_one_delta() -> None:
    with pytest.raises(ValueError, match="at least one"):
        weighted_sum([], [])
    with pytest.raises(ValueError, match="shorter"):
        weighted_sum([adapter(1), adapter(2)], [1])


def test_adapters_of_different_layouts_do_not_mix() -> None:
    assert LAYOUT.size == OTHER.size
    one, other = adapter(1), Adapter.zeros(OTHER)
    assert Adapter.zeros(LAYOUT) != other
    with pytest.raises(InvalidAdapter, match="different layouts"):
        one + other
    with pytest.raises(InvalidAdapter, match="different layouts"):
        one - other
    with pytest.raises(InvalidAdapter, match="different layouts"):
        weighted_sum([one, other], [1, 1])


@pytest.mark.parametrize("values", [np.zeros(13), np.zeros(14, np.float64), np.zeros((2, 7), np.float32)])
def test_values_that_are_not_one_float32_vector_of_the_layouts_size_are_refused(values: NDArray[np.float32]) -> None:
    with pytest.raises(InvalidAdapter, match="expected 14 float32 values"):
        Adapter(LAYOUT, values)


# --- the layout ---


def test_nodes_that_mean_other_numbers_have_other_digests() -> None:
    reranked = Layout(lora=LoraConfig(rank=2, alpha=1), tensors=LAYOUT.tensors)
    assert len({LAYOUT.digest, OTHER.digest, reranked.digest}) == 3
    assert Layout.model_validate_json(LAYOUT.model_dump_json()).digest == LAYOUT.digest


@pytest.mark.parametrize(
    "tensors",
    [
        [],
        [["b", [1, 1]], ["a", [1, 1]]],
        [["a", [1, 1]], ["a", [1, 1]]],
        [["", [1, 1]]],
        [["a/b", [1, 1]]],
        [["a\n", [1, 1]]],
        [["a\x00", [1, 1]]],
        [["é", [1, 1]]],
        [["a" * 201, [1, 1]]],
        [["a", [1]]],
        [["a", [1, 1, 1]]],
        [["a", [0, 1]]],
        [["a", [-1, -1]]],
        [["a", [2**20 + 1, 1]]],
        [["a", [10**400, 1]]],
        [["a", [1.5, 1]]],
        [["a", [2**20, 2**20]]],
        [[f"t{i:05}", [1, 1]] for i in range(MAX_TENSORS + 1)],
        [[f"t{i:05}", [2**10, 2**10]] for i in range(MAX_PARAMETERS // 2**20 + 1)],
    ],
)
def test_a_layout_that_is_not_canonical_or_is_absurd_is_refused(tensors: object) -> None:
    with pytest.raises(ValidationError):
        Layout.model_validate({"lora": {}, "tensors": tensors})


# --- files from strangers ---


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(b"", id="empty"),
        pytest.param(file_of({}), id="no tensors"),
        pytest.param(file_of(b"[]"), id="not an object"),
        pytest.param(file_of(b"{" * 5000), id="deep"),
        pytest.param(file_of(b"\xff\xfe"), id="not text"),
        pytest.param(file_of(HONEST, bytes(55)), id="data too short"),
        pytest.param(file_of(HONEST, bytes(57)), id="data too long"),
        pytest.param(file_of(HONEST, bytes(56), length=2**64 - 1), id="header length beyond memory"),
        pytest.param(file_of(HONEST, bytes(56), length=2**40), id="header longer than the file"),
        pytest.param(file_of(HONEST, bytes(56), length=0), id="header of no length"),
        pytest.param(file_of(json.dumps(HONEST).encode() + b" " * 100_000, bytes(56), length=7), id="header cut"),
        pytest.param(file_of({**HONEST, B: tensor([4, 2], 0, 32)}, bytes(56)), id="overlapping offsets"),
        pytest.param(file_of({**HONEST, B: tensor([4, 2], 28, 60)}, bytes(60)), id="a hole between tensors"),
        pytest.param(file_of({**HONEST, B: tensor([4, 2], 56, 24)}, bytes(56)), id="offsets that run backwards"),
        pytest.param(file_of({**HONEST, B: tensor([4, 2], 24, 2**64)}, bytes(56)), id="offset over 64 bits"),
        pytest.param(file_of({**HONEST, B: tensor([4, 2], -1, 31)}, bytes(56)), id="negative offset"),
        pytest.param(file_of({A: tensor([2**62, 4], 0, 0)}), id="shape that overflows"),
        pytest.param(file_of({A: tensor([2**64 - 1, 0], 0, 0)}), id="shape over a signed 64 bits"),
        pytest.param(file_of({A: tensor([1] * 70, 0, 4)}, bytes(4)), id="seventy dimensions"),
        pytest.param(file_of({**HONEST, A: tensor([3, 2], 0, 24)}, bytes(56)), id="transposed"),
        pytest.param(file_of({A: tensor([2, 3], 0, 24)}, bytes(24)), id="a tensor is missing"),
        pytest.param(file_of({**HONEST, "y": tensor([1], 56, 60)}, bytes(60)), id="one tensor too many"),
        pytest.param(file_of({**HONEST, "\x1b[2J" * 999: tensor([0], 56, 56)}, bytes(56)), id="a hostile name"),
        pytest.param(file_of({A: tensor([2, 3], 0, 48, "F64"), B: tensor([4, 2], 48, 80)}, bytes(80)), id="float64"),
        pytest.param(file_of({A: tensor([2, 3], 0, 24, "I32"), B: tensor([4, 2], 24, 56)}, bytes(56)), id="int32"),
        pytest.param(file_of({A: tensor([2, 3], 0, 12, "BF16"), B: tensor([4, 2], 12, 44)}, bytes(44)), id="bfloat16"),
        pytest.param(file_of({A: tensor([2, 3], 0, 6, "F8_E4M3"), B: tensor([4, 2], 6, 38)}, bytes(38)), id="float8"),
        pytest.param(file_of({A: tensor([2, 3], 0, 24, "F" * 5000)}, bytes(24)), id="an invented type"),
        pytest.param(file_of({**HONEST, "__metadata__": {"a": 1}}, bytes(56)), id="metadata that is no text"),
    ],
)
def test_a_file_that_is_not_this_adapter_is_refused_in_one_printable_line(file: bytes) -> None:
    with pytest.raises(InvalidAdapter) as refusal:
        Adapter.from_safetensors(LAYOUT, file)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 500


def test_a_header_as_large_as_a_file_may_be_costs_no_more_than_a_few_times_its_size() -> None:
    names = {f"t{i:06}": tensor([1], 4 * i, 4 * i + 4) for i in range(5000)}
    body = file_of(names, bytes(4 * 5000))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidAdapter, match="unexpected"):
            Adapter.from_safetensors(LAYOUT, body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(body)


@given(st.binary(max_size=300))
def test_no_bytes_at_all_raise_anything_but_a_refusal(file: bytes) -> None:
    with pytest.raises(InvalidAdapter):
        Adapter.from_safetensors(LAYOUT, file)


DIMENSION = st.one_of(st.integers(0, 8), st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64 - 1]))
HEADERS = st.dictionaries(
    st.one_of(st.sampled_from([A, B, "__metadata__"]), st.text(max_size=5)),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "U8", "BOOL", "F8_E5M2", "F4", "C64", "X"]),
            "shape": st.lists(DIMENSION, max_size=4),
            "data_offsets": st.lists(DIMENSION, min_size=2, max_size=2),
        }
    ),
    max_size=3,
)


@given(HEADERS, st.binary(max_size=64))
def test_no_header_at_all_raises_anything_but_a_refusal(header: dict[str, object], data: bytes) -> None:
    try:
        found = Adapter.from_safetensors(LAYOUT, file_of(header, data))
    except InvalidAdapter:
        return
    assert found.layout == LAYOUT


def test_every_truncation_of_a_file_is_refused() -> None:
    file = adapter(1, 2, 3).to_safetensors()
    for length in range(len(file)):
        with pytest.raises(InvalidAdapter):
            Adapter.from_safetensors(LAYOUT, file[:length])


def test_every_flipped_bit_of_a_file_is_refused_or_gives_an_adapter_with_another_digest_or_the_same_values() -> None:
    before = adapter(1, 2, 3)
    file = before.to_safetensors()
    refused = 0
    for position in range(8 * len(file)):
        flipped = bytearray(file)
        flipped[position // 8] ^= 1 << position % 8
        try:
            after = Adapter.from_safetensors(LAYOUT, bytes(flipped))
        except InvalidAdapter:
            refused += 1
            continue
        # what is left are bits of the numbers, and of metadata that mean nothing
        assert (after.digest != before.digest) == (after.values.tobytes() != before.values.tobytes())
    assert refused > 4 * len(file)
