"""How an update comes in: manifest and chunks in any order, every claim checked, then accepted or refused. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, TypeVar

from coordinator.equations import staleness
from coordinator.state import Accepted, Drop, Effect, FederationState, NodeLedger, PartialUpdate, Received, SendReceipt
from coordinator.updates import AdapterUpdate
from schemas.chunks import CorruptChunk, verify
from schemas.codec import UPDATE_CODECS, CodecError, decode, largest_body
from schemas.messages import InvalidMessage, Receipt, ReceiptStatus, UpdateManifest, split_body, update_id
from schemas.topics import UpdateChunk, UpdateManifestOf, parse

Step = tuple[FederationState, tuple[Effect, ...]]
V = TypeVar("V")

REMEMBERED_REFUSALS = 16
NS_PER_S = 1_000_000_000


class Objection(NamedTuple):
    """Why an update is not taken."""

    status: ReceiptStatus
    reason: str


def receive(state: FederationState, event: Received) -> Step:
    """Take in one raw message."""
    address = parse(state.config.federation, event.topic)
    if not isinstance(address, UpdateManifestOf | UpdateChunk):
        return _drop(state, "unexpected topic", event.topic)
    if address.node not in state.nodes and len(state.nodes) >= state.config.limits.nodes:
        return _drop(state, "too many nodes", f"{address.node}: {len(state.nodes)} are known")
    match address:
        case UpdateManifestOf(node, id_):
            return _on_manifest(state, node, id_, event)
        case UpdateChunk(node, id_, index):
            return _on_chunk(state, node, id_, index, event)


def _on_manifest(state: FederationState, node: str, id_: str, event: Received) -> Step:
    if (known := _ledger(state, node).accepted.get(id_)) is not None:
        return state, (receipt(node, id_, "duplicate", version=known.version),)
    text, body = split_body(event.payload)
    if update_id(text) != id_:
        # no receipt: the update that truly has this id may still come, and its node must not forget it
        return _drop(state, "manifest that is not its id", f"{node} {id_}")
    try:
        manifest = UpdateManifest.from_bytes(text)
    except InvalidMessage as error:
        return refuse(state, node, id_, Objection("rejected", str(error)))
    if objection := _objection(state, manifest):
        return refuse(state, node, id_, objection, manifest)
    if not manifest.body.chunks:
        return _take_inline(state, node, id_, manifest, body, event.at_ns)
    return _collect(state, node, id_, manifest, event.at_ns)


def _take_inline(
    state: FederationState, node: str, id_: str, manifest: UpdateManifest, body: bytes, at_ns: int
) -> Step:
    try:
        verify(body, manifest.body)
    except CorruptChunk as error:
        return _drop(state, "body that is not its manifest's", f"{node} {id_}: {error}")
    return _accept(state, node, id_, manifest, lambda: body, at_ns)


def _collect(state: FederationState, node: str, id_: str, manifest: UpdateManifest, at_ns: int) -> Step:
    """Note the manifest of a body that comes in chunks; false chunks that came before it are asked for again."""
    ledger = _ledger(state, node)
    before = ledger.partial.get(id_) or PartialUpdate(at_ns, at_ns)
    assembly = before.assembly.with_manifest(manifest.body)
    after = replace(before, assembly=assembly, manifest=manifest, touched_at_ns=at_ns)
    state = _with_partial(state, node, id_, after)
    if assembly.is_complete:
        return _accept(state, node, id_, manifest, assembly.join, at_ns)
    false = tuple(index for index in before.assembly.parts if index in assembly.missing)
    return state, (receipt(node, id_, "incomplete", missing=tuple(sorted(false))),) if false else ()


def _on_chunk(state: FederationState, node: str, id_: str, index: int, event: Received) -> Step:
    ledger = _ledger(state, node)
    if id_ in ledger.accepted:
        return state, ()
    if id_ in ledger.refused:
        return _drop(state, "chunk of a refused update", f"{node} {id_}")
    before = ledger.partial.get(id_) or PartialUpdate(event.at_ns, event.at_ns)
    try:
        assembly = before.assembly.with_chunk(index, event.payload)
    except CorruptChunk as error:
        return _on_corrupt_chunk(state, node, id_, index, before, error)
    growth = assembly.held - before.assembly.held
    if ledger.partial_bytes + growth > state.config.limits.partial_bytes_per_node:
        return _drop(state, "too many chunks of one node", f"{node} holds {ledger.partial_bytes} bytes")
    if state.partial_bytes + growth > state.config.limits.partial_bytes:
        return _drop(state, "too many chunks", f"{state.partial_bytes} bytes are held")
    state = _with_partial(state, node, id_, replace(before, assembly=assembly, touched_at_ns=event.at_ns))
    if before.manifest is None or not assembly.is_complete:
        return state, ()
    return _accept(state, node, id_, before.manifest, assembly.join, event.at_ns)


def _on_corrupt_chunk(
    state: FederationState, node: str, id_: str, index: int, before: PartialUpdate, error: CorruptChunk
) -> Step:
    state, effects = _drop(state, "corrupt chunk", f"{node} {id_}: {error}")
    if index in before.assembly.missing:
        effects = (*effects, receipt(node, id_, "incomplete", missing=(index,)))
    return state, effects


def ask_again(state: FederationState, at_ns: int) -> Step:
    """Ask for chunks that did not come; give up on updates that never will."""
    limits = state.config.limits
    effects: list[Effect] = []
    for node, ledger in state.nodes.items():
        for id_, arriving in ledger.partial.items():
            if at_ns >= arriving.started_at_ns + seconds(limits.partial_ttl_s):
                state, more = _drop(_forget(state, node, id_), "update never completed", f"{node} {id_}")
                effects += more
            elif arriving.manifest and at_ns >= arriving.touched_at_ns + seconds(limits.resend_after_s):
                state = _with_partial(state, node, id_, replace(arriving, touched_at_ns=at_ns))
                effects.append(receipt(node, id_, "incomplete", missing=arriving.assembly.missing))
    return state, tuple(effects)


def next_question(state: FederationState) -> int | None:
    """When `ask_again` has something to do, in ns since 1970; None while no update is incomplete."""
    limits = state.config.limits
    due = [
        min(
            arriving.started_at_ns + seconds(limits.partial_ttl_s),
            arriving.touched_at_ns + seconds(limits.resend_after_s if arriving.manifest else limits.partial_ttl_s),
        )
        for ledger in state.nodes.values()
        for arriving in ledger.partial.values()
    ]
    return min(due, default=None)


def _objection(state: FederationState, manifest: UpdateManifest) -> Objection | None:
    """Why this update cannot be taken, whatever its body says; None if nothing speaks against it."""
    config, head = state.config, state.head
    codec = manifest.body.codec
    if manifest.base_model != config.base_model:
        return Objection(
            "rejected",
            f"this federation trains {config.base_model_name} ({config.base_model[:12]}), the update is for "
            f"{manifest.base_model[:12]}: configure the same base model",
        )
    if manifest.layout != config.layout.digest:
        return Objection("rejected", f"the adapter's shape {manifest.layout[:12]} is not {config.layout.digest[:12]}")
    if codec not in UPDATE_CODECS:
        return Objection("rejected", f"codec {codec} is not taken; use one of {', '.join(UPDATE_CODECS)}")
    if manifest.body.size > (largest := largest_body(config.layout, codec)):
        return Objection("rejected", f"a body of {manifest.body.size} bytes; this layout needs {largest} at most")
    if manifest.base_version > head.version:
        return Objection("rejected", f"base version {manifest.base_version} is unknown; the newest is {head.version}")
    if state.finished:
        return Objection("stale", f"the federation is finished with version {head.version}")
    tau = staleness(head.version, manifest.base_version)
    if tau > config.strategy.max_staleness:
        most = config.strategy.max_staleness
        return Objection("stale", f"trained from version {manifest.base_version}, {tau} versions ago; at most {most}")
    if manifest.base_digest != state.digests.get(manifest.base_version):
        return Objection("rejected", f"version {manifest.base_version} is another adapter here: fetch the head again")
    return None


def _accept(
    state: FederationState, node: str, id_: str, manifest: UpdateManifest, read: Callable[[], bytes], at_ns: int
) -> Step:
    # checked once more: the head may have moved while chunks were on their way
    if objection := _objection(state, manifest):
        return refuse(state, node, id_, objection, manifest)
    try:
        delta = decode(read(), state.config.layout, manifest.body.codec)
    except (CorruptChunk, CodecError) as error:
        return refuse(state, node, id_, Objection("rejected", str(error)), manifest)
    update = AdapterUpdate(
        node=node,
        update_id=id_,
        sequence=manifest.sequence,
        base_version=manifest.base_version,
        examples=manifest.examples,
        received_at_ns=at_ns,
        delta=delta,
    )
    ledger = _ledger(state, node)
    ledger = replace(
        ledger,
        participation=ledger.participation + 1,
        accepted={**ledger.accepted, id_: Accepted(manifest.base_version)},
        partial=without(ledger.partial, id_),
    )
    state = replace(with_ledger(state, node, ledger), buffer=state.buffer.with_update(update))
    return state, (receipt(node, id_, "accepted", manifest=manifest),)


def refuse(
    state: FederationState, node: str, id_: str, objection: Objection, manifest: UpdateManifest | None = None
) -> Step:
    """Answer with the objection, and remember not to collect the update's late chunks."""
    ledger = _ledger(state, node)
    refused = (*(other for other in ledger.refused if other != id_), id_)[-REMEMBERED_REFUSALS:]
    state = with_ledger(state, node, replace(ledger, refused=refused, partial=without(ledger.partial, id_)))
    return state, (receipt(node, id_, objection.status, objection.reason, manifest=manifest),)


