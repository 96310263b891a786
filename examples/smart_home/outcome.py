"""What a run of the demo came to, as one value: the report. Every number was measured or is in the journal.

It writes no files and knows neither terminal nor page.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from coordinator.equations import freshness
from coordinator.journal import UpdateRow
from coordinator.strategies import Strategy
from coordinator.strategies.buffered import Buffered
from examples.smart_home.recipe import Recipe
from schemas.messages import AnchorReport, GlobalManifest, GroupReport, ReleaseReport

Choice = Literal["head", "average", "before"]
TAKEN = ("accepted", "aggregated")


class Value(BaseModel):
    """Base of the report's parts: immutable, nothing unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HeldOutScore(Value):
    """How the model did on commands that no node has seen."""

    loss: float = Field(description="mean over answer tokens, nats, full vocabulary")
    intent_accuracy: float = Field(description="share of generated answers that name the right intent")
    exact_match: float = Field(description="share of generated answers that are right to the letter")
    examples: int


class HeldOut(Value):
    """The score of the base model, and of the same model with what the nodes serve in the end."""

    before: HeldOutScore
    after: HeldOutScore


class NodeOutcome(Value):
    """What one node gave to the federation."""

    node: str
    slowdown: float
    examples: int = Field(description="private examples it holds")
    intents: dict[str, int] = Field(description="its private examples by intent, most frequent first")
    updates_sent: int
    updates_accepted: int
    updates_used: int = Field(description="accepted updates that went into a version")
    mean_staleness: float | None = Field(description="versions behind when used; none when nothing was used")
    update_share: float = Field(description="its share of all updates used")
    weight_share: float = Field(description="its share of the sum of all absolute weights")
    fresh_share: float | None = Field(description="the same if freshness alone decided; none where it has no say")


class InputOutcome(Value):
    """One update in a version."""

    node: str
    update_id: str
    base_version: int
    staleness: int
    examples: int
    weight: float = Field(description="absolute factor of its delta in the step")
    fresh_weight: float | None = Field(description="the same if freshness alone decided; none where it has no say")


class VersionOutcome(Value):
    """One global version with its lineage, and how it was made."""

    version: int
    digest: str
    inputs: tuple[InputOutcome, ...]
    groups: tuple[GroupReport, ...] = Field(description="its inputs by base version, where the strategy groups them")
    anchor: AnchorReport | None = Field(description="the coordinator's own steps; none where it took none")
    decision: ReleaseReport | None = Field(description="what nodes served then, and why; none if it was passed over")
    served: Choice = Field(description="the same in a word: its head, its running average, or what was before")
    model_seconds: dict[str, float] = Field(description="processor time of the coordinator's base model, by stage")
    published_at: datetime
    seconds: float = Field(description="after the first version")


class UpdateOutcome(Value):
    """One accepted update on the clock of the run, which starts with the first version."""

    node: str
    base_version: int
    version: int | None = Field(description="the version it went into")
    loss: float
    started: float = Field(description="seconds, when its training began")
    received: float = Field(description="seconds, when the coordinator journaled it")


class Wire(Value):
    """Payload bytes of accepted updates as they were sent, and what the same deltas take as 32-bit floats."""

    bytes: int
    bytes_fp32: int
    updates: int


class VersionLoss(Value):
    """Held-out loss while this version was the newest, on the first `examples` of the held-out commands."""

    version: int
    loss: float = Field(description="of what nodes served")
    head_loss: float = Field(description="of the version itself, from which nodes trained")
    examples: int


class Sample(Value):
    """One held-out command with the expected answer and both models' answers."""

    prompt: str
    expected: str
    before: str
    after: str


class LiveAnswer(Value):
    """What a home answered to a held-out command while it learned."""

    version: int | None = Field(description="of the adapter that made the answer; none for the base model alone")
    prompt: str
    expected: str
    answer: str
    asked: float = Field(description="seconds after the first version")
    waited: float = Field(description="seconds until the answer was whole")


class Interview(Value):
    """The held-out commands that a home was asked over MQTT during the run."""

    node: str
    answers: tuple[LiveAnswer, ...]
    unanswered: int = Field(description="questions without an answer since the first that had one")


