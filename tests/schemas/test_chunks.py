"""Bodies in pieces: any order, any repetition, any lie, and never more bytes held than the manifest claims."""

import hashlib
from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from schemas.chunks import Assembly, CorruptChunk, describe, split, verify
from schemas.messages import MAX_BODY_SIZE, MAX_CHUNK_SIZE, MAX_CHUNKS, Body

BODIES = st.binary(min_size=1, max_size=60)
CHUNK_SIZES = st.integers(1, 20)
RANDOM = st.randoms(use_true_random=False)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def chunked(body: bytes, size: int) -> Body:
    return describe(body, "fp32", chunk_size=size, inline=0)


# --- splitting and describing ---


@given(BODIES, CHUNK_SIZES)
def test_the_chunks_are_the_body_in_order(body: bytes, size: int) -> None:
    chunks = split(body, size)
    assert b"".join(chunks) == body
    assert all(len(chunk) == size for chunk in chunks[:-1])
    manifest = chunked(body, size)
    assert (manifest.size, manifest.sha256) == (len(body), sha256(body))
    assert manifest.chunks == tuple(map(sha256, chunks))


def test_a_body_goes_inline_up_to_one_chunk_and_in_chunks_from_there_on() -> None:
    assert describe(bytes(MAX_CHUNK_SIZE), "fp32").chunks == ()
    assert len(describe(bytes(MAX_CHUNK_SIZE + 1), "fp32").chunks) == 2
    assert len(describe(bytes(10), "fp32", inline=9).chunks) == 1


@pytest.mark.parametrize("size", [0, -1, MAX_CHUNK_SIZE + 1])
def test_a_chunk_size_that_no_receiver_would_take_is_a_bad_call(size: int) -> None:
    with pytest.raises(ValueError, match="chunk_size must be"):
        split(b"body", size)


def test_an_empty_body_is_a_bad_call() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        describe(b"", "fp32")


@given(BODIES, BODIES)
def test_only_the_very_bytes_verify(body: bytes, other: bytes) -> None:
    manifest = describe(body, "fp32")
    assert verify(body, manifest) == body
    if other != body:
        with pytest.raises(CorruptChunk, match="is not the"):
            verify(other, manifest)


# --- putting together ---


@given(BODIES, CHUNK_SIZES, RANDOM)
def test_chunks_and_manifest_come_together_in_any_order_and_any_number(body: bytes, size: int, random: Random) -> None:
    manifest, chunks = chunked(body, size), split(body, size)
    arrivals: list[int | None] = [None, *range(len(chunks)), *(random.randrange(len(chunks)) for _ in range(5))]
    random.shuffle(arrivals)
    assembly = Assembly()
    for index in arrivals:
        assembly = assembly.with_manifest(manifest) if index is None else assembly.with_chunk(index, chunks[index])
    assert assembly.is_complete
    assert assembly.missing == ()
    assert assembly.held == len(body)
    assert assembly.join() == body


@given(BODIES, CHUNK_SIZES, RANDOM, st.data())
def test_false_chunks_cost_a_repeat_and_never_a_false_body(
    body: bytes, size: int, random: Random, data: st.DataObject
) -> None:
    manifest, chunks = chunked(body, size), split(body, size)
    false = data.draw(st.lists(st.tuples(st.integers(-2, len(chunks) + 2), st.binary(max_size=25)), max_size=8))
    arrivals: list[tuple[int, bytes] | None] = [None, *enumerate(chunks), *false]
    random.shuffle(arrivals)
    assembly = Assembly()
    for arrival in arrivals:
        try:
            assembly = assembly.with_manifest(manifest) if arrival is None else assembly.with_chunk(*arrival)
        except CorruptChunk:
            assert arrival in false
    for index in assembly.missing:  # what a receipt would ask for again
        assembly = assembly.with_chunk(index, chunks[index])
    assert assembly.join() == body


@given(BODIES, CHUNK_SIZES, RANDOM)
def test_what_is_taken_out_as_it_comes_is_the_body_in_its_order(body: bytes, size: int, random: Random) -> None:
    manifest, chunks = chunked(body, size), split(body, size)
    arrivals: list[int | None] = [None, *range(len(chunks)), *(random.randrange(len(chunks)) for _ in range(5))]
    random.shuffle(arrivals)
    assembly, taken = Assembly(), list[bytes]()
    for index in arrivals:
        assembly = assembly.with_manifest(manifest) if index is None else assembly.with_chunk(index, chunks[index])
        assembly, pieces = assembly.take_out()
        taken += pieces
        assert assembly.body is None or len(taken) not in assembly.parts  # the next one is never here
        assert assembly.held == sum(map(len, taken)) + sum(map(len, assembly.parts.values()))
    assert assembly.is_complete and assembly.parts == {}
    assert b"".join(taken) == body
    with pytest.raises(ValueError, match="not here any more"):
        assembly.join()


def test_before_the_manifest_nothing_can_be_taken_out() -> None:
    assembly = Assembly().with_chunk(0, b"ab")
    assert assembly.take_out() == (assembly, ())


def test_for_another_manifest_what_was_taken_out_is_missing_again() -> None:
    assembly, taken = Assembly().with_manifest(chunked(b"abcd", 2)).with_chunk(0, b"ab").take_out()
    assert taken == (b"ab",)
    assert assembly.with_manifest(chunked(b"abcd", 2)) == assembly
    assert assembly.with_manifest(chunked(b"abef", 2)).missing == (0, 1)


def test_a_false_chunk_in_the_place_of_one_that_was_taken_out_is_refused() -> None:
    assembly, _ = Assembly().with_manifest(chunked(b"abcd", 2)).with_chunk(0, b"ab").take_out()
    assert assembly.with_chunk(0, b"ab") == assembly
    with pytest.raises(CorruptChunk, match="not the bytes"):
        assembly.with_chunk(0, b"xy")


