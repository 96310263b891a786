"""From a buffer to the next version: begin when it is ready, ask the base model what the strategy asks, publish. Pure.

While the model thinks, updates go on coming into the next buffer. A version in the making is a value: what it is made
of, and the answers so far.
"""

from collections.abc import Mapping
from dataclasses import replace

from coordinator.background import alarms, is_judged, keeps_average, serve_newest, take_background
from coordinator.intake import Objection, Step, drop, receipt, refuse, seconds, with_ledger, without
from coordinator.privacy.noise import losses, protected
from coordinator.questions import MeasuredLosses, Recall, Unanswered, answer_from_bytes, fits
from coordinator.stages import finite
from coordinator.state import Answered, AskModel, Effect, FederationState, Pending, PublishVersion
from coordinator.trust.ledger import Accepted
from coordinator.trust.robust import standings_after
from coordinator.updates import AdapterUpdate, Aggregate, Buffer, Flush, GlobalAdapter
from schemas.adapter import Adapter
from schemas.chunks import describe_adapter
from schemas.codec import CodecError
from schemas.messages import (
    MAX_INPUTS,
    GlobalManifest,
    InvalidMessage,
    ReturnReport,
    VersionInput,
)

DISTRUST = Objection(
    "rejected",
    "distrusted",
    "it turns against what the coordinator's own examples teach, and was left out: check this node's data and training",
)
REMEMBERED_VERSIONS = 100  # for so long after an update would be stale, a late copy is still known as a duplicate


def begin_what_is_ready(state: FederationState, at_ns: int) -> Step:
    """Begin the next version when the strategy or the clock says so, and go on until something has to be asked."""
    effects: tuple[Effect, ...] = ()
    while state.pending is None and _is_ready(state, at_ns):
        updates = state.buffer.updates
        flush = Flush(
            head=state.head,
            buffer=Buffer.of(*updates[:MAX_INPUTS]),  # more cannot be named in a manifest
            anchor=state.anchor,
            bases=state.bases,
            participation={node: ledger.participation for node, ledger in state.nodes.items() if ledger.participation},
            folds=state.config.calibration.folds if state.config.calibration else {},
            standings={node: ledger.standing for node, ledger in state.nodes.items() if ledger.standing},
            anchors=state.anchors,
            probation=state.head.version < state.probation_until,
        )
        rest = Buffer.of(*updates[MAX_INPUTS:])
        state, more = _go_on(replace(state, buffer=rest, pending=Pending(flush)), at_ns)
        effects = (*effects, *more)
    if state.finished and state.buffer.groups:  # the operator has moved the last version
        finished = Objection("stale", "finished", f"the federation is finished with version {state.head.version}")
        updates = state.buffer.updates
        state, more = discard(replace(state, buffer=Buffer()), updates, finished)
        effects = (*effects, *more)
    return state, effects


def take_answer(state: FederationState, event: Answered) -> Step:
    """Go on with the version in the making; an answer that nobody waits for is dropped."""
    asked = next((one for one in state.open_questions if one.id == event.question_id), None)
    if asked is None:
        return drop(state, "answer to no question", str(event.question_id))
    try:
        answer = answer_from_bytes(state.config.layout, event.payload)
    except (InvalidMessage, CodecError) as error:
        return drop(state, "answer that cannot be read", str(error))
    if not fits(answer, asked.question):
        return drop(state, "answer that does not fit its question", str(event.question_id))
    if state.pending is None or asked is not state.pending.asked:
        state, effects = take_background(state, asked, answer)
        if not isinstance(answer, MeasuredLosses) or not alarms(state, answer):
            return state, effects
        state, more = go_back(state, answer, event.at_ns)
        return state, (*effects, *more)
    pending = replace(state.pending, answers=(*state.pending.answers, answer))
    return _go_on(replace(state, pending=pending), event.at_ns)


def ask_anew(state: FederationState) -> Step:
    """Ask again what was asked before a restart."""
    return state, tuple(AskModel(one.id, one.question) for one in state.open_questions)


