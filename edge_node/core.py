"""Every decision of a node: `step(state, event) -> (state, effects)`. Pure: no clock, no random source, no I/O.

What was said is handled first; then whatever is due by now is done, so that no decision depends on which event woke us.
The courses of events have a file each: fetch.py, release.py, learning.py, delivery.py; the first two download alike.
"""

from collections.abc import Callable
from dataclasses import replace

from edge_node import delivery, download, fetch, learning, release, signatures
from edge_node.effects import (
    DescribeLayout,
    Effect,
    Effects,
    Note,
    PublishMetrics,
    PublishState,
    RememberTerms,
    ServeAdapter,
    Stop,
    Warn,
)
from edge_node.events import (
    AdapterTried,
    BrokerConnected,
    BrokerLost,
    ConditionsRead,
    Event,
    HandedOver,
    Heard,
    HeldOutMeasured,
    LayoutDescribed,
    MeasuringEnded,
    ReleaseRecalled,
    ServedMeasured,
    StepTrained,
    Ticked,
    TrainingFailed,
    TrainingFinished,
    VersionArrived,
)
from edge_node.state import EdgeState, GlobalAdapter, Identity, Memory, WaitingUpdate
from schemas import topics
from schemas.adapter import Layout
from schemas.chunks import CorruptChunk
from schemas.codec import UPDATE_CODECS
from schemas.messages import CoordinatorState, GlobalPointer, InvalidMessage, NodeMetrics, NodeState
from schemas.trust import Trust, Uncertified

PROGRESS_EVERY_S = 0.5


def initial_state(
    identity: Identity,
    memory: Memory,
    at: float,
    outbox: tuple[WaitingUpdate, ...] = (),
    terms: CoordinatorState | None = None,
    layout: Layout | None = None,
    held: GlobalAdapter | None = None,
    served: GlobalAdapter | None = None,
    earlier: GlobalPointer | None = None,
    trust: Trust | None = None,
) -> tuple[EdgeState, Effects]:
    """A node that has just started, with what it had on disk; for a moment it hopes for a newer version."""
    state = EdgeState(identity, memory, newer_until=at + fetch.PATIENCE_S, outbox=outbox, trust=trust)
    if terms is None or layout is None or (terms.base_model, terms.layout) != (identity.base_model, layout.digest):
        return delivery.trim(state)  # nothing on disk, or of another model: all of it is heard again
    if held is not None:
        mark = max(memory.mark, (held.pointer.epoch, held.pointer.version))
        state = replace(state, held=held, memory=replace(memory, mark=mark))
    state, effects = delivery.trim(replace(state, terms=terms, layout=layout))
    effects += _foreign_rank(identity, terms)
    if served is None:
        return state, effects
    serve = ServeAdapter(served.pointer, served.adapter)
    return replace(state, served=served.pointer, proven=served.pointer, earlier=earlier), (*effects, serve)


def step(state: EdgeState, event: Event) -> tuple[EdgeState, Effects]:
    """What the node knows after the event, and what is to be done about it, in this order."""
    before = state
    state, effects = _handle(state, event)
    training = (learning.drop_stale, learning.train_if_due, learning.measure_if_due)
    for due in (_settle, fetch.pursue, release.pursue, *training, delivery.send_due, signatures.warn_when_stale):
        state, more = due(state, event.at)
        effects += more
    effects += download.changes((before.fetch, before.release_fetch), (state.fetch, state.release_fetch))
    state, news = _announce(before, state, event)
    return state, effects + news


def next_deadline(state: EdgeState) -> float | None:
    """When to tell the node that time has passed, if nothing else happens; None while nothing waits for time."""
    deadlines = (
        fetch.next_due(state),
        release.next_due(state),
        learning.next_due(state),
        delivery.next_due(state),
        state.fresh_until,
    )
    return min((at for at in deadlines if at is not None), default=None)


def introduction(identity: Identity, *, online: bool) -> NodeState:
    """What a node tells about itself that stays so while its process runs."""
    settings = identity.settings
    return NodeState(
        online=online,
        boot_id=identity.boot_id,
        base_model=identity.base_model,
        serves=settings.serving.is_on,
        rank=settings.rank,
        codecs=(settings.codec, *(codec for codec in UPDATE_CODECS if codec != settings.codec)),
        limits=settings.policy.in_words,
    )


def node_state(state: EdgeState) -> NodeState:
    """What this node tells about itself now."""
    versions = {
        "version": state.held.pointer.version if state.held is not None else None,
        "serving": state.served.version if state.served is not None else None,
    }
    return introduction(state.identity, online=True).model_copy(update=versions)


