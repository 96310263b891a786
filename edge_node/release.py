"""From the release pointer to an adapter that is served: which one to fetch, and whether to believe what comes. Pure.

A node that does not serve fetches nothing of it. (epoch, version) of what is served never falls: a way back to an older
version comes with a higher epoch. One step back costs no download: what was proven before the last is on disk.
"""

import math
from dataclasses import replace

from edge_node import download
from edge_node.download import same_version
from edge_node.effects import Effects, KeepRelease, Note, RecallRelease, RememberReleaseMark, ServeAdapter, Warn
from edge_node.events import AdapterTried, ReleaseRecalled, ServedMeasured, VersionArrived
from edge_node.state import EdgeState, HeldOutLoss
from schemas.adapter import Adapter
from schemas.messages import GlobalPointer, Variant


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


def on_manifest(state: EdgeState, at: float, version: int, payload: bytes) -> tuple[EdgeState, Effects]:
    """Learn what the release on its way should be; its body may come with it."""
    fetch = state.release_fetch
    if fetch is None or fetch.pointer.version != version:
        return state, ()
    fetch, effects = download.with_manifest(state, fetch, at, payload)
    return replace(state, release_fetch=fetch), effects


def on_chunk(
    state: EdgeState, at: float, version: int, variant: Variant, index: int, chunk: bytes
) -> tuple[EdgeState, Effects]:
    """Add one piece of the version's head or average."""
    fetch = state.release_fetch
    if fetch is None or (fetch.pointer.version, fetch.pointer.variant) != (version, variant):
        return state, ()
    fetch, effects = download.with_chunk(state, fetch, at, index, chunk)
    return replace(state, release_fetch=fetch), effects


def on_arrived(state: EdgeState, event: VersionArrived) -> tuple[EdgeState, Effects]:
    """Serve the release that was on its way, if it is what it should be."""
    fetch = state.release_fetch
    if fetch is None or not same_version(event.pointer, fetch.pointer):
        return state, ()
    if event.adapter is None:
        return _refuse(state, fetch.pointer, event.fault)
    return _take_up(state, fetch.pointer, event.adapter)


def pursue(state: EdgeState, at: float) -> tuple[EdgeState, Effects]:
    """Get the adapter that the release names, in place of any other; ask again for one that stays away."""
    wanted, fetch = _wanted(state), state.release_fetch
    if wanted is None:
        return replace(state, release_fetch=None), ()
    if state.held is not None and same_version(wanted, state.held.pointer):
        return _take_up(replace(state, release_fetch=None), wanted, state.held.adapter)
    if state.earlier is not None and same_version(wanted, state.earlier):
        # asked for once: where it is damaged it comes from the broker
        return replace(state, earlier=None, release_fetch=None), (RecallRelease(wanted),)
    if fetch is None or not same_version(wanted, fetch.pointer):
        return _begin(replace(state, release_fetch=None), wanted, at)
    fetch = replace(fetch, pointer=wanted)
    if not state.connected:
        return replace(state, release_fetch=fetch), ()
    fetch, effects = download.asked_again(fetch, at, f"version {wanted.version}, to be served,")
    return replace(state, release_fetch=fetch), effects


def on_tried(state: EdgeState, event: AdapterTried) -> tuple[EdgeState, Effects]:
    """Keep on disk what answers well; say what is served where it does not."""
    pointer, proven = event.pointer, state.proven
    if event.fault is None:
        if proven is not None and same_version(pointer, proven):
            return replace(state, proven=pointer), ()
        return replace(state, proven=pointer, earlier=proven), (KeepRelease(pointer, event.adapter, earlier=proven),)
    warning = Warn(f"version {pointer.version} is not served: {event.fault}", version=pointer.version)
    if state.served is None or not same_version(pointer, state.served):  # another has taken its place by now
        return state, (warning,)
    back = None if proven is None or same_version(pointer, proven) else proven
    return replace(state, served=back, proven=back, refused=pointer), (warning,)


def on_recalled(state: EdgeState, event: ReleaseRecalled) -> tuple[EdgeState, Effects]:
    """Serve what was on disk, unless something else is wanted by now, or the bytes are not those that were kept."""
    wanted = _wanted(state)
    if event.adapter is None or wanted is None or not same_version(wanted, event.pointer):
        return state, ()
    state, effects = _take_up(state, wanted, event.adapter)
    return state, (*effects, Note(f"version {wanted.version} is on disk: it is not fetched", version=wanted.version))


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


def _begin(state: EdgeState, wanted: GlobalPointer, at: float) -> tuple[EdgeState, Effects]:
    if state.fetch is not None and same_version(wanted, state.fetch.pointer):
        return state, ()  # it is on its way to us as the head
    if (too_large := download.too_large(state, wanted)) is not None:
        return replace(state, release=None), (Warn(f"refused to serve version {wanted.version}: {too_large}"),)
    return replace(state, release_fetch=download.begin(wanted, at)), ()


def _take_up(state: EdgeState, pointer: GlobalPointer, adapter: Adapter) -> tuple[EdgeState, Effects]:
    # the fetch ends when pursue finds that nothing more is wanted. It goes to disk when it is proven: until then a node
    # that dies has the one before there, and this one from the broker again
    return replace(state, served=pointer), (ServeAdapter(pointer, adapter),)


def _refuse(state: EdgeState, pointer: GlobalPointer, fault: str | None) -> tuple[EdgeState, Effects]:
    """Give a release up; it is tried again only when a pointer to it is heard again."""
    return replace(state, release=None), (
        Warn(f"refused to serve version {pointer.version}: {fault}", version=pointer.version),
    )


def _fell_back(pointer: GlobalPointer, mark: tuple[int, int]) -> str:
    return (
        f"ignored a release of epoch {pointer.epoch}, version {pointer.version}: this node has epoch {mark[0]}, "
        f"version {mark[1]}"
    )


def _mark(pointer: GlobalPointer) -> tuple[int, int]:
    return pointer.epoch, pointer.version


def _newer(one: GlobalPointer, other: GlobalPointer) -> GlobalPointer:
    return max(one, other, key=_mark)