def go_back(state: FederationState, answer: MeasuredLosses, at_ns: int) -> Step:
    """A version that is what nodes serve, because the newest average is much worse; then updates are on probation."""
    guard = state.config.strategy.release.guard
    assert guard is not None
    served, parent, state = state.served, state.head.digest, take_back(state)
    # soon after the last return, the probation was too short
    lasting = state.head.version < state.probation_until + guard.probation_after(state.returns)
    returns = state.returns + 1 if state.returns and lasting else 1
    head = GlobalAdapter(state.head.version + 1, served.adapter)
    state = replace(advance(state, head, ()), average=served.adapter, anchor=None, returns=returns, turned_down=0)
    state = replace(state, probation_until=head.version + guard.probation_after(returns))
    before, candidate = map(finite, answer.losses)
    returned = ReturnReport(version=served.version, variant=served.variant, candidate=candidate, before=before)
    said = manifest(state, at_ns, parent=parent, returned=returned)
    state, refusals = refuse_outdated(state)
    return state, (PublishVersion(said, head.adapter), *refusals)


def take_back(state: FederationState) -> FederationState:
    """Put a version in the making back into the buffer."""
    if state.pending is None:
        return state
    return replace(state, buffer=Buffer.of(*state.pending.flush.buffer.updates, *state.buffer.updates), pending=None)


def discard(state: FederationState, updates: tuple[AdapterUpdate, ...], objection: Objection) -> Step:
    """No version will be made of these updates: tell their nodes."""
    effects: tuple[Effect, ...] = ()
    for update in updates:
        ledger = state.nodes[update.node]
        late = ledger.late + (objection.kind != "finished")  # as it is counted in `refuse`
        accepted = without(ledger.accepted, update.update_id)
        state = with_ledger(state, update.node, replace(ledger, accepted=accepted, late=late))
        state, more = refuse(state, update.node, update.update_id, objection)
        effects = (*effects, *more)
    return state, effects


def flush_deadline(state: FederationState) -> int | None:
    """When the buffer is aggregated, ready or not, in ns since 1970."""
    timeout_s, oldest_ns = state.config.strategy.timeout_s, state.buffer.oldest_ns
    if timeout_s is None or oldest_ns is None or state.finished or state.pending is not None:
        return None
    return oldest_ns + seconds(timeout_s)


def manifest(
    state: FederationState,
    at_ns: int,
    *,
    parent: str | None = None,
    inputs: tuple[VersionInput, ...] = (),
    aggregate: Aggregate | None = None,
    returned: ReturnReport | None = None,
) -> GlobalManifest:
    """What is said of the newest version; the defaults are those of version 0."""
    config = state.config
    return GlobalManifest(
        epoch=state.epoch,
        version=state.head.version,
        parent=parent,
        base_model=config.base_model,
        lora=config.layout.lora,
        layout=config.layout.digest,
        strategy=config.strategy.name,
        calibration=config.calibration.digest if config.calibration else None,
        inputs=inputs,
        groups=aggregate.groups if aggregate else (),
        anchor=aggregate.anchor if aggregate else None,
        returned=returned,
        release=state.release,
        created_at_ns=at_ns,
        body=describe_adapter(state.head.adapter),
        average=describe_adapter(state.average) if state.average else None,
    )


def _is_ready(state: FederationState, at_ns: int) -> bool:
    if state.finished or not state.buffer.groups:
        return False
    if state.config.privacy is not None and not state.noise_key:
        return False
    deadline = flush_deadline(state)
    return state.config.strategy.is_ready(state.buffer) or (deadline is not None and at_ns >= deadline)


def _go_on(state: FederationState, at_ns: int) -> Step:
    """Make the pending version as far as the answers go: a question, or the version."""
    pending = state.pending
    assert pending is not None
    try:
        aggregate = state.config.strategy.aggregate(pending.flush, Recall(pending.answers))
    except Unanswered as unanswered:
        asked = state.asking(unanswered.question)
        state = replace(state, pending=replace(pending, asked=asked), questions=state.questions + 1)
        return state, (AskModel(asked.id, asked.question),)
    if (terms := state.config.privacy) is not None:
        factors, updates = state.config.strategy.shared_factors, pending.flush.buffer.updates
        aggregate = protected(aggregate, updates, terms, factors, state.noise_key, pending.flush.head.digest)
    return _publish(replace(state, pending=None), pending, aggregate, at_ns)


