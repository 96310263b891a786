"""From the head pointer to a verified version in hand: which version to fetch, and whether to believe what comes. Pure.

Only the pointer is trusted to say which version counts. (epoch, version) of what is held never falls.
"""

from dataclasses import replace

from edge_node.backoff import wait_s
from edge_node.state import (
    EdgeState,
    Effects,
    EndFetch,
    Fetch,
    FetchVersion,
    GlobalAdapter,
    KeepVersion,
    Note,
    RememberMark,
    Warn,
)
from schemas.chunks import CorruptChunk, verify
from schemas.codec import CodecError, decode, largest_body
from schemas.messages import Body, GlobalManifest, GlobalPointer, InvalidMessage, split_body

ASK_AGAIN_S = 20.0  # for a version of which something stays away; doubles with every attempt
UNSUBSCRIBED_S = 1.0  # before asking again
PATIENCE_S = 5.0  # how long a version on its way holds back training on the one before


def on_head(state: EdgeState, at: float, payload: bytes) -> tuple[EdgeState, Effects]:
    """Follow the head, unless it points behind what was held before or is on its way."""
    pointer = GlobalPointer.from_bytes(payload)
    mark, held, fetch = (pointer.epoch, pointer.version), state.held, state.fetch
    if mark < state.memory.mark:
        return state, (Warn(_fell_back(mark, state)),)
    # a fetch that had to ask again may follow a false pointer, and must not keep us from the true one
    if fetch is not None and mark < (fetch.pointer.epoch, fetch.pointer.version) and fetch.attempts == 1:
        return state, ()
    if held is None or not same_version(pointer, held.pointer):
        if held is not None and mark == (held.pointer.epoch, held.pointer.version):
            return state, (Warn(f"ignored a second, different version {pointer.version}: {pointer.digest[:12]}"),)
        state = replace(state, head=pointer)
        # a signed pointer is true, so none below it is taken, even if this version never comes whole
        return _raise_mark(state, mark) if state.trust is not None else (state, ())
    state = replace(state, head=pointer, held=replace(held, pointer=pointer), newer_until=at)
    return _raise_mark(state, mark)


def on_manifest(state: EdgeState, at: float, version: int, payload: bytes) -> tuple[EdgeState, Effects]:
    """Learn what the version on its way should be; its body may come with it."""
    fetch = state.fetch
    if fetch is None or fetch.pointer.version != version:
        return state, ()  # of a version that we no longer fetch
    head, inline = split_body(payload)
    manifest = GlobalManifest.from_bytes(head)
    check_manifest(manifest, manifest.body, fetch.pointer, state)
    if not manifest.body.chunks:
        verify(inline, manifest.body)
        return _hold(state, at, inline)
    assembly = fetch.assembly.with_manifest(manifest.body)
    return _hold_if_complete(replace(state, fetch=replace(fetch, assembly=assembly)), at)


def on_chunk(state: EdgeState, at: float, version: int, index: int, chunk: bytes) -> tuple[EdgeState, Effects]:
    """Add one piece; before the manifest has come, no more than the pointer announced is kept."""
    fetch = state.fetch
    if fetch is None or fetch.pointer.version != version:
        return state, ()
    return _hold_if_complete(replace(state, fetch=with_chunk(fetch, index, chunk)), at)


def with_chunk(fetch: Fetch, index: int, chunk: bytes) -> Fetch:
    """The fetch with one more piece; CorruptChunk for a piece, or for more bytes, than the pointer announced."""
    held = fetch.assembly.held - len(fetch.assembly.parts.get(index, b""))
    if index >= fetch.pointer.chunks or held + len(chunk) > fetch.pointer.size:
        raise CorruptChunk(
            f"chunk {index} of {len(chunk)} bytes is more than the pointer to version {fetch.pointer.version} announced"
        )
    return replace(fetch, assembly=fetch.assembly.with_chunk(index, chunk))


def pursue(state: EdgeState, at: float) -> tuple[EdgeState, Effects]:
    """Fetch the version that the head names, in place of any other; ask again for one that stays away."""
    wanted, fetch = _wanted(state), state.fetch
    if fetch is not None and wanted is not None and same_version(wanted, fetch.pointer):
        fetch = replace(fetch, pointer=wanted)
        return _ask_again(state, fetch, at) if at >= fetch.again_at else (replace(state, fetch=fetch), ())
    ended: Effects = (EndFetch(fetch.pointer.version),) if fetch is not None else ()
    state, begun = _begin(state, wanted, at) if wanted is not None else (replace(state, fetch=None), ())
    return state, ended + begun


def next_due(state: EdgeState) -> float | None:
    """When to ask again for the version on its way."""
    return state.fetch.again_at if state.fetch is not None and state.connected else None