def node_metrics(state: EdgeState, at: float) -> NodeMetrics:
    """The node's progress and counters."""
    training, held_out, served = state.training, state.held_out, state.served_held_out
    return NodeMetrics(
        boot_id=state.identity.boot_id,
        base_version=training.job.start.pointer.version if training is not None else None,
        step=training.step if training is not None else 0,
        steps=state.identity.settings.training.steps if training is not None else 0,
        loss=state.last_loss,
        updates_sent=state.updates_sent,
        updates_accepted=state.updates_accepted,
        updates_rejected=state.updates_rejected,
        outbox=len(state.outbox),
        idle=learning.reason_to_wait(state, at),
        held_out_loss=held_out.loss if held_out is not None else None,
        held_out_version=held_out.version if held_out is not None else None,
        held_out_examples=held_out.examples if held_out is not None else 0,
        served_loss=served.loss if served is not None else None,
        served_loss_version=served.version if served is not None else None,
        served_loss_examples=served.examples if served is not None else 0,
    )


def _handle(state: EdgeState, event: Event) -> tuple[EdgeState, Effects]:
    match event:
        case Heard():
            return _hear(state, event)
        case BrokerConnected(max_packet_size=limit):
            return _connect(state, event.at, limit), (Note("connected to the broker"),)
        case BrokerLost(reason=reason):
            return replace(state, connected=False), (Warn(reason),)
        case LayoutDescribed(layout=layout):
            return _learn_layout(state, layout)
        case HeldOutMeasured():
            return learning.on_held_out(state, event), ()
        case MeasuringEnded():
            return learning.on_measuring_ended(state, event), ()
        case ServedMeasured():
            return release.on_measured(state, event), ()
        case StepTrained():
            return learning.on_step(state, event)
        case TrainingFinished():
            return learning.on_finished(state, event)
        case TrainingFailed():
            return learning.on_failed(state, event)
        case AdapterTried():
            return release.on_tried(state, event)
        case VersionArrived():
            return _both(
                state, lambda state: fetch.on_arrived(state, event), lambda state: release.on_arrived(state, event)
            )
        case ReleaseRecalled():
            return release.on_recalled(state, event)
        case ConditionsRead(conditions=conditions):
            return replace(state, conditions=conditions), ()
        case HandedOver():
            return delivery.on_handed_over(state, event), ()
        case Ticked():
            return state, ()


def _connect(state: EdgeState, at: float, max_packet_size: int | None) -> EdgeState:
    fetch, release_fetch = (download.reconnected(one, at) for one in (state.fetch, state.release_fetch))
    state = replace(state, max_packet_size=max_packet_size, fetch=fetch, release_fetch=release_fetch)
    return delivery.connected(state, at)


def _hear(state: EdgeState, message: Heard) -> tuple[EdgeState, Effects]:
    """Whatever a message says: what cannot be understood is counted and otherwise changes nothing."""
    if not message.payload:  # a retained message was deleted
        return state, ()
    address = topics.parse(state.identity.federation, message.topic)
    if address is None:
        return _ignore(state, f"nothing is expected on {message.topic[:200]!r}")
    try:
        payload = signatures.open_message(state, address, message)
        if stale := signatures.expired(state, address, payload, message.wall_ns):
            return state, (Warn(stale),)
    except Uncertified as fault:
        state = signatures.keep_for_later(state, address, message)
        waits_for_the_first = state.trust is not None and state.trust.certificate is None
        return (state, ()) if waits_for_the_first else _ignore(state, str(fault))
    except InvalidMessage as fault:
        return _ignore(state, str(fault))
    return _believe(signatures.fresh(state, address, payload, message), address, message, payload)


def _believe(state: EdgeState, address: topics.Address, message: Heard, payload: bytes) -> tuple[EdgeState, Effects]:
    """What a message says, once it is known to be from whom it should be."""
    at = message.at
    try:
        match address:
            case topics.GlobalKeys():
                return _on_certificate(state, message)
            case topics.GlobalHead():
                return fetch.on_head(delivery.head_heard(state, at), at, payload)
            case topics.GlobalRelease():
                return release.on_release(state, payload)
            case topics.GlobalManifestOf(version):
                return _both(
                    state,
                    lambda state: fetch.on_manifest(state, at, version, payload),
                    lambda state: release.on_manifest(state, at, version, payload),
                )
            case topics.GlobalChunk(version, index):
                return _both(
                    state,
                    lambda state: fetch.on_chunk(state, at, version, index, payload),
                    lambda state: release.on_chunk(state, at, version, "head", index, payload),
                )
            case topics.GlobalAverageChunk(version, index):
                return release.on_chunk(state, at, version, "average", index, payload)
            case topics.CoordinatorStateOf():
                return _on_terms(state, at, CoordinatorState.from_bytes(payload))
            case topics.ReceiptFor(node) if node == state.identity.settings.node:
                return delivery.on_receipt(state, at, payload)
        return _ignore(state, f"nothing is expected on {message.topic[:200]!r}")
    except (InvalidMessage, CorruptChunk) as fault:
        return _ignore(state, str(fault))


def _on_certificate(state: EdgeState, message: Heard) -> tuple[EdgeState, Effects]:
    """Believe a key, and hear again what came before its certificate."""
    state, effects, waiting = signatures.on_certificate(state, message)
    for kept in waiting:
        state, more = _hear(state, kept)
        effects += more
    return state, effects


