"""What an operator sees: one value, made from state, history and fleet. Page, metrics and command line are views of it.

Times are nanoseconds since 1970, losses nats per answer token, shares fractions of one. Pure: whoever makes a Status
says what time it is.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from coordinator.equations import staleness
from coordinator.privacy.accounting import epsilon
from coordinator.questions import Kind
from coordinator.state import FederationConfig, FederationState
from coordinator.trust.ledger import NodeLedger
from coordinator.watch.fleet import Fleet, NodeHeard
from coordinator.watch.history import KEPT_VERSIONS, History, LastUpdate, NodeHistory, VersionMade, is_measured
from schemas.messages import IdleReason, Loss, NodeMetrics, ReceiptStatus, ReleaseReport, Variant

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Liveness = Literal["online", "offline", "unknown"]
Verdict = Literal["served", "turned_down", "not_judged", "passed_over", "waits"]
Stage = Literal["anchor", "alignment", "gate"]
Use = Literal["served", "head"]  # of a version: to answer with, or to train from
USES: tuple[Use, ...] = get_args(Use)
STAGES: Mapping[Kind, Stage] = {"anchor": "anchor", "aligned": "alignment", "losses": "gate"}


class Value(BaseModel):
    """Base of all parts of a status: immutable, and nothing in it that its schema does not name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HeldOut(Value):
    """How well a version answers what a node never trains on, by the node's own word."""

    version: Count
    loss: Loss
    examples: Count = Field(description="that it is the mean of; of fewer than 8 it says little")


class Fairness(Value):
    """Held-out losses of the nodes that are online, each on its own examples."""

    nodes: Count = Field(description="that have said one")
    mean: Loss
    best: Loss
    best_node: str
    worst: Loss
    worst_node: str


class UpdateStatus(Value):
    """A node's newest update, and what has become of it."""

    update_id: str
    at_ns: int = Field(description="when the coordinator had all of it")
    status: ReceiptStatus
    base_version: Count
    version: Count | None = Field(description="that it went into; none while it waits, or if it was refused")
    loss: float = Field(description="of the node's own training")
    reason: str | None = Field(description="why it was refused")


class NodeStatus(Value):
    """One node: what it says of itself, and what the coordinator has counted."""

    node: str
    liveness: Liveness = Field(description="unknown: nothing was heard of it, as when nobody listens")
    heard_at_ns: int | None = Field(description="when it, or the broker for it, last said something")
    version: Count | None = Field(description="that it holds, by its own word")
    serving: Count | None = Field(description="version that it serves, by its own word; none if it only trains")
    behind: Count | None = Field(description="versions between the head and the one that it holds")
    training_from: Count | None = Field(description="version that it trains from now; none while it rests")
    step: Count
    steps: Count
    loss: float | None = Field(description="of its last training step")
    outbox: Count | None = Field(description="updates that wait there for their receipt")
    idle: IdleReason | None = Field(description="why it does not train now, by its own word; none while it does")
    held_out: Mapping[Use, HeldOut] = Field(description="of what it serves, and of the head that it trained from last")
    serves: bool | None = Field(description="whether it answers questions, by its own word")
    rank: Count | None = Field(description="LoRA rank that it trains at, by its own word")
    codecs: tuple[str, ...] = Field(description="that it can send updates in, its owner's choice first")
    limits: str | None = Field(description="what has to be so before it trains, as its owner has it, in words")
    participation: Count = Field(description="updates accepted since the federation began")
    contributions: Count = Field(description=f"updates in the last {KEPT_VERSIONS} versions")
    contribution_share: Share = Field(description="those, as a share of all updates in these versions")
    weight_share: Share = Field(description="the same by weight")
    staleness: float | None = Field(description="mean over those updates")
    waiting: Count = Field(description="accepted updates that are in no version yet")
    incomplete: Count = Field(description="updates of which parts are missing")
    refusals: Mapping[str, Count] = Field(description="by cause")
    refused_in_a_row: Count = Field(description="since the last one that was accepted")
    quarantine: str | None = Field(description="why the operator lets nothing be taken from it")
    epsilon: float | None = Field(
        description="at the terms' delta, of all its updates in versions; none: nothing is promised"
    )
    first_version: Count | None = Field(description="the head when its first update was accepted")
    last_update: UpdateStatus | None


