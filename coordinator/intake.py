"""How an update comes in: manifest and chunks in any order, every claim checked, then accepted or refused. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, TypeVar

from coordinator.equations import staleness
from coordinator.fall_back import with_report
from coordinator.state import (
    Drop,
    Effect,
    FederationConfig,
    FederationState,
    Limits,
    Poisoned,
    RaiseAlarm,
    Received,
    SendReceipt,
)
from coordinator.trust.ledger import Accepted, NodeLedger, PartialUpdate, Refusal
from coordinator.updates import AdapterUpdate
from schemas.adapter import Adapter
from schemas.chunks import CorruptChunk, verify
from schemas.codec import CodecError, decode, largest_body
from schemas.messages import (
    MAX_INPUTS,
    MAX_SENTENCE,
    InvalidMessage,
    Receipt,
    ReceiptStatus,
    UpdateManifest,
    split_body,
    update_id,
)
from schemas.products import reach, reach_at_most, transplant, widen
from schemas.topics import UpdateChunk, UpdateManifestOf, parse
from schemas.trust import Distrusted, Revoked, open_update

Step = tuple[FederationState, tuple[Effect, ...]]
V = TypeVar("V")

REMEMBERED_REFUSALS = 16
NS_PER_S = 1_000_000_000
RETRY_AFTER_S = 30.0  # a version is made in less, where the base model keeps up at all
POISON = "the coordinator died each time it took this in: it is set aside unread; train again"
RAISING_RIDGE = 0.01  # where a delta of a higher rank becomes one of the federation's: pull towards the base's factors


class Objection(NamedTuple):
    """Why an update is not taken: the answer, its kind for the ledger, and a reason for the node."""

    status: ReceiptStatus
    kind: Refusal
    reason: str


def receive(state: FederationState, event: Received) -> Step:
    """Take in one raw message."""
    address = parse(state.config.federation, event.topic)
    if not isinstance(address, UpdateManifestOf | UpdateChunk):
        return drop(state, "unexpected topic", repr(event.topic[:100]))
    if (roomy := _with_room_for(state, address.node)) is None:
        return drop(state, "too many nodes", f"{address.node}: {len(state.nodes)} are known")
    state = roomy
    match address:
        case UpdateManifestOf(node, id_) if state.config.root is not None:
            return _on_signed_manifest(state, node, id_, event)
        case UpdateManifestOf(node, id_):
            return _on_manifest(state, node, id_, event)
        case UpdateChunk(node) if state.config.root is not None and node not in state.ring.enrolled:
            return drop(state, "chunk of a node that is not enrolled", node)
        case UpdateChunk(node, id_, index):
            return _on_chunk(state, node, id_, index, event)


def set_aside(state: FederationState, event: Poisoned) -> Step:
    """Refuse the update that a message is of, by its topic alone; whatever is no update's is counted."""
    address = parse(state.config.federation, event.topic)
    if not isinstance(address, UpdateManifestOf | UpdateChunk):
        return drop(state, "poison", repr(event.topic[:100]))
    node, id_ = address.node, address.update_id
    if (known := _ledger(state, node).accepted.get(id_)) is not None:
        return state, (receipt(node, id_, "duplicate", version=known.version),)
    if (roomy := _with_room_for(state, node)) is None:
        return drop(state, "too many nodes", f"{node}: {len(state.nodes)} are known")
    return refuse(roomy, node, id_, Objection("rejected", "poison", POISON))


def _on_signed_manifest(state: FederationState, node: str, id_: str, event: Received) -> Step:
    """Look at nothing but the signature first: without a true one nobody knows whom an answer would concern."""
    try:
        message = open_update(state.ring, node, event.topic, event.payload)
    except Distrusted as why:
        return drop(state, why.reason, f"{node} {id_}: {why}")
    except Revoked as why:
        return refuse(state, node, id_, Objection("rejected", "revoked", str(why)))
    return _on_manifest(state, node, id_, replace(event, payload=message))


