"""Targets for adapters and deltas as bytes: every codec, its frames, PEFT's adapter files, and the model's answers."""

import zlib
from collections.abc import Callable
from functools import cache

import numpy as np

from coordinator.questions import answer_from_bytes, answer_to_bytes, work_of
from fuzz.mutators import in_frame, in_frames, in_json
from fuzz.target import Target, hold, sayable
from schemas.adapter import Adapter, InvalidAdapter, Layout, LoraConfig
from schemas.codec import CodecError, decode, encode, largest_body
from schemas.frames import LARGEST_SYMBOL, decompress, pack, packed_size, unpack
from schemas.messages import CodecId, InvalidMessage

ENCODED_AGAIN = 16  # of so many inputs of kltp one: its encoder takes a hundred times as long as its decoder


@cache
def layout() -> Layout:
    """Two modules at rank 2: 44 numbers."""
    shapes = {"up": ((2, 5), (7, 2)), "v": ((2, 4), (6, 2))}
    tensors = [
        (f"m.{name}.lora_{factor}.weight", shape)
        for name in shapes
        for factor, shape in zip("AB", shapes[name], strict=True)
    ]
    return Layout(lora=LoraConfig(rank=2, alpha=4, target_modules=("up", "v")), tensors=tuple(sorted(tensors)))


def checker(codec: CodecId) -> Callable[[bytes], None]:
    """A body is refused in words, or read as finite numbers of the layout that can be sent and read again."""

    def check(data: bytes) -> None:
        try:
            adapter = decode(data, layout(), codec)
        except CodecError as refusal:
            sayable(refusal)
            return
        hold(adapter.is_finite and adapter.layout == layout(), "what was decoded cannot be used")
        if codec == "kltp" and zlib.crc32(data) % ENCODED_AGAIN:
            return
        again = encode(adapter, codec)
        hold(len(again) <= largest_body(layout(), codec), "a body is larger than the largest")
        read = decode(again, layout(), codec)
        if codec in ("fp32", "fp16", "safetensors"):
            hold(read == adapter, "a codec that loses nothing more has lost something")
        elif codec == "int8":
            hold(_is_near(adapter, read), "int8 is further off than half a step")

    return check


def _is_near(adapter: Adapter, read: Adapter) -> bool:
    pairs = zip(adapter.tensors().values(), read.tensors().values(), strict=True)
    return all(
        np.abs(one.astype(np.float64) - other).max() <= np.abs(one).max() / 127 * 0.51 + 1e-37 for one, other in pairs
    )


def check_adapter_file(data: bytes) -> None:
    """A file is refused in words, or is an adapter whose own bytes are read as the same."""
    try:
        adapter = Adapter.from_safetensors(layout(), data)
    except InvalidAdapter as refusal:
        sayable(refusal)
        return
    hold(Adapter.from_safetensors(layout(), adapter.to_safetensors()) == adapter, "it is read again as another")


def check_frame(data: bytes) -> None:
    """A frame holds just so many bytes, or is refused; symbols come out of bytes as they went in."""
    size = data[0] if data else 0
    try:
        hold(len(decompress(data[1:], size)) == size, "another size was decompressed than asked for")
    except CodecError as refusal:
        sayable(refusal)


def check_symbols(data: bytes) -> None:
    """Packed symbols are refused, or come out as what packs to the same bytes."""
    if len(data) < 3:
        return
    largest, count = 1 + int.from_bytes(data[:2], "little") % LARGEST_SYMBOL, data[2]
    raw = data[3:].ljust(packed_size(count, largest), b"\0")[: packed_size(count, largest)]
    try:
        symbols = unpack(raw, count, largest)
    except CodecError as refusal:
        sayable(refusal)
        return
    hold(len(symbols) == count and int(np.abs(symbols.astype(np.int64)).max(initial=0)) <= largest, "out of range")
    packed = pack(symbols.astype(np.int16), largest)
    hold(np.array_equal(unpack(packed, count, largest), symbols), "symbols are others after packing")


def check_answer(data: bytes) -> None:
    """What the base model's process says is refused, or read as an answer that is written and read again."""
    try:
        answer = answer_from_bytes(layout(), data)
        work_of(data)
    except (InvalidMessage, CodecError) as refusal:
        sayable(refusal)
        return
    again = answer_from_bytes(layout(), answer_to_bytes(answer))
    hold(type(again) is type(answer) and again.parts == answer.parts, "it is read again as something else")


TARGETS = (
    Target("codec-kltp", checker("kltp"), 25, in_frames(12), largest=2000),
    Target("codec-int8", checker("int8"), 30, in_frame, largest=600),
    Target("codec-fp16", checker("fp16"), 20, in_frame, largest=600),
    Target("codec-fp32", checker("fp32"), 20, largest=200),
    Target("codec-safetensors", checker("safetensors"), 10, largest=2000),
    Target("adapter-file", check_adapter_file, 20, largest=2000),
    Target("frame", check_frame, 30, largest=600),
    Target("symbols", check_symbols, 20, largest=600),
    Target("model-answer", check_answer, 10, in_json, largest=2000),
)