class VersionStatus(Value):
    """One global version: what it was made of, what was measured, and what was decided."""

    version: Count
    digest: str
    created_at_ns: int
    strategy: str
    updates: Count
    nodes: Count = Field(description="different nodes among them")
    staleness: Count = Field(description="of the stalest of them")
    groups: tuple[Count, ...] = Field(description="updates of each base version, oldest first")
    node_loss: float | None = Field(description="mean of the nodes' own training losses")
    anchor_before: Loss | None = Field(description="calibration loss at the anchor's first step")
    anchor_after: Loss | None = Field(description="and at its last")
    gate_before: Loss | None = Field(description="calibration loss of what was served until then")
    gate_after: Loss | None = Field(description="and of this version's candidate")
    verdict: Verdict = Field(description="passed_over: a newer one was judged in its place; waits: not decided yet")


class ReleaseStatus(Value):
    """What nodes serve."""

    version: Count
    variant: Variant
    judged: Count = Field(description="the last version on which it was decided")
    loss: Loss | None = Field(description="its calibration loss when it was taken")


class GroupStatus(Value):
    """Updates of one base version that wait for the next version."""

    base_version: Count
    staleness: Count
    updates: Count


class ProcessStatus(Value):
    """The coordinator's process; none of it outlives the process."""

    boot_id: str
    started_at_ns: int
    connected: bool = Field(description="to the broker")
    messages_in: Count
    bytes_in: Count = Field(description="of payloads from the broker")
    messages_out: Count
    bytes_out: Count = Field(description="of payloads to the broker")
    publications_waiting: Count = Field(description="until the broker takes or acknowledges them")
    questions_waiting: Count = Field(description="to the base model, the one in work included")
    journal_bytes: Count


class Alarm(Value):
    """Something that a person should look at, in a sentence."""

    kind: str
    node: str | None = None
    text: str


class Status(Value):
    """All that an operator sees of a federation at one moment."""

    schema_version: Literal[1] = 1
    at_ns: int
    federation: str
    base_model: str
    strategy: str
    epoch: Count
    finished: bool
    head: Count = Field(description="version that nodes train from")
    head_digest: str
    head_at_ns: int = Field(description="when it was made")
    release: ReleaseStatus
    process: ProcessStatus | None = Field(description="none when it is read from a data folder")
    waiting: tuple[GroupStatus, ...]
    in_the_making: Count = Field(description="updates of the version that is being made")
    incomplete_bytes: Count = Field(description="held of updates of which parts are missing")
    nodes: tuple[NodeStatus, ...] = Field(description="by name")
    fairness: Mapping[Use, Fairness] = Field(description="held-out losses of what nodes serve, and train from")
    versions: tuple[VersionStatus, ...] = Field(description=f"the newest {KEPT_VERSIONS}, oldest first")
    staleness: Mapping[int, Count] = Field(description="updates that went into versions, by their staleness")
    group_sizes: Mapping[int, Count] = Field(description="groups of one base version in versions, by their updates")
    gate: Mapping[Literal["taken", "turned_down"], Count] = Field(description="measured decisions")
    refusals: Mapping[str, Count] = Field(description="updates that were refused, by cause")
    dropped: Mapping[str, Count] = Field(description="messages that got no answer, by reason")
    model_seconds: Mapping[Stage, float] = Field(description="processor time of the base model")
    alarms: tuple[Alarm, ...] = ()

    def node(self, name: str) -> NodeStatus | None:
        """One node; None for one that is not known."""
        return next((node for node in self.nodes if node.node == name), None)