def test_nothing_is_missing_before_the_manifest_says_what_there_should_be() -> None:
    assembly = Assembly().with_chunk(7, b"early")
    assert assembly.missing == ()
    assert not assembly.is_complete
    with pytest.raises(ValueError, match="not complete"):
        assembly.join()


def test_an_assembly_is_a_value() -> None:
    manifest, chunks = chunked(b"abcd", 2), split(b"abcd", 2)
    before = Assembly().with_manifest(manifest)
    after = before.with_chunk(0, chunks[0])
    assert (before.missing, after.missing) == ((0, 1), (1,))
    assert after.with_chunk(0, chunks[0]) == after


def test_pieces_that_are_true_one_by_one_can_still_be_no_body() -> None:
    lie = Body(codec="fp32", sha256="0" * 64, size=4, chunks=(sha256(b"ab"), sha256(b"cd")))
    assembly = Assembly().with_manifest(lie).with_chunk(0, b"ab").with_chunk(1, b"cd")
    assert assembly.is_complete
    with pytest.raises(CorruptChunk, match="not the 4 bytes"):
        assembly.join()


def test_pieces_that_are_less_than_the_body_can_be_complete_and_are_refused() -> None:
    lie = Body(codec="fp32", sha256=sha256(b"abcd"), size=9, chunks=(sha256(b"ab"), sha256(b"cd")))
    assembly = Assembly().with_manifest(lie).with_chunk(0, b"ab").with_chunk(1, b"cd")
    with pytest.raises(CorruptChunk, match="4 bytes is not the 9 bytes"):
        assembly.join()


# --- bounds ---


@pytest.mark.parametrize(
    ("index", "chunk"),
    [
        (0, b""),
        (0, bytes(MAX_CHUNK_SIZE + 1)),
        (-1, b"x"),
        (MAX_CHUNKS, b"x"),
        (10**400, b"x"),
    ],
)
def test_a_chunk_that_no_manifest_could_name_is_refused_before_any_manifest(index: int, chunk: bytes) -> None:
    with pytest.raises(CorruptChunk, match="out of bounds"):
        Assembly().with_chunk(index, chunk)


def test_a_chunk_that_this_manifest_does_not_name_is_refused() -> None:
    assembly = Assembly().with_manifest(chunked(b"abcd", 2))
    with pytest.raises(CorruptChunk, match="does not exist"):
        assembly.with_chunk(2, b"ef")
    with pytest.raises(CorruptChunk, match="not the bytes"):
        assembly.with_chunk(1, b"ab")


def test_an_inline_body_has_no_chunks() -> None:
    inline = describe(b"abcd", "fp32")
    assert Assembly().with_chunk(0, b"abcd").with_manifest(inline).held == 0
    with pytest.raises(CorruptChunk, match="does not exist"):
        Assembly().with_manifest(inline).with_chunk(0, b"abcd")


BIG = bytes(MAX_CHUNK_SIZE)
FALSE_CLAIM = Body(codec="fp32", sha256="0" * 64, size=1000, chunks=(sha256(BIG),) * 1000)
"""Claims 1 kB, and names a thousand times the same 120 KiB: each chunk is true, and together they are 117 MiB."""


def test_a_manifest_cannot_make_an_assembly_hold_more_than_it_claims() -> None:
    assembly = Assembly().with_manifest(FALSE_CLAIM)
    for index in range(1000):
        with pytest.raises(CorruptChunk, match="more than the 1000 bytes"):
            assembly = assembly.with_chunk(index, BIG)
    assert assembly.held == 0


def test_a_manifest_that_comes_late_frees_what_is_more_than_it_claims() -> None:
    assembly = Assembly()
    for index in range(20):
        assembly = assembly.with_chunk(index, BIG)
    assert assembly.with_manifest(FALSE_CLAIM).held == 0


ARRIVALS = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 5), st.sampled_from([b"ab", b"cdef", b"abcdefgh"])),
        st.builds(
            lambda size, chunks: Body(codec="fp32", sha256="0" * 64, size=max(size, len(chunks)), chunks=tuple(chunks)),
            st.integers(1, 20),
            st.lists(st.sampled_from([sha256(b"ab"), sha256(b"cdef"), sha256(b"abcdefgh")]), max_size=6),
        ),
    ),
    max_size=15,
)


@given(ARRIVALS, st.data())
def test_whatever_comes_in_whatever_order_a_known_claim_is_never_exceeded(
    arrivals: list[tuple[int, bytes] | Body], data: st.DataObject
) -> None:
    assembly = Assembly()
    for arrival in arrivals:
        try:
            assembly = assembly.with_manifest(arrival) if isinstance(arrival, Body) else assembly.with_chunk(*arrival)
        except CorruptChunk:
            continue
        if data.draw(st.booleans()):
            assembly, _ = assembly.take_out()
        assert assembly.held == sum(assembly.taken) + sum(map(len, assembly.parts.values()))
        assert assembly.body is None or assembly.held <= assembly.body.size


@pytest.mark.parametrize(
    ("size", "chunks"),
    [(0, 0), (-1, 0), (MAX_BODY_SIZE + 1, MAX_CHUNKS), (1, 2), (MAX_CHUNK_SIZE + 1, 0), (MAX_CHUNK_SIZE + 1, 1)],
)
def test_a_claim_that_cannot_be_true_is_no_manifest(size: int, chunks: int) -> None:
    with pytest.raises(ValueError, match="Body"):
        Body(codec="fp32", sha256="0" * 64, size=size, chunks=("0" * 64,) * chunks)