# --- small changes of the state ---


def _ledger(state: FederationState, node: str) -> NodeLedger:
    return state.nodes.get(node) or NodeLedger()


def _drop(state: FederationState, reason: str, detail: str) -> Step:
    return replace(state, dropped={**state.dropped, reason: state.dropped.get(reason, 0) + 1}), (Drop(reason, detail),)


def with_ledger(state: FederationState, node: str, ledger: NodeLedger) -> FederationState:
    """The state with one node's ledger replaced."""
    held = state.partial_bytes - _ledger(state, node).partial_bytes + ledger.partial_bytes
    return replace(state, nodes={**state.nodes, node: ledger}, partial_bytes=held)


def _with_partial(state: FederationState, node: str, id_: str, partial: PartialUpdate) -> FederationState:
    """Note what has arrived of an update; of too many at once, the one that began first is forgotten."""
    ledger = _ledger(state, node)
    partials = {**ledger.partial, id_: partial}
    if len(partials) > state.config.limits.partial_updates_per_node:
        oldest = min(partials, key=lambda other: (partials[other].started_at_ns, other))
        partials = without(partials, oldest)
    return with_ledger(state, node, replace(ledger, partial=partials))


def _forget(state: FederationState, node: str, id_: str) -> FederationState:
    ledger = _ledger(state, node)
    return with_ledger(state, node, replace(ledger, partial=without(ledger.partial, id_)))


def without(mapping: Mapping[str, V], key: str) -> dict[str, V]:
    """The mapping less one key, which need not be there."""
    return {other: value for other, value in mapping.items() if other != key}


def receipt(
    node: str,
    id_: str,
    status: ReceiptStatus,
    reason: str | None = None,
    *,
    missing: tuple[int, ...] = (),
    version: int | None = None,
    manifest: UpdateManifest | None = None,
) -> SendReceipt:
    """The answer to one update as an effect."""
    answer = Receipt(update_id=id_, status=status, reason=reason, missing=missing, version=version)
    return SendReceipt(node, answer, manifest)


def seconds(duration: float) -> int:
    """Seconds as nanoseconds."""
    return int(duration * NS_PER_S)