@dataclass(frozen=True)
class Facts:
    """Everything that a status is made from; all of it immutable, so that another thread may read it."""

    state: FederationState
    history: History
    fleet: Fleet = field(default_factory=dict)
    process: ProcessStatus | None = None
    turned_at_ns: int = 0  # when its loop last came by


def status_of(facts: Facts, now_ns: int) -> Status:
    """The status without its alarms, which `alarms.with_alarms` adds."""
    state, history, nodes = facts.state, facts.history, _nodes(facts)
    newest = history.versions[-1].manifest
    return Status(
        at_ns=now_ns,
        federation=state.config.federation,
        base_model=state.config.base_model_name,
        strategy=state.config.strategy.name,
        epoch=state.epoch,
        finished=state.finished,
        head=state.head.version,
        head_digest=newest.digest,
        head_at_ns=newest.created_at_ns,
        release=_release(state.release, history),
        process=facts.process,
        waiting=tuple(
            GroupStatus(
                base_version=group.base_version,
                staleness=staleness(state.head.version, group.base_version),
                updates=len(group.updates),
            )
            for group in state.buffer.groups
        ),
        in_the_making=len(state.pending.flush.buffer.updates) if state.pending else 0,
        incomplete_bytes=state.partial_bytes,
        nodes=nodes,
        fairness={use: found for use in USES if (found := _fairness(nodes, use)) is not None},
        versions=tuple(_version(made, history, state.release) for made in history.versions),
        staleness=dict(sorted(history.staleness.items())),
        group_sizes=dict(sorted(history.group_sizes.items())),
        gate={"taken": history.gate.get(True, 0), "turned_down": history.gate.get(False, 0)},
        refusals=dict(sorted(history.refusals.items())),
        dropped=dict(sorted(state.dropped.items())),
        model_seconds={stage: history.seconds.get(kind, 0.0) for kind, stage in STAGES.items()},
    )


def _nodes(facts: Facts) -> tuple[NodeStatus, ...]:
    state, history = facts.state, facts.history
    parts = _Contributions(history)
    waiting = Counter(update.node for update in state.buffer.updates)
    if state.pending:
        waiting.update(update.node for update in state.pending.flush.buffer.updates)
    names = sorted({*state.nodes, *history.nodes, *facts.fleet})
    return tuple(
        _node(
            name,
            state.head.version,
            state.nodes.get(name, NodeLedger()),
            history.nodes.get(name, NodeHistory()),
            facts.fleet.get(name),
            parts,
            waiting[name],
            state.config,
        )
        for name in names
    )


def _node(
    name: str,
    head: int,
    ledger: NodeLedger,
    past: NodeHistory,
    heard: NodeHeard | None,
    parts: "_Contributions",
    waiting: int,
    config: FederationConfig,
) -> NodeStatus:
    said = heard.state if heard else None
    metrics = heard.metrics if heard else None
    held = said.version if said else None
    contributions = parts.updates[name]
    return NodeStatus(
        node=name,
        liveness="unknown" if said is None else "online" if said.online else "offline",
        heard_at_ns=heard.at_ns if heard else None,
        version=held,
        serving=said.serving if said else None,
        behind=None if held is None else max(0, head - held),
        training_from=metrics.base_version if metrics else None,
        step=metrics.step if metrics else 0,
        steps=metrics.steps if metrics else 0,
        loss=metrics.loss if metrics else None,
        outbox=metrics.outbox if metrics else None,
        idle=metrics.idle if metrics else None,
        held_out=_held_out(metrics) if metrics else {},
        serves=said.serves if said else None,
        rank=(said.rank or config.layout.lora.rank) if said else None,
        codecs=said.codecs if said else (),
        limits=said.limits if said else None,
        participation=ledger.participation,
        contributions=contributions,
        contribution_share=contributions / (parts.updates.total() or 1),
        weight_share=parts.weights.get(name, 0.0) / (sum(parts.weights.values()) or 1.0),
        staleness=parts.staleness[name] / contributions if contributions else None,
        waiting=waiting,
        incomplete=len(ledger.partial),
        refusals=dict(sorted(past.refusals.items())),
        refused_in_a_row=past.refused_in_a_row,
        quarantine=ledger.quarantine,
        epsilon=epsilon(ledger.privacy_loss, config.privacy.delta) if config.privacy else None,
        first_version=past.first_version,
        last_update=_last(past.last),
    )


