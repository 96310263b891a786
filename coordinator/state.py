"""What the coordinator knows, what can happen to it, and what it wants done. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from base_model.settings import TrainingConfig
from coordinator.privacy.terms import PrivacyTerms, is_fitted
from coordinator.questions import Answer, Fold, Question
from coordinator.strategies import Strategy
from coordinator.trust.ledger import NodeLedger, Refusal
from coordinator.updates import AnchorUpdate, Buffer, Flush, GlobalAdapter, Served
from schemas.adapter import Adapter, Layout
from schemas.codec import UPDATE_CODECS
from schemas.faults import first_fault
from schemas.messages import (
    MAX_CHUNK_SIZE,
    GlobalManifest,
    PublicKey,
    Receipt,
    ReleaseReport,
    Sha256,
    UpdateCodecId,
    UpdateManifest,
    Variant,
)
from schemas.topics import Name
from schemas.trust import KeyRing

QuestionId = tuple[int, int]

_MIB = 1 << 20


class Limits(BaseModel):
    """Bounds on what strangers can make the coordinator hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    nodes: int = Field(default=10_000, ge=1, description="distinct nodes that are remembered")
    partial_updates_per_node: int = Field(default=8, ge=1, description="incomplete updates held for one node")
    partial_bytes_per_node: int = Field(default=256 * _MIB, ge=MAX_CHUNK_SIZE, description="memory held for those")
    partial_bytes: int = Field(default=1024 * _MIB, ge=MAX_CHUNK_SIZE, description="memory held for those of all nodes")
    partial_ttl_s: float = Field(default=3600, gt=0, description="an update that is not complete by then is dropped")
    resend_after_s: float = Field(
        default=5, gt=0, description="silence before missing chunks are asked for; it doubles with every question"
    )
    delta_norm: float = Field(default=10_000, gt=0, description="an update with a larger Euclidean norm is refused")
    delta_reach: float = Field(
        default=10_000_000, gt=0, description="so is one that may move the products B A of the head further than this"
    )
    updates_per_version: int = Field(default=32, ge=1, description="of one node, for the version that is being made")
    updates_per_hour: int = Field(default=3600, ge=1, description="of one node, that are decoded")


class CalibrationTerms(BaseModel):
    """The calibration set by its digest and the examples of each fold, and how the anchor is trained on it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    digest: Sha256
    folds: Mapping[Fold, Annotated[int, Field(ge=0)]]
    training: TrainingConfig


class FederationConfig(BaseModel):
    """The terms of a federation. It is the first row of the journal, so a replay needs nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    federation: Name
    base_model: Sha256
    base_model_name: Annotated[str, Field(max_length=500)]
    layout: Layout
    strategy: Strategy
    limits: Limits = Limits()
    final_version: int | None = None
    calibration: CalibrationTerms | None = None
    node_ranks: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = ()
    codecs: Annotated[tuple[UpdateCodecId, ...], Field(min_length=1)] = UPDATE_CODECS  # that updates may come in
    root: PublicKey | None = None  # with it, an update counts only if an enrolled key has signed it
    privacy: PrivacyTerms | None = None  # with it, versions are made of short deltas and noise

    @classmethod
    def from_bytes(cls, payload: bytes) -> Self:
        """The terms from a journal's row; ValueError with the first fault, which is printable."""
        try:
            return cls.model_validate_json(payload)
        except ValidationError as error:
            raise ValueError(first_fault(error).text) from None

    def to_bytes(self) -> bytes:
        """The terms as a line of JSON."""
        return self.model_dump_json().encode()

    @model_validator(mode="after")
    def _can_promise_privacy(self) -> Self:
        if self.privacy is not None and not is_fitted(self.strategy):
            raise ValueError(f"no noise makes the versions of {self.strategy.name}, as it is set, private")
        return self

    @cached_property
    def node_layouts(self) -> Mapping[str, Layout]:
        """The layouts that deltas may have, by digest: the federation's own, and those of the other ranks."""
        layouts = (self.layout, *map(self.layout.with_rank, self.node_ranks))
        return {layout.digest: layout for layout in layouts}

    @property
    def keeps_base_adapters(self) -> bool:
        """Whether the adapters of base versions are needed: by the strategy, or to raise deltas to the full rank."""
        return self.strategy.needs_base_adapters or len(self.node_layouts) > 1


@dataclass(frozen=True)
class Asked:
    """A question to the base model that waits for its answer.

    `id` is the version that was the newest when it was asked, and how many had been asked since that came out.
    """

    id: QuestionId
    question: Question[Any]


@dataclass(frozen=True)
class Pending:
    """A version in the making: what it is made of, and what the base model has answered so far."""

    flush: Flush
    answers: tuple[Answer, ...] = ()
    asked: Asked | None = None