def _on_manifest(state: FederationState, node: str, id_: str, event: Received) -> Step:
    if (known := _ledger(state, node).accepted.get(id_)) is not None:
        return state, (receipt(node, id_, "duplicate", version=known.version),)
    text, body = split_body(event.payload)
    if update_id(text) != id_:
        # no receipt: the update that truly has this id may still come, and its node must not forget it
        return drop(state, "manifest that is not its id", f"{node} {id_}")
    try:
        manifest = UpdateManifest.from_bytes(text)
    except InvalidMessage as error:
        return refuse(state, node, id_, Objection("rejected", "unreadable", str(error)))
    if objection := _objection(state, node, manifest):
        return refuse(state, node, id_, objection, manifest)
    if _is_full(state):
        return _put_off(state, node, id_)
    if not manifest.body.chunks:
        return _take_inline(state, node, id_, manifest, body, event.at_ns)
    return _collect(state, node, id_, manifest, event.at_ns)


def _take_inline(
    state: FederationState, node: str, id_: str, manifest: UpdateManifest, body: bytes, at_ns: int
) -> Step:
    try:
        verify(body, manifest.body)
    except CorruptChunk as error:
        return drop(state, "body that is not its manifest's", f"{node} {id_}: {error}")
    return _accept(state, node, id_, manifest, lambda: body, at_ns)


def _collect(state: FederationState, node: str, id_: str, manifest: UpdateManifest, at_ns: int) -> Step:
    """Note the manifest of a body that comes in chunks; false chunks that came before it are asked for again."""
    ledger = _ledger(state, node)
    before = ledger.partial.get(id_) or PartialUpdate(at_ns, at_ns)
    after = replace(
        before, assembly=before.assembly.with_manifest(manifest.body), manifest=manifest, touched_at_ns=at_ns
    )
    if problem := _too_much(state, node, id_, after):
        return drop(state, problem, f"{node} {id_}")
    state = with_ledger(state, node, replace(ledger, refused=tuple(other for other in ledger.refused if other != id_)))
    state = _with_partial(state, node, id_, after)
    if after.assembly.is_complete:
        return _accept(state, node, id_, manifest, after.assembly.join, at_ns)
    false = tuple(index for index in before.assembly.parts if index in after.assembly.missing)
    return state, (receipt(node, id_, "incomplete", missing=tuple(sorted(false))),) if false else ()


def _on_chunk(state: FederationState, node: str, id_: str, index: int, event: Received) -> Step:
    ledger = _ledger(state, node)
    if id_ in ledger.accepted:
        return state, ()
    if ledger.quarantine is not None:
        return drop(state, "chunk of a node in quarantine", f"{node} {id_}")
    if id_ in ledger.refused:
        return drop(state, "chunk of a refused update", f"{node} {id_}")
    before = ledger.partial.get(id_) or PartialUpdate(event.at_ns, event.at_ns)
    try:
        assembly = before.assembly.with_chunk(index, event.payload)
    except CorruptChunk as error:
        return _on_corrupt_chunk(state, node, id_, index, before, error)
    after = replace(before, assembly=assembly, touched_at_ns=event.at_ns, asked=0)
    if problem := _too_much(state, node, id_, after):
        return drop(state, problem, f"{node} {id_}")
    state = _with_partial(state, node, id_, after)
    if after.manifest is None or not assembly.is_complete:
        return state, ()
    return _accept(state, node, id_, after.manifest, assembly.join, event.at_ns)


def _on_corrupt_chunk(
    state: FederationState, node: str, id_: str, index: int, before: PartialUpdate, error: CorruptChunk
) -> Step:
    state, effects = drop(state, "corrupt chunk", f"{node} {id_}: {error}")
    if index in before.assembly.missing:
        effects = (*effects, receipt(node, id_, "incomplete", missing=(index,)))
    return state, effects


def ask_again(state: FederationState, at_ns: int) -> Step:
    """Ask for chunks that did not come, less often each time; give up on updates that never will."""
    limits = state.config.limits
    effects: list[Effect] = []
    for node, ledger in state.nodes.items():
        for id_, arriving in ledger.partial.items():
            if at_ns >= arriving.started_at_ns + seconds(limits.partial_ttl_s):
                state, more = drop(_forget(state, node, id_), "update never completed", f"{node} {id_}")
                effects += more
            elif arriving.manifest and at_ns >= _question_due(arriving, limits):
                asked = replace(arriving, touched_at_ns=at_ns, asked=arriving.asked + 1)
                state = _with_partial(state, node, id_, asked)
                effects.append(receipt(node, id_, "incomplete", missing=arriving.assembly.missing))
    return state, tuple(effects)


