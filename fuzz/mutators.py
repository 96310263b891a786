"""Changes that keep a format whole, so that what is tried gets behind the first check: JSON, zstd frames, lines."""

import json
import random
import struct
from collections.abc import Iterator
from typing import Any

import zstandard

from fuzz.target import Mutate

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", "a", "\ud800", "\x00", "\x1b[2J", "+", "#", "a/b", "0" * 32, "f" * 64, "x" * 600, [], {}, [[]], {"a": 1},
)  # fmt: skip
LARGEST_FRAME = 1 << 16
_LENGTH = struct.Struct("<I")
Path = tuple[str | int, ...]


def in_json(data: bytes, most: int, seed: int, mutate: Mutate) -> bytes:
    """Another value at one place of a JSON text, or one thing less or twice; what is behind its line is kept."""
    draw = random.Random(seed)
    text, line_break, rest = data.partition(b"\n")
    if draw.random() < 0.4:
        return mutate(data, most)
    if line_break and draw.random() < 0.3:
        return text + line_break + mutate(rest, max(1, most - len(text) - 1))
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return mutate(data, most)
    changed = _changed(tree, draw, mutate)
    try:
        made = json.dumps(changed, ensure_ascii=draw.random() < 0.5, separators=(",", ":"))
        return (made.encode("utf-8", "surrogatepass") + line_break + rest)[:most]
    except (ValueError, RecursionError):
        return mutate(data, most)


def in_lines(data: bytes, most: int, seed: int, mutate: Mutate) -> bytes:
    """A change in one line of several, as JSON if it is that; or lines that come twice, or not."""
    draw = random.Random(seed)
    lines = data.split(b"\n")
    index = draw.randrange(len(lines))
    match draw.randrange(4):
        case 0:
            lines.insert(index, lines[draw.randrange(len(lines))])
        case 1 if len(lines) > 1:
            del lines[index]
        case _:
            lines[index] = in_json(lines[index], most, seed + 1, mutate) if lines[index] else mutate(b" ", 64)
    return b"\n".join(lines)[:most]


def in_frame(data: bytes, most: int, seed: int, mutate: Mutate) -> bytes:
    """A change of what a zstd frame holds, mostly of the same size, in a frame that is sound."""
    if seed % 4 == 0 or (content := _content(data)) is None:
        return mutate(data, most)
    changed = mutate(content, max(1, len(content) + 8))
    if seed % 8:  # the size that is expected, or the decoder sees no more than that
        changed = changed[: len(content)].ljust(len(content), b"\0")
    return zstandard.compress(changed, 1)[:most]


def in_frames(header: int) -> Any:
    """The same for frames with their lengths before them, behind a header of so many bytes; see schemas/kltp.py."""

    def change(data: bytes, most: int, seed: int, mutate: Mutate) -> bytes:
        frames = list(_frames(data, header))
        if seed % 4 == 0 or not frames:
            return mutate(data, most)
        start, end = frames[seed % len(frames)]
        changed = in_frame(data[start:end], most, seed // 4 * 4 + 1, mutate)
        return (data[: start - _LENGTH.size] + _LENGTH.pack(len(changed)) + changed + data[end:])[:most]

    return change


def _changed(tree: Any, draw: random.Random, mutate: Mutate) -> Any:
    places = list(_places(tree))
    path, old = places[draw.randrange(len(places))]
    match draw.randrange(6):
        case 0 if isinstance(old, str):
            return _with(tree, path, mutate(old.encode("utf-8", "surrogatepass"), len(old) + 64).decode("latin-1"))
        case 1 if type(old) is int:
            return _with(tree, path, old + draw.choice((-1, 1, -(2 ** draw.randrange(66)), 2 ** draw.randrange(66))))
        case 2 if isinstance(old, list) and old:
            return _with(tree, path, [*old, *([old[0]] * draw.choice((1, 2, 600)))])
        case 3 if isinstance(old, dict) and old:
            gone = draw.choice(list(old))
            return _with(tree, path, {key: value for key, value in old.items() if key != gone})
        case 4:
            return _with(tree, path, places[draw.randrange(len(places))][1])
    return _with(tree, path, draw.choice(ODD))


def _places(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every place in a JSON tree with what is there."""
    yield path, value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _places(child, (*path, key))


def _with(tree: Any, path: Path, value: Any) -> Any:
    """The tree with one place filled otherwise."""
    if not path:
        return value
    copy: Any = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = _with(tree[path[0]], path[1:], value)
    return copy


def _content(frame: bytes) -> bytes | None:
    try:
        if not 0 < zstandard.frame_content_size(frame) <= LARGEST_FRAME:
            return None
        content: bytes = zstandard.ZstdDecompressor().decompress(frame, max_output_size=LARGEST_FRAME)
    except zstandard.ZstdError:
        return None
    return content


def _frames(data: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Where the frames are: two after the header, then one after two bytes each."""
    for number in range(64):
        at += 2 if number >= 2 else 0
        if at + _LENGTH.size > len(data):
            return
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + length > len(data):
            return
        yield at, at + length
        at += length
