"""Every decision of the coordinator: step(state, event) -> (state, effects). Pure: no clock, no I/O, no randomness.

The same events give the same state and the same effects, bit for bit, so a federation can be replayed from its journal.
A bad message is an answer here, never an exception.
"""

from collections.abc import Mapping
from dataclasses import replace

from coordinator.intake import (
    Objection,
    Step,
    ask_again,
    next_question,
    receipt,
    receive,
    refuse,
    seconds,
    with_ledger,
    without,
)
from coordinator.state import (
    Accepted,
    Configured,
    Effect,
    Event,
    FederationConfig,
    FederationState,
    PublishVersion,
    Received,
    Started,
    Ticked,
)
from coordinator.updates import Buffer, GlobalAdapter
from schemas.adapter import Adapter
from schemas.chunks import describe
from schemas.messages import GlobalManifest, VersionInput

REMEMBERED_VERSIONS = 100  # for so long after an update would be stale, a late copy is still known as a duplicate


def found(config: FederationConfig, adapter: Adapter, at_ns: int) -> Step:
    """A new federation: version 0 is the given adapter."""
    head = GlobalAdapter(0, adapter)
    bases = {0: adapter} if config.strategy.needs_base_adapters else {}
    state = FederationState(config=config, epoch=0, head=head, digests={0: head.digest}, bases=bases)
    return state, (PublishVersion(_manifest(state, None, (), at_ns), adapter),)


def step(state: FederationState, event: Event) -> Step:
    """Take one event in; whatever it makes ready is aggregated before this returns."""
    match event:
        case Received():
            state, effects = receive(state, event)
        case Ticked():
            state, effects = ask_again(state, event.at_ns)
        case Started():
            state, effects = replace(state, epoch=state.epoch + 1), ()
        case Configured():
            state, effects = _configure(state, event)
    return _aggregate_what_is_ready(state, effects, event.at_ns)


def next_deadline(state: FederationState) -> int | None:
    """When the next tick is due, in ns since 1970; None if time alone changes nothing."""
    due = (next_question(state), _flush_deadline(state))
    return min((at_ns for at_ns in due if at_ns is not None), default=None)


def _aggregate_what_is_ready(state: FederationState, effects: tuple[Effect, ...], at_ns: int) -> Step:
    while _is_ready(state, at_ns):
        state, more = _aggregate(state, at_ns)
        effects = (*effects, *more)
    if state.finished and state.buffer.groups:  # the operator has moved the last version
        finished = Objection("stale", f"the federation is finished with version {state.head.version}")
        state, more = _discard_buffer(state, finished)
        effects = (*effects, *more)
    return state, effects


def _is_ready(state: FederationState, at_ns: int) -> bool:
    if state.finished or not state.buffer.groups:
        return False
    deadline = _flush_deadline(state)
    return state.config.strategy.is_ready(state.buffer) or (deadline is not None and at_ns >= deadline)


def _aggregate(state: FederationState, at_ns: int) -> Step:
    aggregate = state.config.strategy.aggregate(state.head, state.buffer, state.bases)
    if not aggregate.adapter.is_finite:
        return _discard_buffer(state, Objection("rejected", "the updates of this buffer add up to infinite values"))
    head = GlobalAdapter(state.head.version + 1, aggregate.adapter)
    inputs = tuple(
        VersionInput(
            node=update.node,
            update_id=update.update_id,
            base_version=update.base_version,
            examples=update.examples,
            weight=weight,
        )
        for update, weight in zip(state.buffer.updates, aggregate.weights, strict=True)
    )
    receipts = tuple(receipt(i.node, i.update_id, "aggregated", version=head.version) for i in inputs)
    parent = state.head.digest
    state = _advance(state, head)
    return state, (PublishVersion(_manifest(state, parent, inputs, at_ns), head.adapter), *receipts)


def _advance(state: FederationState, head: GlobalAdapter) -> FederationState:
    """Make `head` the newest version, empty the buffer, and forget what no update may start from any more."""
    strategy = state.config.strategy
    oldest = head.version - strategy.max_staleness
    nodes = dict(state.nodes)
    for update in state.buffer.updates:
        ledger = nodes[update.node]
        accepted = {**ledger.accepted, update.update_id: Accepted(update.base_version, head.version)}
        nodes[update.node] = replace(ledger, accepted=_since(accepted, oldest - REMEMBERED_VERSIONS))
    adapters = {**state.bases, head.version: head.adapter} if strategy.needs_base_adapters else {}
    return replace(
        state,
        head=head,
        digests={v: d for v, d in (*state.digests.items(), (head.version, head.digest)) if v >= oldest},
        bases={version: adapter for version, adapter in adapters.items() if version >= oldest},
        buffer=Buffer(),
        nodes=nodes,
    )


def _discard_buffer(state: FederationState, objection: Objection) -> Step:
    """No version will be made of what waits: tell its nodes."""
    effects: tuple[Effect, ...] = ()
    for update in state.buffer.updates:
        ledger = state.nodes[update.node]
        state = with_ledger(state, update.node, replace(ledger, accepted=without(ledger.accepted, update.update_id)))
        state, more = refuse(state, update.node, update.update_id, objection)
        effects = (*effects, *more)
    return replace(state, buffer=Buffer()), effects


def _manifest(
    state: FederationState, parent: str | None, inputs: tuple[VersionInput, ...], at_ns: int
) -> GlobalManifest:
    config = state.config
    return GlobalManifest(
        epoch=state.epoch,
        version=state.head.version,
        parent=parent,
        base_model=config.base_model,
        lora=config.layout.lora,
        layout=config.layout.digest,
        strategy=config.strategy.name,
        inputs=inputs,
        created_at_ns=at_ns,
        body=describe(state.head.adapter.to_safetensors(), "safetensors", inline=0),
    )


def _flush_deadline(state: FederationState) -> int | None:
    timeout_s, oldest_ns = state.config.strategy.timeout_s, state.buffer.oldest_ns
    if timeout_s is None or oldest_ns is None or state.finished:
        return None
    return oldest_ns + seconds(timeout_s)


def _configure(state: FederationState, event: Configured) -> Step:
    """New terms for the versions to come. What an adapter is cannot change within a federation."""
    old, new = state.config, event.config
    if (old.federation, old.base_model, old.layout) != (new.federation, new.base_model, new.layout):
        raise ValueError("a federation's name, base model and adapter layout cannot change; start a new one")
    effects: tuple[Effect, ...] = ()
    state = replace(state, config=old.model_copy(update={"final_version": new.final_version}))
    if new.strategy != old.strategy and state.buffer.groups and not state.finished:
        # what waits was sent under the old terms and is aggregated under them
        state, effects = _aggregate(state, event.at_ns)
    if not new.strategy.needs_base_adapters:
        return replace(state, config=new, bases={}), effects
    bases = {**state.bases, state.head.version: state.head.adapter}
    digests = {version: digest for version, digest in state.digests.items() if version in bases}
    return replace(state, config=new, bases=bases, digests=digests), effects


def _since(accepted: Mapping[str, Accepted], oldest: int) -> dict[str, Accepted]:
    """Without the ids of updates that no broker delivers any more; if one does, it is refused as stale."""
    return {id_: known for id_, known in accepted.items() if known.base_version >= oldest}