def next_question(state: FederationState) -> int | None:
    """When `ask_again` has something to do, in ns since 1970; None while no update is incomplete."""
    limits = state.config.limits
    due = []
    for ledger in state.nodes.values():
        for arriving in ledger.partial.values():
            due.append(arriving.started_at_ns + seconds(limits.partial_ttl_s))
            if arriving.manifest:
                due.append(_question_due(arriving, limits))
    return min(due, default=None)


def _question_due(arriving: PartialUpdate, limits: Limits) -> int:
    return arriving.touched_at_ns + (seconds(limits.resend_after_s) << min(arriving.asked, 16))


def _objection(state: FederationState, node: str, manifest: UpdateManifest) -> Objection | None:
    """Why this update cannot be taken, whatever its body says; None if nothing speaks against it."""
    if manifest.node != node:
        reason = f"the manifest says it is from {manifest.node}: publish under your own name"
        return Objection("rejected", "another node", reason)
    if (why := _ledger(state, node).quarantine) is not None:
        return in_quarantine(why)
    return _mismatch(state.config, manifest) or _untimely(state, node, manifest)


def in_quarantine(why: str) -> Objection:
    """The answer to a node whose updates the operator does not want."""
    return Objection("rejected", "quarantined", f"this node is in quarantine: {why}; ask the federation's operator")


def _mismatch(config: FederationConfig, manifest: UpdateManifest) -> Objection | None:
    """What makes the update one of another federation, or larger than any of this one."""
    codec, size = manifest.body.codec, manifest.body.size
    if manifest.base_model != config.base_model:
        return Objection(
            "rejected",
            "another federation",
            f"this federation trains {config.base_model_name} ({config.base_model[:12]}), the update is for "
            f"{manifest.base_model[:12]}: configure the same base model",
        )
    if (layout := config.node_layouts.get(manifest.layout)) is None:
        ranks = ", ".join(str(known.lora.rank) for known in config.node_layouts.values())
        return Objection(
            "rejected",
            "another federation",
            f"the adapter's shape {manifest.layout[:12]} is none of this federation's, which takes rank {ranks} of "
            f"{config.layout.digest[:12]}: set edge.rank to one of these, or leave it out",
        )
    if codec not in config.codecs:
        reason = f"codec {codec} is not taken here: set edge.codec to {' or '.join(config.codecs)}"
        return Objection("rejected", "unreadable", reason)
    if size > (largest := largest_body(layout, codec)):
        return Objection("rejected", "too large", f"a body of {size} bytes; this layout needs {largest} at most")
    if size > (largest := min(config.limits.partial_bytes_per_node, config.limits.partial_bytes)):
        return Objection(
            "rejected", "too large", f"a body of {size} bytes; the coordinator's limit for a node is {largest}"
        )
    return None


def _untimely(state: FederationState, node: str, manifest: UpdateManifest) -> Objection | None:
    """What makes the update come from the wrong version, or at the wrong time."""
    strategy, head, base = state.config.strategy, state.head, manifest.base_version
    if base > head.version:
        reason = f"base version {base} is unknown; the newest is {head.version}"
        return Objection("rejected", "unknown version", reason)
    if state.finished:
        return Objection("stale", "finished", f"the federation is finished with version {head.version}")
    tau = staleness(head.version, base)
    if tau > strategy.max_staleness or base not in state.digests:
        most = min(strategy.max_staleness, len(state.digests) - 1)
        return Objection("stale", "stale", f"trained from version {base}, {tau} versions ago; at most {most}")
    if manifest.base_digest != state.digests[base]:
        reason = f"version {base} is another adapter here: fetch the head again"
        return Objection("rejected", "unknown version", reason)
    waiting = sum(update.node == node for update in _waiting(state))
    if strategy.one_update_per_version and waiting:
        reason = f"version {head.version + 1} has an update of this node already: wait for it"
        return Objection("stale", "quota", reason)
    if waiting >= (most := state.config.limits.updates_per_version):
        reason = f"version {head.version + 1} has {waiting} updates of this node, the most is {most}: wait for it"
        return Objection("rejected", "quota", reason)
    return None


