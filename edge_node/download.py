"""A version on its way to us, piece by piece: what to ask the broker for, when to ask again, what has come. Pure.

Its manifest comes first, then its chunks, each on a topic of its own, and the next is asked for when the one before is
here: a link that is cut, a broker that forgets and a newer version cost what was in the midst of it. What has come goes
to disk, and is believed when all of it is there and has the digest that the pointer names. Which version is wanted, and
what becomes of it, fetch.py and release.py know.
"""

from collections.abc import Iterable
from dataclasses import replace

from edge_node.backoff import LONGEST_S, wait_s
from edge_node.effects import DropPieces, Effects, EndFetch, FetchPiece, KeepPieces, Note, VerifyArrived
from edge_node.state import EdgeState, Fetch
from schemas.adapter import Layout
from schemas.chunks import Assembly, CorruptChunk, verify
from schemas.codec import largest_body
from schemas.messages import Body, GlobalManifest, GlobalPointer, InvalidMessage, split_body
from schemas.topics import Address, GlobalAverageChunk, GlobalChunk, GlobalManifestOf

ASK_AGAIN_S = 20.0  # for a piece that stays away; doubles with every attempt
UNSUBSCRIBED_S = 1.0  # before asking again


def begin(wanted: GlobalPointer, at: float) -> Fetch:
    """Nothing of it is here."""
    return Fetch(wanted, asked_at=at, again_at=at + wait_s(wanted.digest, 1, ASK_AGAIN_S), patience_s=ASK_AGAIN_S)


def too_large(state: EdgeState, wanted: GlobalPointer) -> str | None:
    """Why a version is not even begun with."""
    largest = largest_body(_layout(state), "safetensors")
    return f"{wanted.size} bytes are more than the {largest} it can need" if wanted.size > largest else None


def with_manifest(state: EdgeState, fetch: Fetch, at: float, payload: bytes) -> tuple[Fetch, Effects]:
    """The fetch that knows what its body should be; InvalidMessage, CorruptChunk for a manifest that is not true."""
    head, inline = split_body(payload)
    manifest, pointer = GlobalManifest.from_bytes(head), fetch.pointer
    body = manifest.average if pointer.variant == "average" else manifest.body
    if body is None:
        raise InvalidMessage(f"the manifest of version {pointer.version} has no average, which is to be served")
    _check_manifest(manifest, body, pointer, state)
    if not body.chunks:
        keep = KeepPieces(pointer, 0, (verify(inline, body),))
        return replace(fetch, assembly=Assembly(body)), (keep, VerifyArrived(pointer, _layout(state)))
    return _to_disk(state, _with(fetch, at, fetch.assembly.with_manifest(body)))


def with_chunk(state: EdgeState, fetch: Fetch, at: float, index: int, chunk: bytes) -> tuple[Fetch, Effects]:
    """The fetch with one more piece; CorruptChunk for a piece, or for more bytes, than the pointer announced."""
    held = fetch.assembly.held - fetch.assembly.size_of(index)
    if index >= fetch.pointer.chunks or held + len(chunk) > fetch.pointer.size:
        raise CorruptChunk(
            f"chunk {index} of {len(chunk)} bytes is more than the pointer to version {fetch.pointer.version} announced"
        )
    return _to_disk(state, _with(fetch, at, fetch.assembly.with_chunk(index, chunk)))


def asked_again(fetch: Fetch, at: float, name: str) -> tuple[Fetch, Effects]:
    """When its time has come, the fetch without its subscription, and after a pause with it.

    Some brokers send what is retained only to a new subscription.
    """
    if at < fetch.again_at:
        return fetch, ()
    if not fetch.subscribed:
        again_at = at + wait_s(fetch.pointer.digest, fetch.attempts, fetch.patience_s)
        return replace(fetch, subscribed=True, again_at=again_at), ()
    fetch = replace(fetch, subscribed=False, attempts=fetch.attempts + 1, again_at=at + UNSUBSCRIBED_S)
    return fetch, (Note(f"{name} is not complete: asking the broker for the next piece again"),)


def reconnected(fetch: Fetch | None, at: float) -> Fetch | None:
    """On a new connection what was under way comes by itself, and has its time from now."""
    return fetch if fetch is None or not fetch.subscribed else _expecting(fetch, at)


