"""What a run of the demo came to, as one value: the report. Every number was measured or is in the journal.

It writes no files and knows neither terminal nor page.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from coordinator.journal import UpdateRow
from examples.smart_home.recipe import Recipe
from schemas.messages import GlobalManifest

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
    """The score of the base model, and of the same model with the last version on it."""

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


class InputOutcome(Value):
    """One update in a version."""

    node: str
    update_id: str
    base_version: int
    staleness: int
    examples: int
    weight: float


class VersionOutcome(Value):
    """One global version with its lineage."""

    version: int
    digest: str
    inputs: tuple[InputOutcome, ...]
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
    """Held-out loss with one version, on the first `examples` of the held-out commands."""

    version: int
    loss: float
    examples: int


class Sample(Value):
    """One held-out command with the expected answer and both models' answers."""

    prompt: str
    expected: str
    before: str
    after: str


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
    restarts: dict[str, int] = Field(description="processes that had to be started again, and how often")
    late: int = Field(description="updates that were too stale, or came after the last version")
    rejected: int = Field(description="updates that were rejected for what they were")

    @property
    def staleness(self) -> Counter[int]:
        """How many used updates were how many versions behind."""
        return Counter(entry.staleness for version in self.versions for entry in version.inputs)

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


def version_outcomes(manifests: Sequence[GlobalManifest]) -> tuple[VersionOutcome, ...]:
    """The versions as the report tells them, oldest first."""
    return tuple(
        VersionOutcome(
            version=manifest.version,
            digest=manifest.digest,
            inputs=tuple(
                InputOutcome(
                    node=entry.node,
                    update_id=entry.update_id,
                    base_version=entry.base_version,
                    # the update met the version before the one it became part of
                    staleness=manifest.version - 1 - entry.base_version,
                    examples=entry.examples,
                    weight=entry.weight,
                )
                for entry in manifest.inputs
            ),
            published_at=datetime.fromtimestamp(manifest.created_at_ns / 1e9, UTC),
            seconds=(manifest.created_at_ns - manifests[0].created_at_ns) / 1e9,
        )
        for manifest in manifests
    )


def node_outcomes(
    facts: Sequence[NodeFacts], accepted: Mapping[str, int], versions: Sequence[VersionOutcome]
) -> tuple[NodeOutcome, ...]:
    """What each node gave; `accepted` counts accepted updates by node."""
    used = [entry for version in versions for entry in version.inputs]
    weight = sum(abs(entry.weight) for entry in used)
    return tuple(_node_outcome(node, accepted.get(node.node, 0), used, weight) for node in facts)


def _node_outcome(facts: NodeFacts, accepted: int, used: Sequence[InputOutcome], weight: float) -> NodeOutcome:
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
        weight_share=sum(abs(entry.weight) for entry in own) / weight if weight else 0.0,
    )


def _if(condition: bool, sentence: str) -> tuple[str, ...]:
    return (sentence,) if condition else ()
