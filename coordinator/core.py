"""Every decision of the coordinator: step(state, event) -> (state, effects). Pure: no clock, no I/O, no randomness.

The same events give the same state and the same effects, bit for bit, so a federation can be replayed from its journal.
A bad message is an answer here, never an exception. What the base model says is an event like any other.
"""

from dataclasses import replace

from coordinator.aggregation import (
    ask_anew,
    begin_what_is_ready,
    discard,
    flush_deadline,
    manifest,
    refuse_outdated,
    take_answer,
    take_back,
)
from coordinator.background import ask_in_background, unjudged
from coordinator.intake import Step, ask_again, drop, in_quarantine, next_question, receive, set_aside, with_ledger
from coordinator.operations.orders import Forgive, Quarantine, RollBack, order_from_bytes
from coordinator.operations.rollback import roll_back
from coordinator.state import (
    Answered,
    Configured,
    Event,
    FederationConfig,
    FederationState,
    KeysChanged,
    NoiseKeyDrawn,
    Ordered,
    Poisoned,
    PublishRelease,
    PublishVersion,
    Received,
    RolledBack,
    Started,
    Ticked,
)
from coordinator.trust.enrolment import change_keys
from coordinator.trust.ledger import NodeLedger
from coordinator.updates import Buffer, GlobalAdapter, Served
from schemas.adapter import Adapter
from schemas.messages import InvalidMessage


def found(config: FederationConfig, adapter: Adapter, at_ns: int) -> Step:
    """A new federation: version 0 is the given adapter."""
    head, served = GlobalAdapter(0, adapter), Served(0, "head", adapter)
    state = FederationState(
        config=config,
        epoch=0,
        head=head,
        served=served,
        release=unjudged(served),
        digests={0: head.digest},
        bases={0: adapter} if config.keeps_base_adapters else {},
    )
    published = PublishVersion(manifest(state, at_ns), adapter), PublishRelease(state.release, adapter)
    state, questions = ask_in_background(state)
    return state, (*published, *questions)


def step(state: FederationState, event: Event) -> Step:
    """Take one event in; whatever it makes ready is aggregated before this returns, unless the model has to answer."""
    match event:
        case Received():
            state, effects = receive(state, event)
        case Poisoned():
            state, effects = set_aside(state, event)
        case Ticked():
            state, effects = ask_again(_no_later_than(state, event.at_ns), event.at_ns)
        case Answered():
            state, effects = take_answer(state, event)
        case Started():
            state, effects = ask_anew(_no_later_than(replace(state, epoch=state.epoch + 1), event.at_ns))
        case Configured():
            state, effects = _configure(state, event)
        case KeysChanged(ring=ring):
            state, effects = change_keys(state, ring)
        case NoiseKeyDrawn(key=key):
            state, effects = replace(state, noise_key=key), ()
        case RolledBack():
            state, effects = roll_back(state, event)
        case Ordered():
            state, effects = _obey(state, event)
    state, more = begin_what_is_ready(state, event.at_ns)
    state, questions = ask_in_background(state)
    return state, (*effects, *more, *questions)


def next_deadline(state: FederationState) -> int | None:
    """When the next tick is due, in ns since 1970; None if time alone changes nothing."""
    due = (next_question(state), flush_deadline(state))
    return min((at_ns for at_ns in due if at_ns is not None), default=None)


def _no_later_than(state: FederationState, at_ns: int) -> FederationState:
    """The state on a clock that shows this time: what came when it was ahead would wait until it is there again."""
    nodes = {node: ledger.no_later_than(at_ns) for node, ledger in state.nodes.items()}
    pending = state.pending
    if pending is not None:
        flush = replace(pending.flush, buffer=pending.flush.buffer.no_later_than(at_ns))
        pending = replace(pending, flush=flush)
    return replace(state, nodes=nodes, buffer=state.buffer.no_later_than(at_ns), pending=pending)


def _obey(state: FederationState, event: Ordered) -> Step:
    """Carry out an order, once."""
    if event.number <= state.orders:
        return drop(state, "order that was taken already", str(event.number))
    state = replace(state, orders=event.number)
    try:
        order = order_from_bytes(event.payload)
    except InvalidMessage as error:
        return drop(state, "order that cannot be read", str(error))
    match order:
        case Quarantine():
            return _quarantine(state, order)
        case Forgive(node=node):
            return with_ledger(state, node, state.nodes.get(node, NodeLedger()).forgiven()), ()
        case RollBack():  # with the adapter it is an event of its own
            return drop(state, "order that cannot be read", "a rollback without its adapter")


def _quarantine(state: FederationState, order: Quarantine) -> Step:
    """Take nothing more from a node; what waits of it is refused, and a version in the making begun anew without."""
    node = order.node
    ledger = replace(state.nodes.get(node, NodeLedger()), quarantine=order.reason, partial={})
    state = take_back(with_ledger(state, node, ledger))
    waiting = tuple(update for update in state.buffer.updates if update.node == node)
    others = Buffer.of(*(update for update in state.buffer.updates if update.node != node))
    return discard(replace(state, buffer=others), waiting, in_quarantine(order.reason))


def _configure(state: FederationState, event: Configured) -> Step:
    """New terms for the versions to come. What an adapter is cannot change within a federation."""
    old, new = state.config, event.config
    if (old.federation, old.base_model, old.layout) != (new.federation, new.base_model, new.layout):
        raise ValueError("a federation's name, base model and adapter layout cannot change; start a new one")
    oldest = state.head.version - new.strategy.max_staleness
    bases = {**state.bases, state.head.version: state.head.adapter} if new.keeps_base_adapters else {}
    digests = {
        version: digest
        for version, digest in state.digests.items()
        if version >= oldest and (version in bases or not new.keeps_base_adapters)
    }
    state = replace(
        take_back(state),
        config=new,
        turned_down=0,
        digests=digests,
        bases={version: adapter for version, adapter in bases.items() if version in digests},
        # what another strategy kept means nothing to this one
        average=state.average if new.strategy.release == old.strategy.release else None,
        background=None,
        anchor=None,
        anchored=-1,
        anchors={},
        returns=0,
        probation_until=0,
    )
    return refuse_outdated(state)
