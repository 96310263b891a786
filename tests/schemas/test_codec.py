"""Codecs: what a round trip loses, and that bytes from strangers cost a refusal and bounded memory."""

import struct
import tracemalloc
from collections.abc import Callable, Iterator

import hypothesis.strategies as st
import numpy as np
import pytest
import zstandard
from hypothesis import given
from numpy.typing import NDArray

from schemas.adapter import MAX_PARAMETERS, MAX_TENSORS, Adapter, Layout, LoraConfig
from schemas.codec import CODECS, UPDATE_CODECS, CodecError, decode, encode, largest_body
from schemas.messages import MAX_BODY_SIZE, CodecId

LAYOUT = Layout(lora=LoraConfig(rank=2), tensors=(("x.lora_A.weight", (2, 3)), ("x.lora_B.weight", (4, 2))))
ROWS = 4  # two of A, two of B: rank each
RAW = 4 * ROWS + LAYOUT.size  # bytes of an int8 body before zstd

ALL = pytest.mark.parametrize("codec", CODECS)
MIB = 1 << 20

RunConfined = Callable[[str, str, int], str]


def values_of(low: float, high: float) -> st.SearchStrategy[Adapter]:
    numbers = st.floats(float(np.float32(low)), float(np.float32(high)), width=32)
    return st.lists(numbers, min_size=LAYOUT.size, max_size=LAYOUT.size).map(adapter)


def adapter(values: list[float]) -> Adapter:
    return Adapter(LAYOUT, np.array(values, dtype=np.float32))


LARGEST = float(np.finfo(np.float32).max)
FINITE = values_of(-LARGEST, LARGEST)


# --- what arrives is what was sent ---


@pytest.mark.parametrize("codec", ["fp32", "safetensors"])
@given(before=FINITE)
def test_a_lossless_codec_gives_back_every_bit(codec: CodecId, before: Adapter) -> None:
    after = decode(encode(before, codec), LAYOUT, codec)
    assert after.values.tobytes() == before.values.tobytes()


@given(st.one_of(FINITE, values_of(-1, 1), values_of(-1e-40, 1e-40)))
def test_int8_loses_at_most_half_a_step_in_every_row(before: Adapter) -> None:
    after = decode(encode(before, "int8"), LAYOUT, "int8")
    for sent, got in zip(rows(before), rows(after), strict=True):
        error = np.abs(sent.astype(np.float64) - got).max()
        # float32 rounds the step and the product; below 1e-43 no float32 has a half step
        assert error <= float(np.abs(sent).max()) / 254 * (1 + 1e-4) + 1e-43


@given(st.one_of(FINITE, values_of(-1, 1), values_of(-1e-4, 1e-4)))
def test_fp16_keeps_eleven_bits_and_the_sign(before: Adapter) -> None:
    after = decode(encode(before, "fp16"), LAYOUT, "fp16").values.astype(np.float64)
    wanted = np.clip(before.values.astype(np.float64), -65504, 65504)
    assert (np.abs(after - wanted) <= np.abs(wanted) * 2.0**-11 + 2.0**-25).all()


def rows(of: Adapter) -> Iterator[NDArray[np.float32]]:
    for tensor in of.tensors().values():
        yield from tensor if tensor.shape[0] <= tensor.shape[1] else tensor.T


@ALL
@given(before=FINITE)
def test_equal_adapters_give_equal_bytes(codec: CodecId, before: Adapter) -> None:
    again = Adapter(LAYOUT, before.values.copy())
    assert encode(again, codec) == encode(before, codec)


@ALL
@given(before=FINITE)
def test_no_body_is_larger_than_the_bound_that_claims_are_checked_against(codec: CodecId, before: Adapter) -> None:
    assert len(encode(before, codec)) <= largest_body(LAYOUT, codec)


@ALL
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_no_peer_may_load_is_not_sent(codec: CodecId, bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        encode(adapter([bad] + [0.0] * 13), codec)


def smollm2() -> Layout:
    """q and v of ten layers of SmolLM2-135M at rank 8: the shapes of the demo."""
    shapes = {"q_proj": (576, 576), "v_proj": (192, 576)}
    tensors = []
    for layer in range(20, 30):
        for name, (out_features, in_features) in shapes.items():
            module = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors += [
                (f"{module}.lora_A.weight", (8, in_features)),
                (f"{module}.lora_B.weight", (out_features, 8)),
            ]
    return Layout(lora=LoraConfig(), tensors=tuple(tensors))


def test_int8_takes_about_a_quarter_of_the_bytes_of_fp32() -> None:
    layout = smollm2()
    noise = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32)
    delta = Adapter(layout, noise)
    assert len(encode(delta, "int8")) <= 0.27 * len(encode(delta, "fp32"))


def test_fp16_takes_less_than_half_of_the_bytes_of_fp32() -> None:
    layout = smollm2()
    delta = Adapter(layout, 1e-3 * np.random.default_rng(0).standard_normal(layout.size).astype(np.float32))
    assert len(encode(delta, "fp16")) < 0.47 * len(encode(delta, "fp32"))