@dataclass(frozen=True)
class FederationState:
    """Everything that decisions depend on. A fold over the journal yields it again, bit for bit."""

    config: FederationConfig
    epoch: int
    head: GlobalAdapter
    served: Served
    release: ReleaseReport  # why that is served
    digests: Mapping[int, str]  # of every version that an update may still start from
    bases: Mapping[int, Adapter]  # their adapters, if the strategy needs them
    average: Adapter | None = None  # of the heads, if the strategy serves it
    buffer: Buffer = field(default_factory=Buffer)
    pending: Pending | None = None
    background: Asked | None = None  # no version waits for it
    questions: int = 0  # asked since the head came out
    anchor: AnchorUpdate | None = None  # for the next version
    anchored: int = -1  # the last version that an anchor was trained from
    anchors: Mapping[int, Adapter] = field(default_factory=dict)  # the latest ones by version, if the strategy asks
    turned_down: int = 0  # judgements in a row that went against a version
    returns: int = 0  # of the head, one soon after the other
    probation_until: int = 0  # the version up to which updates have to prove themselves
    nodes: Mapping[str, NodeLedger] = field(default_factory=dict)
    partial_bytes: int = 0  # of all nodes
    dropped: Mapping[str, int] = field(default_factory=dict)  # messages refused without a receipt, by reason
    orders: int = 0  # the number of the last one taken
    noise_key: bytes = field(default=b"", repr=False)  # secret; where noise is promised, no version without it
    ring: KeyRing = field(default_factory=KeyRing)  # whose signatures count, where the federation has a root

    @property
    def finished(self) -> bool:
        """Whether the last version is published: updates are no longer taken."""
        final = self.config.final_version
        return final is not None and self.head.version >= final

    def asking(self, question: Question[Any]) -> Asked:
        """A question as it is asked now; whoever keeps it counts it in `questions`."""
        return Asked((self.head.version, self.questions), question)

    @property
    def open_questions(self) -> tuple[Asked, ...]:
        """What the base model has still to answer, that of a version in the making first."""
        asked = (self.pending.asked if self.pending else None, self.background)
        return tuple(one for one in asked if one is not None)


@dataclass(frozen=True)
class Received:
    """A message, raw, as it came from the broker."""

    at_ns: int
    topic: str
    payload: bytes


@dataclass(frozen=True)
class Poisoned:
    """A message that the process has died of each time it was taken in; nothing may look into its payload again."""

    at_ns: int
    topic: str
    payload: bytes = field(repr=False)


@dataclass(frozen=True)
class Ticked:
    """Time has passed, or was set back. The shell ticks when `next_deadline` says so, and when its clock falls."""

    at_ns: int


@dataclass(frozen=True)
class Answered:
    """The base model's answer to one question, raw."""

    at_ns: int
    question_id: QuestionId
    payload: bytes


@dataclass(frozen=True)
class Started:
    """A coordinator process took over; what it publishes carries a higher epoch."""

    at_ns: int


@dataclass(frozen=True)
class Ordered:
    """The operator has given an order, raw; numbers of orders rise by one."""

    at_ns: int
    number: int
    payload: bytes


@dataclass(frozen=True)
class Configured:
    """The operator changed the strategy, the limits, the calibration set or the final version."""

    at_ns: int
    config: FederationConfig


@dataclass(frozen=True)
class KeysChanged:
    """The operator enrolled nodes, or revoked some."""

    at_ns: int
    ring: KeyRing


@dataclass(frozen=True)
class NoiseKeyDrawn:
    """A secret has been drawn that the noise of the versions to come is made from; 32 bytes."""

    at_ns: int
    key: bytes = field(repr=False)


@dataclass(frozen=True)
class RolledBack:
    """The operator wants an earlier version's adapter served, and, for the head, trained from; `body` is safetensors.

    `number` is that of the order; None in journals from before rollbacks were numbered as orders are.
    """

    at_ns: int
    number: int | None
    version: int
    variant: Variant
    scope: Literal["release", "head"]
    body: bytes


# all but messages that are taken in
OwnEvent = Poisoned | Ticked | Answered | Started | Configured | Ordered | KeysChanged | NoiseKeyDrawn | RolledBack
Event = Received | OwnEvent


@dataclass(frozen=True)
class SendReceipt:
    """Answer a node. `manifest` is the update's, when it could be read."""

    node: str
    receipt: Receipt
    manifest: UpdateManifest | None = None
    cause: Refusal | None = None  # of a refusal, for counting; the receipt says it to people


@dataclass(frozen=True)
class PublishVersion:
    """Keep and publish a new global version, for nodes to train from."""

    manifest: GlobalManifest
    adapter: Adapter


@dataclass(frozen=True)
class PublishRelease:
    """Let nodes serve what the report says, which may be what they serve already; keep the reasons."""

    report: ReleaseReport
    adapter: Adapter


@dataclass(frozen=True)
class AskModel:
    """Let the base model answer; the answer comes back as `Answered` under the same id."""

    question_id: QuestionId
    question: Question[Any]


@dataclass(frozen=True)
class Drop:
    """A message that nobody gets an answer to; counted under `reason`."""

    reason: str
    detail: str


@dataclass(frozen=True)
class RaiseAlarm:
    """So many of a node's updates are refused that somebody should find out why."""

    node: str
    ledger: NodeLedger


Effect = SendReceipt | PublishVersion | PublishRelease | AskModel | Drop | RaiseAlarm
