"""A body in pieces: split for sending, put together in any order, verified piece by piece against its manifest."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from schemas.adapter import Adapter
from schemas.messages import MAX_CHUNK_SIZE, MAX_CHUNKS, Body, CodecId


class CorruptChunk(ValueError):
    """A chunk that cannot belong to its body: too large, out of range, or not the bytes the manifest names."""


def describe(body: bytes, codec: CodecId, chunk_size: int = MAX_CHUNK_SIZE, inline: int = MAX_CHUNK_SIZE) -> Body:
    """The manifest entry of `body`: inline up to `inline` bytes, otherwise in chunks of `chunk_size` bytes."""
    chunks = () if len(body) <= inline else tuple(map(_sha256, split(body, chunk_size)))
    return Body(codec=codec, sha256=_sha256(body), size=len(body), chunks=chunks)


def describe_adapter(adapter: Adapter) -> Body:
    """The manifest entry of an adapter as nodes fetch it: its safetensors bytes in chunks, named by its digest."""
    body = adapter.to_safetensors()
    chunks = tuple(map(_sha256, split(body)))
    return Body(codec="safetensors", sha256=adapter.digest, size=len(body), chunks=chunks)


def split(body: bytes, chunk_size: int = MAX_CHUNK_SIZE) -> tuple[bytes, ...]:
    """`body` cut into chunks of `chunk_size` bytes; the last may be shorter."""
    if not 1 <= chunk_size <= MAX_CHUNK_SIZE:
        raise ValueError(f"chunk_size must be 1 to {MAX_CHUNK_SIZE} bytes, got {chunk_size}")
    return tuple(body[start : start + chunk_size] for start in range(0, len(body), chunk_size))


@dataclass(frozen=True)
class Assembly:
    """What has arrived of one body. `body` is None until the manifest has come; chunks may come before it.

    `taken` are the sizes in bytes of its first chunks, where those are not here any more: see `take_out`.
    """

    body: Body | None = None
    parts: Mapping[int, bytes] = field(default_factory=dict)
    taken: tuple[int, ...] = ()

    @property
    def held(self) -> int:
        """Bytes that have come so far."""
        return sum(self.taken) + sum(map(len, self.parts.values()))

    @property
    def missing(self) -> tuple[int, ...]:
        """Numbers of the chunks that have not arrived; empty while the manifest is unknown."""
        expected = range(len(self.taken), len(self.body.chunks)) if self.body else range(0)
        return tuple(index for index in expected if index not in self.parts)

    @property
    def is_complete(self) -> bool:
        """Whether the manifest and every chunk are here."""
        return self.body is not None and not self.missing

    def size_of(self, index: int) -> int:
        """Bytes of one chunk; 0 while it has not arrived."""
        return self.taken[index] if index < len(self.taken) else len(self.parts.get(index, b""))

    def with_chunk(self, index: int, chunk: bytes) -> Self:
        """Add one chunk; a repeated one changes nothing, a false one raises CorruptChunk."""
        if not 0 < len(chunk) <= MAX_CHUNK_SIZE or not 0 <= index < MAX_CHUNKS:
            raise CorruptChunk(f"chunk {index} of {len(chunk)} bytes is out of bounds")
        if self.body is not None:
            if index >= len(self.body.chunks):
                raise CorruptChunk(f"chunk {index} does not exist: the manifest names {len(self.body.chunks)}")
            if _sha256(chunk) != self.body.chunks[index]:
                raise CorruptChunk(f"chunk {index} is not the bytes that the manifest names")
            if index < len(self.taken):
                return self
            if self.held - self.size_of(index) + len(chunk) > self.body.size:
                raise CorruptChunk(f"with chunk {index} the body is more than the {self.body.size} bytes it should be")
        return replace(self, parts={**self.parts, index: chunk})

    def with_manifest(self, body: Body) -> Self:
        """Learn what the body should be; chunks that turn out false are dropped, and so are missing again.

        True ones that are more bytes than the body make its size the lie: then none is kept. Of another body than what
        it should be so far, what was taken out is missing again.
        """
        if body == self.body:
            return self
        true = {
            index: chunk
            for index, chunk in self.parts.items()
            if index < len(body.chunks) and _sha256(chunk) == body.chunks[index]
        }
        return replace(self, body=body, parts=true if sum(map(len, true.values())) <= body.size else {}, taken=())

    def take_out(self) -> tuple[Self, tuple[bytes, ...]]:
        """The same without the chunks that continue what was taken out before, and those chunks, in their order.

        Each is what the manifest names; whether all of them are, only the digest of the whole body says.
        """
        start = len(self.taken)
        stop = next(iter(self.missing), len(self.body.chunks) if self.body else 0)
        pieces = tuple(self.parts[index] for index in range(start, stop))
        left = {index: chunk for index, chunk in self.parts.items() if index >= stop}
        return replace(self, parts=left, taken=self.taken + tuple(map(len, pieces))), pieces

    def join(self) -> bytes:
        """The whole body, verified; ValueError while chunks are missing, CorruptChunk if the sum is wrong."""
        if self.body is None or self.missing or self.taken:
            raise ValueError("the body is not complete yet, or not here any more")
        return verify(b"".join(self.parts[index] for index in range(len(self.body.chunks))), self.body)


def verify(body: bytes, expected: Body) -> bytes:
    """`body` itself if it is exactly what the manifest names; CorruptChunk otherwise."""
    if len(body) != expected.size or _sha256(body) != expected.sha256:
        raise CorruptChunk(f"the body of {len(body)} bytes is not the {expected.size} bytes that the manifest names")
    return body


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