def test_updates_are_taken_in_codecs_that_exist() -> None:
    assert set(UPDATE_CODECS) <= CODECS.keys()


@ALL
def test_the_largest_layout_that_is_allowed_still_makes_a_body_that_can_be_sent(codec: CodecId) -> None:
    width = MAX_PARAMETERS // MAX_TENSORS
    wide = tuple((f"{i:05}".rjust(200, "t"), (1, width)) for i in range(MAX_TENSORS))
    tall = tuple((f"{i:05}".rjust(200, "t"), (2**20, MAX_PARAMETERS // 2**20)) for i in range(1))
    for tensors in (wide, tall):
        layout = Layout(lora=LoraConfig(), tensors=tensors)
        assert largest_body(layout, codec) <= MAX_BODY_SIZE


def test_long_names_fit_into_the_bound_for_files() -> None:
    layout = Layout(lora=LoraConfig(), tensors=tuple((f"{i:05}".rjust(200, "t"), (1, 1)) for i in range(1000)))
    assert len(encode(Adapter.zeros(layout), "safetensors")) <= largest_body(layout, "safetensors")


# --- bodies from strangers ---


@ALL
@given(body=st.binary(max_size=200))
def test_no_bytes_at_all_raise_anything_but_a_refusal(codec: CodecId, body: bytes) -> None:
    try:
        found = decode(body, LAYOUT, codec)
    except CodecError as refusal:
        assert str(refusal).isprintable() and len(str(refusal)) < 500
    else:
        assert codec == "fp32" and len(body) == 4 * LAYOUT.size
        assert found.is_finite


@given(st.binary(min_size=RAW, max_size=RAW))
def test_any_scales_and_symbols_give_finite_values_or_a_refusal(raw: bytes) -> None:
    try:
        found = decode(zstandard.compress(raw), LAYOUT, "int8")
    except CodecError as refusal:
        assert "NaN or infinite" in str(refusal)
    else:
        assert found.is_finite


def int8_body(scales: list[float], symbols: int) -> bytes:
    return zstandard.compress(struct.pack(f"<{ROWS}f", *scales) + struct.pack("b", symbols) * LAYOUT.size)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("symbol", [0, 1, -128])
def test_a_scale_that_is_no_number_is_refused_even_where_every_symbol_is_zero(scale: float, symbol: int) -> None:
    with pytest.raises(CodecError, match="NaN or infinite"):
        decode(int8_body([1, 1, scale, 1], symbol), LAYOUT, "int8")


@pytest.mark.parametrize("scale", [LARGEST, -LARGEST, LARGEST / 127.5])
def test_a_scale_that_overflows_with_the_least_symbol_is_refused(scale: float) -> None:
    with pytest.raises(CodecError, match="NaN or infinite"):
        decode(int8_body([1, 1, 1, scale], -128), LAYOUT, "int8")


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-45, -1e-45, 1e30])
def test_odd_scales_mean_what_they_say(scale: float) -> None:
    found = decode(int8_body([scale] * ROWS, -128), LAYOUT, "int8")
    assert set(found.values.tolist()) == {float(np.float32(-128) * np.float32(scale))}


@ALL
def test_every_truncation_is_refused(codec: CodecId) -> None:
    body = encode(adapter([0.5, -1, *range(12)]), codec)
    for length in range(len(body)):
        with pytest.raises(CodecError):
            decode(body[:length], LAYOUT, codec)


@ALL
def test_a_body_beyond_the_bound_is_refused_by_its_length_alone(codec: CodecId) -> None:
    largest = largest_body(LAYOUT, codec)
    with pytest.raises(CodecError, match=f"{largest + 1} bytes are more than the {largest}"):
        decode(bytes(largest + 1), LAYOUT, codec)


@ALL
@pytest.mark.parametrize("more", [b"\0", b"\0" * 100, b"\x28\xb5\x2f\xfd"])
def test_bytes_behind_the_end_are_refused(codec: CodecId, more: bytes) -> None:
    with pytest.raises(CodecError):
        decode(encode(adapter([1.0] * 14), codec) + more, LAYOUT, codec)


@ALL
def test_every_flipped_bit_is_refused_or_gives_finite_values(codec: CodecId) -> None:
    body = encode(adapter([0.5, -1, *range(12)]), codec)
    for position in range(8 * len(body)):
        flipped = bytearray(body)
        flipped[position // 8] ^= 1 << position % 8
        try:
            assert decode(bytes(flipped), LAYOUT, codec).is_finite
        except CodecError as refusal:
            assert str(refusal).isprintable()


def test_no_float32_that_is_not_finite_gets_through() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        values = np.zeros(LAYOUT.size, dtype=np.float32)
        values[7] = bad
        with pytest.raises(CodecError, match="NaN or infinite"):
            decode(values.tobytes(), LAYOUT, "fp32")
        with pytest.raises(CodecError, match="NaN or infinite"):
            decode(Adapter(LAYOUT, values).to_safetensors(), LAYOUT, "safetensors")


# --- memory ---


def zstd_frame(claim: int | None, content: int, *, window_log: int = 17) -> bytes:
    """A frame of `content` zero bytes, 4 bytes for each 128 KiB, that claims to hold `claim`."""
    descriptor, size = (0x80, struct.pack("<I", claim)) if claim is not None else (0, b"")
    lengths = [131072] * (content // 131072) + ([content % 131072] if content % 131072 else [])
    last = len(lengths) - 1
    # a block header is 3 bytes: is it the last, type 1 (one byte repeated), how often
    blocks = [struct.pack("<I", (n << 3) | 2 | (i == last))[:3] + b"\0" for i, n in enumerate(lengths)]
    return b"\x28\xb5\x2f\xfd" + bytes([descriptor, (window_log - 10) << 3]) + size + b"".join(blocks)


def test_the_bombs_are_real() -> None:
    """The frames made here are zstd frames that its library takes: an honest one decodes."""
    assert decode(zstd_frame(RAW, RAW), LAYOUT, "int8") == Adapter.zeros(LAYOUT)
    unclaimed = zstandard.ZstdDecompressor().stream_reader(zstd_frame(None, 5 * MIB))
    assert unclaimed.read() == bytes(5 * MIB)
    assert len(zstd_frame(None, 1024 * MIB)) < 33_000


BOMBS = {
    "claims 1 GiB": zstd_frame(1024 * MIB, 1024 * MIB),
    "claims nothing": zstd_frame(None, 1024 * MIB),
    "claims what is expected": zstd_frame(RAW, 1024 * MIB),
    "claims 4 GiB less a byte, holds nothing": zstd_frame(2**32 - 1, 0),
    "a window of 1 GiB, unclaimed": zstd_frame(None, 1024 * MIB, window_log=30),
    "a window of 2 TiB": zstd_frame(RAW, 1024 * MIB, window_log=41),
    "two frames, the second one 1 GiB": zstd_frame(RAW, RAW) + zstd_frame(1024 * MIB, 1024 * MIB),
    "a frame to skip, then 1 GiB": struct.pack("<II", 0x184D2A50, 4) + b"skip" + zstd_frame(None, 1024 * MIB),
}
IMPORTS = """
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.codec import CodecError, decode, encode
layout = Layout.model_validate_json({layout!r})
decode(encode(Adapter.zeros(layout), "int8"), layout, "int8")
"""


def test_a_bomb_of_32_kilobytes_is_refused_within_16_megabytes(run_confined: RunConfined) -> None:
    wide = Layout(lora=LoraConfig(), tensors=(("x", (2, 50_000)),))  # so that 32 kB are a possible body
    assert max(map(len, BOMBS.values())) < largest_body(wide, "int8")
    raw = 8 + wide.size
    expected = {name: bomb.replace(struct.pack("<I", RAW), struct.pack("<I", raw), 1) for name, bomb in BOMBS.items()}
    code = f"""
for name, bomb in {expected!r}.items():
    try:
        decode(bomb, layout, "int8")
    except CodecError:
        print("refused:", name)
"""
    output = run_confined(IMPORTS.format(layout=wide.model_dump_json()), code, 16 * MIB)
    assert output.splitlines() == [f"refused: {name}" for name in BOMBS]


def test_a_huge_window_around_an_honest_body_takes_no_more_than_the_body(run_confined: RunConfined) -> None:
    """Whether zstd takes such a frame is its choice; the memory for the window must not follow the claim."""
    frames = [zstd_frame(RAW, RAW, window_log=window_log) for window_log in (10, 17, 27, 30, 41)]
    code = f"""
for frame in {frames!r}:
    try:
        print(decode(frame, layout, "int8") == Adapter.zeros(layout))
    except CodecError:
        print("refused")
"""
    output = run_confined(IMPORTS.format(layout=LAYOUT.model_dump_json()), code, 16 * MIB).splitlines()
    assert output[:2] == ["True", "True"]
    assert set(output) == {"True", "refused"}


@ALL
@pytest.mark.parametrize("kind", ["honest", "zeros", "noise", "too long"])
def test_decoding_takes_at_most_twelve_bytes_for_each_parameter(codec: CodecId, kind: str) -> None:
    layout = smollm2()
    random = np.random.default_rng(0)
    largest = largest_body(layout, codec)
    body = {
        "honest": lambda: encode(Adapter(layout, random.standard_normal(layout.size).astype(np.float32)), codec),
        "zeros": lambda: bytes(largest),
        "noise": lambda: random.bytes(largest),
        "too long": lambda: bytes(10 * largest),
    }[kind]()
    tracemalloc.start()
    try:
        decode(body, layout, codec)
    except CodecError:
        assert kind != "honest"
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= 12 * layout.size + 64 * 1024