class BaseModelFacts(Value):
    """Which frozen model was adapted, and how large the adapter is."""

    name: str
    digest: str
    adapter_parameters: int


class Report(Value):
    """Everything about one run; `report.json` is this value."""

    held_out: HeldOut
    nodes: tuple[NodeOutcome, ...]
    versions: tuple[VersionOutcome, ...]
    wire: Wire
    seconds: float
    peak_rss_mb: float
    peak_memory_is: str = Field(description="PSS: shared pages counted once; RSS: in every process")
    broker: str
    strategy: str
    seed: int
    journal: Path
    folder: Path = Field(description="of the run, as seen from where it was started")
    command: str
    created_at: datetime
    base_model: BaseModelFacts
    recipe: Recipe
    losses: tuple[VersionLoss, ...]
    updates: tuple[UpdateOutcome, ...]
    samples: tuple[Sample, ...]
    interview: Interview = Field(description="what a home answered while it learned")
    restarts: dict[str, int] = Field(description="processes that had to be started again, and how often")
    late: int = Field(description="updates that were too stale, or came after the last version")
    rejected: int = Field(description="updates that were rejected for what they were")
    release: ReleaseReport = Field(description="what nodes serve in the end")

    @property
    def staleness(self) -> Counter[int]:
        """How many used updates were how many versions behind."""
        return Counter(entry.staleness for version in self.versions for entry in version.inputs)

    @property
    def choices(self) -> Counter[Choice]:
        """How often the head, the average, or what was before came to be served."""
        return Counter(version.served for version in self.versions[1:])

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages in which the coordinator's base model worked, by name."""
        return tuple(sorted({stage for version in self.versions for stage in version.model_seconds}))

    @property
    def is_weighed(self) -> bool:
        """Whether the coordinator did more than to average: it grouped, anchored or chose."""
        return bool(self.judged) or any(version.groups or version.anchor for version in self.versions)

    @property
    def judged(self) -> tuple[VersionOutcome, ...]:
        """The versions that the gate's commands decided on."""
        return tuple(v for v in self.versions if v.decision and {v.decision.candidate, v.decision.before} != {None})

    @property
    def missing(self) -> tuple[str, ...]:
        """What keeps this run from being a success, in sentences; empty when it is one."""
        return (
            *_if(
                self.versions[-1].version < self.recipe.versions,
                f"version {self.recipe.versions} was not reached; the last one is {self.versions[-1].version}",
            ),
            *(f"no update of {node.node} was accepted" for node in self.nodes if node.updates_accepted == 0),
        )


class NodeFacts(Value):
    """What is known of a node before the run, and how many updates it was seen to send."""

    node: str
    slowdown: float
    intents: dict[str, int]
    updates_sent: int


def accepted_by_node(updates: Sequence[UpdateRow]) -> Mapping[str, int]:
    """How many updates of each node the coordinator accepted, by its journal."""
    return Counter(update.node for update in updates if update.status in TAKEN)


def count_of(updates: Sequence[UpdateRow], status: str) -> int:
    """How many updates ended with this status."""
    return sum(update.status == status for update in updates)


def wire_of(updates: Sequence[UpdateRow], parameters: int) -> Wire:
    """Payload bytes of the accepted updates, and of the same deltas of so many parameters as 32-bit floats."""
    taken = [update for update in updates if update.status in TAKEN]
    sent = sum(update.manifest_size + update.body_size for update in taken)
    return Wire(bytes=sent, bytes_fp32=4 * parameters * len(taken), updates=len(taken))


def update_outcomes(
    updates: Sequence[UpdateRow], seconds_trained: Mapping[str, float], start: datetime
) -> tuple[UpdateOutcome, ...]:
    """Accepted updates on the run's clock; a training whose duration was not seen counts as an instant."""
    start_s = start.timestamp()
    return tuple(
        UpdateOutcome(
            node=update.node,
            base_version=update.base_version,
            version=update.version,
            loss=update.loss,
            started=update.received_at_ns / 1e9 - start_s - seconds_trained.get(update.update_id, 0.0),
            received=update.received_at_ns / 1e9 - start_s,
        )
        for update in updates
        if update.status in TAKEN
    )