def changes(before: Iterable[Fetch | None], after: Iterable[Fetch | None]) -> Effects:
    """What to subscribe to, and what no longer, for the broker to send the pieces that are wanted now.

    Of a version that is not on its way any more nothing stays on disk, but where it is held.
    """
    before, after = list(before), list(after)
    old, new = _wanted(before), _wanted(after)
    listens = {piece for _, piece in new}
    ended = dict.fromkeys(piece for _, piece in old if piece not in listens)
    begun = dict.fromkeys(piece for digest, piece in new if (digest, piece) not in old)
    return (*map(EndFetch, ended), *map(FetchPiece, begun), *map(DropPieces, _on_disk(before, after)))


def same_version(one: GlobalPointer, other: GlobalPointer) -> bool:
    """Whether both name the same adapter."""
    # a restarted coordinator points to the same version in a new epoch
    return (one.version, one.digest) == (other.version, other.digest)


def _wanted(fetches: Iterable[Fetch | None]) -> list[tuple[str, Address]]:
    """The pieces to be subscribed to, each with the digest of what it is a piece of."""
    under_way = [fetch for fetch in fetches if fetch is not None and fetch.subscribed]
    pieces = [(fetch.pointer.digest, _next_piece(fetch.pointer, fetch.assembly)) for fetch in under_way]
    return [(digest, piece) for digest, piece in pieces if piece is not None]


def _on_disk(before: Iterable[Fetch | None], after: Iterable[Fetch | None]) -> list[GlobalPointer]:
    """The versions that are not on their way any more, of which something may be on disk."""
    left = [fetch.pointer for fetch in before if fetch is not None and fetch.assembly.body is not None]
    on_their_way = [fetch.pointer for fetch in after if fetch is not None]
    return [pointer for pointer in left if not any(same_version(pointer, other) for other in on_their_way)]


def _next_piece(pointer: GlobalPointer, assembly: Assembly) -> Address | None:
    """The manifest, then the first chunk that is missing; None when all is here."""
    if assembly.body is None:
        return GlobalManifestOf(pointer.version)
    chunk = GlobalAverageChunk if pointer.variant == "average" else GlobalChunk
    return next((chunk(pointer.version, index) for index in assembly.missing), None)


def _to_disk(state: EdgeState, fetch: Fetch) -> tuple[Fetch, Effects]:
    """Let go of what has come in its turn, for it goes to disk; with the last of it, the whole is verified there."""
    offset = sum(fetch.assembly.taken)
    assembly, pieces = fetch.assembly.take_out()
    if not pieces:
        return fetch, ()
    fetch, keep = replace(fetch, assembly=assembly), KeepPieces(fetch.pointer, offset, pieces)
    return fetch, (keep, VerifyArrived(fetch.pointer, _layout(state))) if assembly.is_complete else (keep,)


def _with(fetch: Fetch, at: float, assembly: Assembly) -> Fetch:
    """With the piece that was waited for, the next one's time begins."""
    fetch, before = replace(fetch, assembly=assembly), fetch.assembly
    if _next_piece(fetch.pointer, assembly) == _next_piece(fetch.pointer, before):
        return fetch
    # on a link so slow that a piece takes longer than our patience, asking again would have each of them sent twice
    patience_s = min(max(ASK_AGAIN_S, 2 * (at - fetch.asked_at)), LONGEST_S)
    return _expecting(replace(fetch, patience_s=patience_s, subscribed=True, attempts=1), at)


def _expecting(fetch: Fetch, at: float) -> Fetch:
    """Whatever is to come, it has all its time from now."""
    return replace(fetch, asked_at=at, again_at=at + wait_s(fetch.pointer.digest, fetch.attempts, fetch.patience_s))


def _check_manifest(manifest: GlobalManifest, body: Body, pointer: GlobalPointer, state: EdgeState) -> None:
    """Raise InvalidMessage unless manifest and body are what the pointer names, and fit our base model."""
    for what, said, expected in (
        ("version", manifest.version, pointer.version),
        ("digest", body.sha256, pointer.digest),
        ("size", body.size, pointer.size),
        ("number of chunks", len(body.chunks), pointer.chunks),
        ("codec", body.codec, "safetensors"),
        ("base model", manifest.base_model, state.identity.base_model),
        ("layout", manifest.layout, _layout(state).digest),
    ):
        if said != expected:
            raise InvalidMessage(f"the manifest of version {pointer.version} has {what} {said}, expected {expected}")


def _layout(state: EdgeState) -> Layout:
    if state.layout is None:
        raise ValueError("nothing is fetched before the layout is known")
    return state.layout