def _is_full(state: FederationState) -> bool:
    """Whether as many updates wait for the base model as one version can name."""
    return len(state.buffer.updates) >= MAX_INPUTS


def _put_off(state: FederationState, node: str, id_: str) -> Step:
    """Ask the node to keep an update that nothing speaks against, and to come again with it."""
    if (arrived := _ledger(state, node).partial.get(id_)) is not None:
        # its chunks may stay, within their limits; without a manifest nobody asks for more of them
        state = _with_partial(state, node, id_, replace(arrived, manifest=None))
    reason = f"{MAX_INPUTS} updates wait for the base model on the coordinator: keep this one and come again"
    return _counted(state, "overloaded"), (receipt(node, id_, "overloaded", reason, retry_after_s=RETRY_AFTER_S),)


def _waiting(state: FederationState) -> tuple[AdapterUpdate, ...]:
    """Every accepted update that is in no version yet."""
    in_the_making = state.pending.flush.buffer.updates if state.pending else ()
    return (*in_the_making, *state.buffer.updates)


def _accept(
    state: FederationState, node: str, id_: str, manifest: UpdateManifest, read: Callable[[], bytes], at_ns: int
) -> Step:
    # checked once more: the head may have moved while chunks were on their way
    if objection := _objection(state, node, manifest) or _too_often(state, node, at_ns):
        return refuse(state, node, id_, objection, manifest)
    if _is_full(state):
        return _put_off(state, node, id_)
    state = with_ledger(state, node, _ledger(state, node).with_decoded(at_ns))
    try:
        delta = decode(read(), state.config.node_layouts[manifest.layout], manifest.body.codec)
    except (CorruptChunk, CodecError) as error:
        return refuse(state, node, id_, Objection("rejected", "unreadable", str(error)), manifest)
    if delta.norm <= state.config.limits.delta_norm and delta.layout != state.config.layout:
        delta = _of_the_federation(state.bases[manifest.base_version], delta)
    if (privacy := state.config.privacy) is not None:
        delta = delta.clipped(privacy.clip_norm)  # as its node should have done: the promise rests on nobody's word
    if objection := _too_long(state, delta):
        return refuse(state, node, id_, objection, manifest)
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
        overclaimed=ledger.overclaimed + (manifest.participation > ledger.participation),
        participation=ledger.participation + 1,
        accepted={**ledger.accepted, id_: Accepted(manifest.base_version)},
        partial=without(ledger.partial, id_),
        held_out=_held_out(state, ledger, manifest),
    )
    state = replace(with_ledger(state, node, ledger), buffer=state.buffer.with_update(update))
    return state, (receipt(node, id_, "accepted", manifest=manifest),)


def _of_the_federation(base: Adapter, delta: Adapter) -> Adapter:
    """A delta of another rank as one of the federation's own: from here on all deltas are alike."""
    if delta.layout.lora.rank < base.layout.lora.rank:
        return widen(base, delta, RAISING_RIDGE)
    return transplant(base, base, delta, RAISING_RIDGE)


def _held_out(state: FederationState, ledger: NodeLedger, manifest: UpdateManifest) -> Mapping[int, float]:
    """What the node says of versions, with what it says now, where anybody asks."""
    loss, wanted = manifest.held_out_loss, state.config.strategy.release.fall_back is not None
    if loss is None or not wanted:
        return ledger.held_out
    return with_report(ledger.held_out, manifest.base_version, loss, state.served.version)


def _too_often(state: FederationState, node: str, at_ns: int) -> Objection | None:
    """Whether the node has used up its hour, by recorded time: decoding costs more than sending."""
    most = state.config.limits.updates_per_hour
    if _ledger(state, node).decoded_in(at_ns) < most:
        return None
    return Objection("rejected", "quota", f"{most} updates of this node came within an hour: train longer for each")


def _too_long(state: FederationState, delta: Adapter) -> Objection | None:
    """Whether the delta is beyond what any training makes: as it is, or in what it does to the head's products."""
    limits = state.config.limits
    if (norm := delta.norm) > limits.delta_norm:
        reason = f"the delta's norm is {norm:.3g}; at most {limits.delta_norm:g}: train with smaller steps"
        return Objection("rejected", "too large", reason)
    head = state.head.adapter
    # nearly always the bound says enough, and costs a fiftieth; what is not a number is not below anything
    is_below = reach_at_most(head, delta) <= limits.delta_reach
    if not is_below and (far := reach(head, delta).whole) > limits.delta_reach:
        reason = f"the delta moves products B A by {far:.3g}; at most {limits.delta_reach:g}: train with smaller steps"
        return Objection("rejected", "too large", reason)
    return None


