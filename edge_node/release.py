"""From the release pointer to an adapter that is served: which one to fetch, and whether to believe what comes. Pure.

A node that does not serve fetches nothing of it. (epoch, version) of what is served never falls: a way back to an older
version comes with a higher epoch.
"""

import math
from dataclasses import replace

from edge_node.backoff import wait_s
from edge_node.fetch import ASK_AGAIN_S, UNSUBSCRIBED_S, check_manifest, same_version, with_chunk
from edge_node.state import (
    AdapterTried,
    EdgeState,
    Effect,
    Effects,
    EndAverageFetch,
    EndFetch,
    Fetch,
    FetchAverage,
    FetchVersion,
    HeldOutLoss,
    KeepRelease,
    Note,
    RememberReleaseMark,
    ServeAdapter,
    ServedMeasured,
    Warn,
)
from schemas.chunks import CorruptChunk, verify
from schemas.codec import CodecError, decode, largest_body
from schemas.messages import GlobalManifest, GlobalPointer, InvalidMessage, Variant, split_body


def on_release(state: EdgeState, payload: bytes) -> tuple[EdgeState, Effects]:
    """Follow the release, unless it points behind what is served."""
    pointer, served = GlobalPointer.from_bytes(payload), state.served
    if _mark(pointer) < state.memory.release_mark:
        return state, (Warn(_fell_back(pointer, state.memory.release_mark)),)
    state, effects = _follow(state, pointer, served)
    if state.trust is None or state.release != pointer or _mark(pointer) == state.memory.release_mark:
        return state, effects
    memory = replace(state.memory, release_mark=_mark(pointer))
    return replace(state, memory=memory), (*effects, RememberReleaseMark(_mark(pointer)))


def _follow(state: EdgeState, pointer: GlobalPointer, served: GlobalPointer | None) -> tuple[EdgeState, Effects]:
    if served is not None and same_version(pointer, served):
        return replace(state, release=pointer, served=_newer(pointer, served)), ()
    newest = max((_mark(one) for one in (served, state.refused) if one is not None), default=(0, 0))
    if _mark(pointer) < newest:
        return state, (Warn(_fell_back(pointer, newest)),)
    if served is not None and (_mark(pointer), pointer.variant) == (_mark(served), served.variant):
        return state, (Warn(f"ignored a second, different release of version {pointer.version}"),)
    return replace(state, release=pointer), ()


def on_manifest(state: EdgeState, version: int, payload: bytes) -> tuple[EdgeState, Effects]:
    """Learn what the release on its way should be; its body may come with it."""
    fetch = state.release_fetch
    if fetch is None or fetch.pointer.version != version:
        return state, ()
    head, inline = split_body(payload)
    manifest = GlobalManifest.from_bytes(head)
    body = manifest.average if fetch.pointer.variant == "average" else manifest.body
    if body is None:
        raise InvalidMessage(f"the manifest of version {version} has no average, which is to be served")
    check_manifest(manifest, body, fetch.pointer, state)
    if not body.chunks:
        verify(inline, body)
        return _take_up(state, fetch.pointer, inline)
    return _take_up_if_complete(state, replace(fetch, assembly=fetch.assembly.with_manifest(body)))


def on_chunk(state: EdgeState, version: int, variant: Variant, index: int, chunk: bytes) -> tuple[EdgeState, Effects]:
    """Add one piece of the version's head or average."""
    fetch = state.release_fetch
    if fetch is None or (fetch.pointer.version, fetch.pointer.variant) != (version, variant):
        return state, ()
    return _take_up_if_complete(state, with_chunk(fetch, index, chunk))


def pursue(state: EdgeState, at: float) -> tuple[EdgeState, Effects]:
    """Get the adapter that the release names, in place of any other; ask again for one that stays away."""
    wanted, fetch = _wanted(state), state.release_fetch
    if wanted is not None and state.held is not None and same_version(wanted, state.held.pointer):
        state, taken = _take_up(state, wanted, state.held.adapter.to_safetensors())
        return replace(state, release_fetch=None), (*_ended(state, fetch), *taken)
    if fetch is not None and wanted is not None and same_version(wanted, fetch.pointer):
        fetch = replace(fetch, pointer=wanted)
        return _ask_again(state, fetch, at) if at >= fetch.again_at else (replace(state, release_fetch=fetch), ())
    ended = _ended(state, fetch)
    state, begun = _begin(replace(state, release_fetch=None), wanted, at)
    return state, ended + begun


def on_tried(state: EdgeState, event: AdapterTried) -> tuple[EdgeState, Effects]:
    """Keep on disk what answers well; say what is served where it does not."""
    pointer, proven = event.pointer, state.proven
    if event.fault is None:
        on_disk = proven is not None and same_version(pointer, proven)
        keep = () if on_disk else (KeepRelease(pointer, event.adapter.to_safetensors()),)
        return replace(state, proven=pointer), keep
    warning = Warn(f"version {pointer.version} is not served: {event.fault}", version=pointer.version)
    if state.served is None or not same_version(pointer, state.served):  # another has taken its place by now
        return state, (warning,)
    back = None if proven is None or same_version(pointer, proven) else proven
    return replace(state, served=back, proven=back, refused=pointer), (warning,)