def _held_out(metrics: NodeMetrics) -> Mapping[Use, HeldOut]:
    said: Mapping[Use, tuple[float | None, int | None, int]] = {
        "served": (metrics.served_loss, metrics.served_loss_version, metrics.served_loss_examples),
        "head": (metrics.held_out_loss, metrics.held_out_version, metrics.held_out_examples),
    }
    return {
        use: HeldOut(version=version, loss=loss, examples=examples)
        for use, (loss, version, examples) in said.items()
        if loss is not None and version is not None
    }


def _fairness(nodes: tuple[NodeStatus, ...], use: Use) -> Fairness | None:
    """None where nobody has said a loss. Of equal nodes the first by name is named."""
    losses = {n.node: n.held_out[use].loss for n in nodes if n.liveness == "online" and use in n.held_out}
    if not losses:
        return None
    best, worst = min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)
    return Fairness(
        nodes=len(losses),
        mean=fmean(losses.values()),
        best=losses[best],
        best_node=best,
        worst=losses[worst],
        worst_node=worst,
    )


class _Contributions:
    """What each node has in the kept versions: updates, absolute weights, stalenesses added up."""

    def __init__(self, history: History) -> None:
        self.updates = Counter[str]()
        self.weights: dict[str, float] = {}
        self.staleness = Counter[str]()
        for made in history.versions:
            for update in made.manifest.inputs:
                self.updates[update.node] += 1
                self.weights[update.node] = self.weights.get(update.node, 0.0) + abs(update.weight)
                self.staleness[update.node] += staleness(made.manifest.version - 1, update.base_version)


def _last(last: LastUpdate | None) -> UpdateStatus | None:
    return None if last is None else UpdateStatus.model_validate(vars(last))


def _version(made: VersionMade, history: History, release: ReleaseReport) -> VersionStatus:
    manifest = made.manifest
    decision = history.decisions.get(manifest.version)
    groups = Counter(update.base_version for update in manifest.inputs)
    return VersionStatus(
        version=manifest.version,
        digest=manifest.digest,
        created_at_ns=manifest.created_at_ns,
        strategy=manifest.strategy,
        updates=len(manifest.inputs),
        nodes=len({update.node for update in manifest.inputs}),
        staleness=max((staleness(manifest.version - 1, base) for base in groups), default=0),
        groups=tuple(groups[base] for base in sorted(groups)),
        node_loss=made.node_loss,
        anchor_before=manifest.anchor.loss_before if manifest.anchor else None,
        anchor_after=manifest.anchor.loss_after if manifest.anchor else None,
        gate_before=decision.before if decision else None,
        gate_after=decision.candidate if decision else None,
        verdict=verdict(manifest.version, decision, release),
    )


def verdict(version: int, decision: ReleaseReport | None, release: ReleaseReport) -> Verdict:
    """What was decided on a version, by the decision on it, if there is one, and the newest decision."""
    if decision is None:
        return "passed_over" if release.judged > version else "waits"
    if not decision.is_taken:
        return "turned_down"
    return "served" if is_measured(decision) else "not_judged"


def _release(release: ReleaseReport, history: History) -> ReleaseStatus:
    taken = history.decisions.get(release.version)
    return ReleaseStatus(
        version=release.version,
        variant=release.variant,
        judged=release.judged,
        loss=taken.candidate if taken is not None and taken.is_taken else None,
    )