def _wanted(state: EdgeState) -> GlobalPointer | None:
    if state.head is None or state.layout is None:
        return None
    return None if state.held is not None and same_version(state.head, state.held.pointer) else state.head


def _begin(state: EdgeState, wanted: GlobalPointer, at: float) -> tuple[EdgeState, Effects]:
    largest = largest_body(state.layout, "safetensors") if state.layout is not None else 0
    if wanted.size > largest:
        text = f"refused version {wanted.version}: {wanted.size} bytes are more than the {largest} it can need"
        return replace(state, head=None, fetch=None), (Warn(text),)
    fetch = Fetch(wanted, again_at=at + wait_s(wanted.digest, 1, ASK_AGAIN_S))
    return replace(state, fetch=fetch, newer_until=at + PATIENCE_S), (FetchVersion(wanted.version),)


def _ask_again(state: EdgeState, fetch: Fetch, at: float) -> tuple[EdgeState, Effects]:
    """Unsubscribe, and after a pause subscribe: some brokers send what is retained only to a new subscription."""
    version = fetch.pointer.version
    if not state.connected:
        return state, ()
    if fetch.subscribed:
        fetch = replace(fetch, subscribed=False, attempts=fetch.attempts + 1, again_at=at + UNSUBSCRIBED_S)
        text = f"version {version} is not complete: asking the broker for it again"
        return replace(state, fetch=fetch), (EndFetch(version), Note(text))
    again_at = at + wait_s(fetch.pointer.digest, fetch.attempts, ASK_AGAIN_S)
    return replace(state, fetch=replace(fetch, subscribed=True, again_at=again_at)), (FetchVersion(version),)


def _hold_if_complete(state: EdgeState, at: float) -> tuple[EdgeState, Effects]:
    if state.fetch is None or not state.fetch.assembly.is_complete:
        return state, ()
    try:
        body = state.fetch.assembly.join()
    except CorruptChunk as fault:
        return _refuse(state, state.fetch.pointer, fault)
    return _hold(state, at, body)


def _hold(state: EdgeState, at: float, body: bytes) -> tuple[EdgeState, Effects]:
    """Take the verified bytes of the version on its way for our own, if they are an adapter of our layout."""
    if state.fetch is None or state.layout is None:
        raise ValueError("no version is on its way")
    pointer = state.fetch.pointer
    try:
        adapter = decode(body, state.layout, "safetensors")
    except CodecError as fault:
        return _refuse(state, pointer, fault)
    state = replace(state, held=GlobalAdapter(pointer, adapter), newer_until=at)
    state, mark = _raise_mark(state, (pointer.epoch, pointer.version))
    return state, (KeepVersion(pointer, body), *mark, Note(f"version {pointer.version} held", version=pointer.version))


def _refuse(state: EdgeState, pointer: GlobalPointer, fault: ValueError) -> tuple[EdgeState, Effects]:
    """Give a version up; it is tried again only when a pointer to it is heard again."""
    return replace(state, head=None), (Warn(f"refused version {pointer.version}: {fault}", version=pointer.version),)


def _raise_mark(state: EdgeState, mark: tuple[int, int]) -> tuple[EdgeState, Effects]:
    if mark <= state.memory.mark:
        return state, ()
    return replace(state, memory=replace(state.memory, mark=mark)), (RememberMark(mark),)


def check_manifest(manifest: GlobalManifest, body: Body, pointer: GlobalPointer, state: EdgeState) -> None:
    """Raise InvalidMessage unless manifest and body are what the pointer names, and fit our base model."""
    layout = state.layout.digest if state.layout is not None else ""
    for what, said, expected in (
        ("version", manifest.version, pointer.version),
        ("digest", body.sha256, pointer.digest),
        ("size", body.size, pointer.size),
        ("number of chunks", len(body.chunks), pointer.chunks),
        ("codec", body.codec, "safetensors"),
        ("base model", manifest.base_model, state.identity.base_model),
        ("layout", manifest.layout, layout),
    ):
        if said != expected:
            raise InvalidMessage(f"the manifest of version {pointer.version} has {what} {said}, expected {expected}")


def same_version(one: GlobalPointer, other: GlobalPointer) -> bool:
    """Whether both name the same adapter."""
    # a restarted coordinator points to the same version in a new epoch
    return (one.version, one.digest) == (other.version, other.digest)


def _fell_back(mark: tuple[int, int], state: EdgeState) -> str:
    newest = state.memory.mark
    return (
        f"ignored a head at epoch {mark[0]}, version {mark[1]}: this node has seen epoch {newest[0]}, "
        f"version {newest[1]}. If the federation was started afresh, remove {state.identity.settings.data_dir}"
    )