def refuse(
    state: FederationState, node: str, id_: str, objection: Objection, manifest: UpdateManifest | None = None
) -> Step:
    """Answer with the objection, note it in the node's ledger, and collect none of the update's late chunks.

    A node that has not heard the answer offers the same update again: that speaks against the link, not the node.
    """
    before = _ledger(state, node)
    refused = (*(other for other in before.refused if other != id_), id_)[-REMEMBERED_REFUSALS:]
    after = replace(before, refused=refused, partial=without(before.partial, id_))
    # nor does anything speak against a node that has not heard of the end
    if objection.kind != "finished" and id_ not in before.refused:
        after = after.with_refusal(objection.kind, objection.reason[:MAX_SENTENCE])
    state = with_ledger(state, node, after)
    answer = receipt(node, id_, objection.status, objection.reason, manifest=manifest)
    answer = replace(answer, cause=objection.kind)
    return state, (answer, RaiseAlarm(node, after)) if after.alarm and not before.alarm else (answer,)


# --- small changes of the state ---


def _with_room_for(state: FederationState, node: str) -> FederationState | None:
    """The state with a place for this node, that of an idle one if there is no other; None where all are in use."""
    if node in state.nodes or len(state.nodes) < state.config.limits.nodes:
        return state
    idle = next((known for known, ledger in state.nodes.items() if ledger.is_empty), None)
    return None if idle is None else replace(state, nodes=without(state.nodes, idle))


def _ledger(state: FederationState, node: str) -> NodeLedger:
    return state.nodes.get(node) or NodeLedger()


def drop(state: FederationState, reason: str, detail: str) -> Step:
    """Take no notice of a message but to count it."""
    return _counted(state, reason), (Drop(reason, detail),)


def _counted(state: FederationState, reason: str) -> FederationState:
    return replace(state, dropped={**state.dropped, reason: state.dropped.get(reason, 0) + 1})


def with_ledger(state: FederationState, node: str, ledger: NodeLedger) -> FederationState:
    """The state with one node's ledger replaced; a node that left no trace at all is forgotten."""
    held = state.partial_bytes - _ledger(state, node).partial_bytes + ledger.partial_bytes
    gone = ledger.is_empty and not (ledger.refusals or ledger.decoded)
    nodes = without(state.nodes, node) if gone else {**state.nodes, node: ledger}
    return replace(state, nodes=nodes, partial_bytes=held)


def _too_much(state: FederationState, node: str, id_: str, after: PartialUpdate) -> str | None:
    """The limit that holding this would break, if any."""
    ledger, limits = _ledger(state, node), state.config.limits
    growth = after.held - (ledger.partial[id_].held if id_ in ledger.partial else 0)
    if ledger.partial_bytes + growth > limits.partial_bytes_per_node:
        return "too much of one node is incomplete"
    return "too much is incomplete" if state.partial_bytes + growth > limits.partial_bytes else None


def _with_partial(state: FederationState, node: str, id_: str, partial: PartialUpdate) -> FederationState:
    """Note what has arrived of an update; of too many at once, the first to begin is forgotten."""
    ledger = _ledger(state, node)
    partials = {**ledger.partial, id_: partial}
    if len(partials) > state.config.limits.partial_updates_per_node:
        partials = without(partials, next(iter(partials)))  # in order of insertion, whatever clocks say
        state = _counted(state, "too many incomplete updates of one node")
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
    retry_after_s: float | None = None,
    manifest: UpdateManifest | None = None,
) -> SendReceipt:
    """The answer to one update as an effect."""
    answer = Receipt(
        update_id=id_,
        status=status,
        reason=reason and reason[:MAX_SENTENCE],
        missing=missing,
        version=version,
        retry_after_s=retry_after_s,
    )
    return SendReceipt(node, answer, manifest)


def seconds(duration: float) -> int:
    """Seconds as nanoseconds."""
    return int(duration * NS_PER_S)