def _both(state: EdgeState, *courses: Callable[[EdgeState], tuple[EdgeState, Effects]]) -> tuple[EdgeState, Effects]:
    """Head and release may be of one version: a message that is false for one may be true for the other."""
    effects: Effects = ()
    for take in courses:
        try:
            state, more = take(state)
        except (InvalidMessage, CorruptChunk) as fault:
            state, more = _ignore(state, str(fault))
        effects += more
    return state, effects


def _ignore(state: EdgeState, why: str) -> tuple[EdgeState, Effects]:
    state = replace(state, ignored=state.ignored + 1)
    # the 1st, 2nd, 4th, 8th ...: a flood of garbage must not become a flood of lines
    loud = state.ignored & (state.ignored - 1) == 0
    return state, (Warn(f"ignored a message ({state.ignored} so far): {why}"),) if loud else ()


def _on_terms(state: EdgeState, at: float, terms: CoordinatorState) -> tuple[EdgeState, Effects]:
    """Take part on the coordinator's terms, if our base model is the federation's."""
    known = state.terms
    if terms == known:
        return state, ()
    if state.trust is not None and known is not None and terms.epoch < known.epoch and terms.boot_id != known.boot_id:
        return _ignore(state, f"the terms of epoch {terms.epoch} are older than those of epoch {known.epoch}")
    if terms.base_model != state.identity.base_model:
        return state, (Stop(_other_base_model(state, terms)),)
    effects: Effects = (RememberTerms(terms), *_presence(known, terms))
    if known is None or (known.lora, known.node_ranks) != (terms.lora, terms.node_ranks):
        effects += _foreign_rank(state.identity, terms)
    if terms.online and (known is None or known.boot_id != terms.boot_id or not known.online):
        state = delivery.coordinator_returned(state, at)
    state = replace(state, terms=terms)
    if state.layout is not None and state.layout.lora == terms.lora:
        state, stop = _learn_layout(state, state.layout)
        return state, effects + stop
    state, aborted = learning.abort(state)
    nothing = replace(state, layout=None, held=None, served=None, proven=None, earlier=None, refused=None)
    return nothing, (*effects, *aborted, DescribeLayout(terms.lora))


def _learn_layout(state: EdgeState, layout: Layout) -> tuple[EdgeState, Effects]:
    terms = state.terms
    if terms is None or layout.lora != terms.lora:
        return state, ()  # the terms have changed since we asked
    if layout.digest != terms.layout:
        return state, (Stop(_other_layout(layout, terms)),)
    return replace(state, layout=layout), ()


def _settle(state: EdgeState, at: float) -> tuple[EdgeState, Effects]:
    """Nobody waits for the result of a job once the last version is out."""
    finished = state.terms is not None and state.terms.finished
    return learning.abort(state) if finished and state.training is not None else (state, ())


def _announce(before: EdgeState, state: EdgeState, event: Event) -> tuple[EdgeState, Effects]:
    """Publish what changed for others to see; mere progress at most twice a second."""
    if not state.connected:
        return state, ()
    news = list[Effect]()
    arrived = isinstance(event, BrokerConnected)
    if arrived or node_state(state) != node_state(before):
        news.append(PublishState(node_state(state)))
    changed = arrived or node_metrics(state, event.at) != node_metrics(before, event.at)
    if changed and (not isinstance(event, StepTrained) or event.at - state.metrics_at >= PROGRESS_EVERY_S):
        news.append(PublishMetrics(node_metrics(state, event.at)))
        state = replace(state, metrics_at=event.at)
    return state, tuple(news)


def _presence(known: CoordinatorState | None, terms: CoordinatorState) -> Effects:
    if known is not None and (known.online, known.finished) == (terms.online, terms.finished):
        return ()
    if terms.finished:
        return (Note("the federation is finished: no more training"),)
    if terms.online:
        return (Note(f"the coordinator is online: strategy {terms.strategy}, base model {terms.base_model_name}"),)
    return (Warn("the coordinator is offline; training goes on, and updates wait in the outbox"),)


def _foreign_rank(identity: Identity, terms: CoordinatorState) -> Effects:
    """What to do about a rank that would be refused, said before anything is trained."""
    if learning.is_taken(identity.settings.rank, terms):
        return ()
    ranks = " or ".join(map(str, sorted({terms.lora.rank, *(terms.node_ranks or ())})))
    text = (
        f"this node does not train: edge.rank is {identity.settings.rank}, and federation {identity.federation} takes "
        f"rank {ranks}. Set edge.rank to one of these, or have the other added to coordinator.node_ranks"
    )
    return (Warn(text),)


def _other_base_model(state: EdgeState, terms: CoordinatorState) -> str:
    return (
        f"this node's base model is {state.identity.base_model}, but the federation {state.identity.federation} trains "
        f"{terms.base_model_name} with digest {terms.base_model}. Name that model under [base_model] in this node's "
        "configuration and start it again"
    )


def _other_layout(layout: Layout, terms: CoordinatorState) -> str:
    return (
        f"the adapter layout is {layout.digest} here, but {terms.layout} at the coordinator, although base model and "
        "LoRA settings agree. Install the same release of alignfed on both and start this node again"
    )