def _publish(state: FederationState, pending: Pending, aggregate: Aggregate, at_ns: int) -> Step:
    updates = pending.flush.buffer.updates
    if state.anchor is pending.flush.anchor:  # one that came meanwhile is for the version after this
        state = replace(state, anchor=None)
    if not aggregate.adapter.is_finite:
        overflow = Objection("rejected", "overflow", "the updates of this buffer add up to infinite values")
        return discard(state, updates, overflow)
    state = _remember(state, updates, aggregate)
    distrusted = tuple(update for update in updates if update.update_id in aggregate.distrusted)
    state, refusals = discard(state, distrusted, DISTRUST)
    if len(distrusted) == len(updates) and aggregate.anchor is None:
        return state, refusals
    parent, head = state.head.digest, GlobalAdapter(state.head.version + 1, aggregate.adapter)
    inputs = tuple(
        VersionInput(
            node=update.node,
            update_id=update.update_id,
            base_version=update.base_version,
            examples=update.examples,
            weight=weight,
        )
        for update, weight in zip(updates, aggregate.weights, strict=True)
        if update not in distrusted
    )
    state = advance(state, head, tuple(update for update in updates if update not in distrusted))
    state = _spend(state, losses(aggregate, updates, state.config.privacy))
    state, served = (state, ()) if is_judged(state) else serve_newest(state)
    said = manifest(state, at_ns, parent=parent, inputs=inputs, aggregate=aggregate)
    receipts = tuple(receipt(i.node, i.update_id, "aggregated", version=head.version) for i in inputs)
    state, outdated = refuse_outdated(state)
    return state, (PublishVersion(said, head.adapter), *served, *receipts, *refusals, *outdated)


def _remember(state: FederationState, updates: tuple[AdapterUpdate, ...], aggregate: Aggregate) -> FederationState:
    """Note what was measured of each update in its node's standing, in canonical order."""
    if not aggregate.measured:
        return state
    nodes = dict(state.nodes)
    known = {update.node: standing for update in updates if (standing := nodes[update.node].standing)}
    after = standings_after(known, [update.node for update in updates], aggregate.measured)
    return replace(state, nodes=nodes | {node: replace(nodes[node], standing=after[node]) for node in after})


def _spend(state: FederationState, costs: Mapping[str, float]) -> FederationState:
    """Note what a version has cost each node of its privacy; what is published cannot be taken back."""
    nodes = dict(state.nodes)
    for node, cost in costs.items():
        nodes[node] = replace(nodes[node], privacy_loss=nodes[node].privacy_loss + cost)
    return replace(state, nodes=nodes)


def refuse_outdated(state: FederationState) -> Step:
    """Refuse what waits and has become too old: a version was made meanwhile, or there are new terms."""
    waiting = state.buffer.updates
    outdated = tuple(update for update in waiting if update.base_version not in state.digests)
    current = Buffer.of(*(update for update in waiting if update.base_version in state.digests))
    objection = Objection(
        "stale", "stale", f"it became too old while it waited: train from version {state.head.version}"
    )
    return discard(replace(state, buffer=current), outdated, objection)


def advance(state: FederationState, head: GlobalAdapter, updates: tuple[AdapterUpdate, ...]) -> FederationState:
    """The state with `head` as the newest version; it forgets what no update may start from any more."""
    strategy = state.config.strategy
    oldest = head.version - strategy.max_staleness
    nodes = dict(state.nodes)
    for update in updates:
        ledger = nodes[update.node]
        accepted = {**ledger.accepted, update.update_id: Accepted(update.base_version, head.version)}
        nodes[update.node] = replace(ledger, accepted=_since(accepted, oldest - REMEMBERED_VERSIONS))
    adapters = {**state.bases, head.version: head.adapter} if state.config.keeps_base_adapters else {}
    return replace(
        state,
        head=head,
        average=_average(state, head),
        questions=0,
        digests={v: d for v, d in (*state.digests.items(), (head.version, head.digest)) if v >= oldest},
        bases={version: adapter for version, adapter in adapters.items() if version >= oldest},
        nodes=nodes,
    )


def _average(state: FederationState, head: GlobalAdapter) -> Adapter | None:
    """The running average with a new head in it; it begins with the version before."""
    if not keeps_average(state):
        return None
    release = state.config.strategy.release
    return release.average(state.average or state.head.adapter, head.adapter, head.version)


def _since(accepted: Mapping[str, Accepted], oldest: int) -> dict[str, Accepted]:
    """Without the ids of updates that no broker delivers any more; if one does, it is refused as stale."""
    return {id_: known for id_, known in accepted.items() if known.base_version >= oldest}
