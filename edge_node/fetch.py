"""From the head pointer to a verified version in hand: which version to fetch, and whether to believe what comes. Pure.

Only the pointer is trusted to say which version counts. (epoch, version) of what is held never falls.
"""

from dataclasses import replace

from edge_node import download
from edge_node.download import same_version
from edge_node.effects import Effects, KeepVersion, Note, RememberMark, Warn
from edge_node.events import VersionArrived
from edge_node.state import EdgeState, GlobalAdapter
from schemas.adapter import Adapter
from schemas.messages import GlobalPointer

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
    fetch, effects = download.with_manifest(state, fetch, at, payload)
    return replace(state, fetch=fetch), effects


def on_chunk(state: EdgeState, at: float, version: int, index: int, chunk: bytes) -> tuple[EdgeState, Effects]:
    """Add one piece; before the manifest has come, no more than the pointer announced is kept."""
    fetch = state.fetch
    if fetch is None or fetch.pointer.version != version:
        return state, ()
    fetch, effects = download.with_chunk(state, fetch, at, index, chunk)
    return replace(state, fetch=fetch), effects


def on_arrived(state: EdgeState, event: VersionArrived) -> tuple[EdgeState, Effects]:
    """Take the version that was on its way for our own, if it is what it should be."""
    fetch = state.fetch
    if fetch is None or not same_version(event.pointer, fetch.pointer):
        return state, ()
    if event.adapter is None:
        return _refuse(state, fetch.pointer, event.fault)
    return _hold(state, event.at, fetch.pointer, event.adapter)


def pursue(state: EdgeState, at: float) -> tuple[EdgeState, Effects]:
    """Fetch the version that the head names, in place of any other; ask again for one that stays away."""
    wanted, fetch = _wanted(state), state.fetch
    if wanted is None:
        return replace(state, fetch=None), ()
    if fetch is None or not same_version(wanted, fetch.pointer):
        return _begin(state, wanted, at)
    fetch = replace(fetch, pointer=wanted)
    if not state.connected:
        return replace(state, fetch=fetch), ()
    fetch, effects = download.asked_again(fetch, at, f"version {wanted.version}")
    return replace(state, fetch=fetch), effects


def next_due(state: EdgeState) -> float | None:
    """When to ask again for the version on its way."""
    return state.fetch.again_at if state.fetch is not None and state.connected else None


def _wanted(state: EdgeState) -> GlobalPointer | None:
    if state.head is None or state.layout is None:
        return None
    return None if state.held is not None and same_version(state.head, state.held.pointer) else state.head


def _begin(state: EdgeState, wanted: GlobalPointer, at: float) -> tuple[EdgeState, Effects]:
    if (too_large := download.too_large(state, wanted)) is not None:
        return replace(state, head=None, fetch=None), (Warn(f"refused version {wanted.version}: {too_large}"),)
    state, other = replace(state, newer_until=at + PATIENCE_S), state.release_fetch
    if other is not None and same_version(wanted, other.pointer):
        return replace(state, fetch=replace(other, pointer=wanted), release_fetch=None), ()  # a part of it is here
    return replace(state, fetch=download.begin(wanted, at)), ()


def _hold(state: EdgeState, at: float, pointer: GlobalPointer, adapter: Adapter) -> tuple[EdgeState, Effects]:
    state = replace(state, held=GlobalAdapter(pointer, adapter), newer_until=at)
    state, mark = _raise_mark(state, (pointer.epoch, pointer.version))
    return state, (KeepVersion(pointer), *mark, Note(f"version {pointer.version} held", version=pointer.version))


def _refuse(state: EdgeState, pointer: GlobalPointer, fault: str | None) -> tuple[EdgeState, Effects]:
    """Give a version up; it is tried again only when a pointer to it is heard again."""
    return replace(state, head=None), (Warn(f"refused version {pointer.version}: {fault}", version=pointer.version),)


def _raise_mark(state: EdgeState, mark: tuple[int, int]) -> tuple[EdgeState, Effects]:
    if mark <= state.memory.mark:
        return state, ()
    return replace(state, memory=replace(state.memory, mark=mark)), (RememberMark(mark),)


def _fell_back(mark: tuple[int, int], state: EdgeState) -> str:
    newest = state.memory.mark
    return (
        f"ignored a head at epoch {mark[0]}, version {mark[1]}: this node has seen epoch {newest[0]}, "
        f"version {newest[1]}. If the federation was started afresh, remove {state.identity.settings.data_dir}"
    )