def version_outcomes(
    manifests: Sequence[GlobalManifest], decisions: Mapping[int, ReleaseReport], strategy: Strategy
) -> tuple[VersionOutcome, ...]:
    """The versions as the report tells them, oldest first; the strategy is the one that made them."""
    return tuple(
        VersionOutcome(
            version=manifest.version,
            digest=manifest.digest,
            inputs=tuple(
                InputOutcome(
                    node=entry.node,
                    update_id=entry.update_id,
                    base_version=entry.base_version,
                    staleness=_staleness(manifest, entry.base_version),
                    examples=entry.examples,
                    weight=entry.weight,
                    fresh_weight=_fresh_weight(manifest, entry.base_version, strategy),
                )
                for entry in manifest.inputs
            ),
            groups=manifest.groups,
            anchor=manifest.anchor,
            decision=(decision := decisions.get(manifest.version)),
            served=decision.variant if decision and decision.is_taken else "before",
            model_seconds=_model_seconds(manifest, decision),
            published_at=datetime.fromtimestamp(manifest.created_at_ns / 1e9, UTC),
            seconds=(manifest.created_at_ns - manifests[0].created_at_ns) / 1e9,
        )
        for manifest in manifests
    )


def _model_seconds(manifest: GlobalManifest, decision: ReleaseReport | None) -> dict[str, float]:
    stages = {
        "align": sum(group.seconds for group in manifest.groups),
        "anchor": manifest.anchor.seconds if manifest.anchor else 0.0,
        "gate": decision.seconds if decision else 0.0,
    }
    return {stage: seconds for stage, seconds in stages.items() if seconds}


def _staleness(manifest: GlobalManifest, base_version: int) -> int:
    """An update meets the version before the one it becomes part of."""
    return manifest.version - 1 - base_version


def _fresh_weight(manifest: GlobalManifest, base_version: int, strategy: Strategy) -> float | None:
    """freshness / B of what the anchor leaves of the step: no say to participation, norms or a node's cap."""
    if not isinstance(strategy, Buffered):
        return None
    step = strategy.step - (manifest.anchor.weight if manifest.anchor else 0.0)
    fresh = freshness(_staleness(manifest, base_version), strategy.staleness_exponent)
    return step * fresh / len(manifest.inputs)


def node_outcomes(
    facts: Sequence[NodeFacts], accepted: Mapping[str, int], versions: Sequence[VersionOutcome]
) -> tuple[NodeOutcome, ...]:
    """What each node gave; `accepted` counts accepted updates by node."""
    used = [entry for version in versions for entry in version.inputs]
    return tuple(_node_outcome(node, accepted.get(node.node, 0), used) for node in facts)


def _node_outcome(facts: NodeFacts, accepted: int, used: Sequence[InputOutcome]) -> NodeOutcome:
    own = [entry for entry in used if entry.node == facts.node]
    return NodeOutcome(
        node=facts.node,
        slowdown=facts.slowdown,
        examples=sum(facts.intents.values()),
        intents=facts.intents,
        updates_sent=max(facts.updates_sent, accepted),
        updates_accepted=accepted,
        updates_used=len(own),
        mean_staleness=sum(entry.staleness for entry in own) / len(own) if own else None,
        update_share=len(own) / len(used) if used else 0.0,
        weight_share=_share([abs(entry.weight) for entry in own], [abs(entry.weight) for entry in used]),
        fresh_share=_share(_fresh_weights(own), fresh) if (fresh := _fresh_weights(used)) else None,
    )


def _fresh_weights(inputs: Sequence[InputOutcome]) -> list[float]:
    return [entry.fresh_weight for entry in inputs if entry.fresh_weight is not None]


def _share(part: Sequence[float], whole: Sequence[float]) -> float:
    return sum(part) / sum(whole) if sum(whole) else 0.0


def _if(condition: bool, sentence: str) -> tuple[str, ...]:
    return (sentence,) if condition else ()