def on_measured(state: EdgeState, event: ServedMeasured) -> EdgeState:
    """Note how well what is served answers what this node never trains on."""
    if state.served is None or not same_version(event.pointer, state.served) or not 0 <= event.loss < math.inf:
        return state
    return replace(state, served_held_out=HeldOutLoss(event.pointer.version, event.loss, event.examples))


def next_due(state: EdgeState) -> float | None:
    """When to ask again for the release on its way."""
    return state.release_fetch.again_at if state.release_fetch is not None and state.connected else None


def _wanted(state: EdgeState) -> GlobalPointer | None:
    wanted = state.release
    if wanted is None or state.layout is None or not state.identity.settings.serving.is_on:
        return None
    known = (state.served, state.refused)
    return None if any(one is not None and same_version(wanted, one) for one in known) else wanted


def _begin(state: EdgeState, wanted: GlobalPointer | None, at: float) -> tuple[EdgeState, Effects]:
    if wanted is None or state.layout is None:
        return state, ()
    if state.fetch is not None and same_version(wanted, state.fetch.pointer):
        return state, ()  # it is on its way to us as the head
    if wanted.size > (largest := largest_body(state.layout, "safetensors")):
        text = f"refused to serve version {wanted.version}: {wanted.size} bytes are more than the {largest} it can need"
        return replace(state, release=None), (Warn(text),)
    fetch = Fetch(wanted, again_at=at + wait_s(wanted.digest, 1, ASK_AGAIN_S))
    return replace(state, release_fetch=fetch), (_subscribe(wanted),)


def _ask_again(state: EdgeState, fetch: Fetch, at: float) -> tuple[EdgeState, Effects]:
    """Unsubscribe, and after a pause subscribe: some brokers send what is retained only to a new subscription."""
    if not state.connected:
        return state, ()
    if fetch.subscribed:
        ended = _ended(state, fetch)
        fetch = replace(fetch, subscribed=False, attempts=fetch.attempts + 1, again_at=at + UNSUBSCRIBED_S)
        text = f"version {fetch.pointer.version}, to be served, is not complete: asking the broker for it again"
        return replace(state, release_fetch=fetch), (*ended, Note(text))
    again_at = at + wait_s(fetch.pointer.digest, fetch.attempts, ASK_AGAIN_S)
    fetch = replace(fetch, subscribed=True, again_at=again_at)
    return replace(state, release_fetch=fetch), (_subscribe(fetch.pointer),)


def _take_up_if_complete(state: EdgeState, fetch: Fetch) -> tuple[EdgeState, Effects]:
    if not fetch.assembly.is_complete:
        return replace(state, release_fetch=fetch), ()
    try:
        return _take_up(state, fetch.pointer, fetch.assembly.join())
    except CorruptChunk as fault:
        return _refuse(state, fetch.pointer, fault)


def _take_up(state: EdgeState, pointer: GlobalPointer, body: bytes) -> tuple[EdgeState, Effects]:
    """Serve the verified bytes of the release, if they are an adapter of our layout."""
    if state.layout is None:
        raise ValueError("the layout is not known yet")
    try:
        adapter = decode(body, state.layout, "safetensors")
    except CodecError as fault:
        return _refuse(state, pointer, fault)
    # the fetch ends when pursue finds that nothing more is wanted. It goes to disk when it is proven: until then a node
    # that dies has the one before there, and this one from the broker again
    return replace(state, served=pointer), (ServeAdapter(pointer, adapter),)


def _refuse(state: EdgeState, pointer: GlobalPointer, fault: ValueError) -> tuple[EdgeState, Effects]:
    """Give a release up; it is tried again only when a pointer to it is heard again."""
    return replace(state, release=None), (
        Warn(f"refused to serve version {pointer.version}: {fault}", version=pointer.version),
    )


def _subscribe(pointer: GlobalPointer) -> Effect:
    return FetchAverage(pointer.version) if pointer.variant == "average" else FetchVersion(pointer.version)


def _ended(state: EdgeState, fetch: Fetch | None) -> Effects:
    """Unsubscribe from what a fetch was subscribed to, but for what the head's fetch still waits for."""
    if fetch is None or (state.fetch is not None and state.fetch.pointer.version == fetch.pointer.version):
        return ()
    version = fetch.pointer.version
    return (EndAverageFetch(version) if fetch.pointer.variant == "average" else EndFetch(version),)


def _fell_back(pointer: GlobalPointer, mark: tuple[int, int]) -> str:
    return (
        f"ignored a release of epoch {pointer.epoch}, version {pointer.version}: this node has epoch {mark[0]}, "
        f"version {mark[1]}"
    )


def _mark(pointer: GlobalPointer) -> tuple[int, int]:
    return pointer.epoch, pointer.version


def _newer(one: GlobalPointer, other: GlobalPointer) -> GlobalPointer:
    return max(one, other, key=_mark)
