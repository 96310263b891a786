"""What a node knows, what it can be told, and what it can ask for: state, events and effects of the edge core. Pure.

Times are seconds on one clock that never goes back, and come in with the events.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_node.policy import Conditions
from edge_node.settings import EdgeSettings
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.chunks import Assembly
from schemas.messages import CoordinatorState, Factors, GlobalPointer, NodeMetrics, NodeState
from schemas.topics import Address
from schemas.trust import Trust

# Values.


@dataclass(frozen=True)
class Identity:
    """Who this node is for as long as its process runs."""

    federation: str
    boot_id: str
    base_model: str  # digest
    settings: EdgeSettings


@dataclass(frozen=True)
class GlobalAdapter:
    """A verified global version: its pointer and its weights."""

    pointer: GlobalPointer
    adapter: Adapter


@dataclass(frozen=True)
class Fetch:
    """A version on its way: what has arrived of it, and when to ask the broker for its next piece again."""

    pointer: GlobalPointer
    asked_at: float  # for the next piece
    again_at: float
    patience_s: float  # with the next piece; the link has shown how long one takes
    subscribed: bool = True
    attempts: int = 1  # for the next piece
    assembly: Assembly = field(default_factory=Assembly)
    inline: bytes = b""  # a body that came with its manifest


@dataclass(frozen=True)
class TrainingJob:
    """What the trainer needs: where to start from, the seed that decides the order of the examples, what may learn."""

    start: GlobalAdapter
    sequence: int
    seed: int
    trained_factors: Factors = "both"
    measured: int = 0  # held-out examples whose loss on the start is wanted first


@dataclass(frozen=True)
class Training:
    """The job under way and the last step that it reported."""

    job: TrainingJob
    step: int = 0


@dataclass(frozen=True)
class HeldOutLoss:
    """How well a version answers held-out examples of this node: mean loss in nats per answer token."""

    version: int
    loss: float
    examples: int


@dataclass(frozen=True)
class Update:
    """A finished update exactly as it will travel; the manifest's bytes decide its id, so they are kept as they are."""

    update_id: str
    sequence: int
    base_digest: str
    base_version: int
    manifest: bytes
    body: bytes
    chunk_size: int


def named_base(version: int, digest: str) -> str:
    """A version to train on: by its number too, for after a way back a new version has an old one's digest."""
    return f"{version} {digest}"


@dataclass(frozen=True)
class WaitingUpdate:
    """An update in the outbox, without its bytes: how often it was sent, and when to send it again."""

    update_id: str
    sequence: int
    size: int  # bytes of the body
    base_version: int
    is_new: bool = True  # of this process: nobody can have a part of it yet
    attempts: int = 0
    was_put_off: bool = False  # the coordinator had no room for it, and nothing of it was taken
    under_way: bool = False  # the broker has not taken all yet that was to be sent
    repairs: int = 0  # of chunks that the coordinator missed, since the last attempt
    again_at: float = 0.0


@dataclass(frozen=True)
class Memory:
    """What outlives the process besides the updates themselves."""

    sequence: int = 0  # of the next job and its update
    participation: int = 0  # updates accepted so far
    last_base: str | None = None  # the version last trained on, as `named_base` names it
    mark: tuple[int, int] = (0, 0)  # (epoch, version) of the newest version ever held, or seen signed: never falls
    release_mark: tuple[int, int] = (0, 0)  # the same of what is to be served, where pointers are signed


@dataclass(frozen=True)
class EdgeState:
    """Everything the node's decisions depend on."""

    identity: Identity
    memory: Memory
    newer_until: float  # till then a newer version may well arrive, and training on an older one would be a waste
    outbox: tuple[WaitingUpdate, ...] = ()  # oldest first
    connected: bool = False
    sends_from: float = 0.0  # before, on a new connection, the head has not been heard that says what is worth sending
    max_packet_size: int | None = None
    terms: CoordinatorState | None = None
    layout: Layout | None = None  # our own, of the terms' LoRA configuration
    head: GlobalPointer | None = None  # the version to train from, as last heard
    release: GlobalPointer | None = None  # the version to serve, as last heard
    fetch: Fetch | None = None
    held: GlobalAdapter | None = None
    release_fetch: Fetch | None = None
    served: GlobalPointer | None = None  # what this node serves, if it serves
    proven: GlobalPointer | None = None  # the last of those that was tried, and is on disk
    earlier: GlobalPointer | None = None  # the one proven before it, on disk as well: a rollback need not fetch it
    refused: GlobalPointer | None = None  # a release that was tried and given up
    training: Training | None = None
    failures: int = 0  # trainings in a row that came to nothing
    rejections: int = 0  # of updates, since one went into a version
    times_put_off: int = 0  # pauses that the coordinator has asked for, since it took one
    quiet_until: float = 0.0  # before, nothing is sent: the coordinator has more than it can take
    rest_until: float = 0.0
    last_loss: float | None = None
    conditions: Conditions = field(default_factory=Conditions)  # of the machine, as last read
    examples_before: int | None = None  # private examples when the last training began
    measuring: TrainingJob | None = None  # whose start is measured while there is no training
    measured: str | None = None  # the last version of which that was asked, as `named_base` names it
    held_out: HeldOutLoss | None = None  # of the newest version to train from that was measured
    served_held_out: HeldOutLoss | None = None  # of the newest that was measured while it was served
    updates_sent: int = 0
    updates_accepted: int = 0
    updates_rejected: int = 0
    ignored: int = 0  # messages that made no sense
    metrics_at: float = float("-inf")  # when progress was last published
    trust: Trust | None = None  # whose signatures count; None where nothing is signed
    unverified: "Mapping[str, Heard]" = field(default_factory=dict)  # by topic: what waits for a certificate
    fresh_until: float | None = None  # when the head is no longer confirmed by its pointer
    settled: tuple[str, ...] = ()  # the latest updates that were accepted and may still get another answer


# Events: what a node can be told.


@dataclass(frozen=True)
class Heard:
    """A message arrived on one of our subscriptions; raw, for it may be anything."""

    at: float
    topic: str
    payload: bytes
    wall_ns: int = 0  # the wall clock, for what expires


@dataclass(frozen=True)
class BrokerConnected:
    """The broker answered; `max_packet_size` in bytes, None for no limit."""

    at: float
    max_packet_size: int | None


@dataclass(frozen=True)
class BrokerLost:
    """The broker is away or refuses us; the reason says what its owner can do."""

    at: float
    reason: str


@dataclass(frozen=True)
class LayoutDescribed:
    """What the LoRA configuration of the federation means for our base model."""

    at: float
    layout: Layout


@dataclass(frozen=True)
class StepTrained:
    """The trainer did one step of the job with this sequence number; loss in nats per answer token."""

    at: float
    sequence: int
    step: int
    loss: float


@dataclass(frozen=True)
class HeldOutMeasured:
    """The trainer has measured the start of this job on held-out examples: so many, and their loss."""

    at: float
    sequence: int
    examples: int
    loss: float


@dataclass(frozen=True)
class MeasuringEnded:
    """The trainer has measured all that there was to measure."""

    at: float
    sequence: int


@dataclass(frozen=True)
class ServedMeasured:
    """What is served was measured on held-out examples: so many, and their loss."""

    at: float
    pointer: GlobalPointer
    examples: int
    loss: float


@dataclass(frozen=True)
class TrainingFinished:
    """The job is done: the adapter at its end, and how it came about."""

    at: float
    sequence: int
    adapter: Adapter
    examples: int  # different private examples seen
    steps: int
    loss: float  # mean over the job
    seconds: float


@dataclass(frozen=True)
class TrainingFailed:
    """The job cannot be done; the reason tells the owner what to do."""

    at: float
    sequence: int
    reason: str


@dataclass(frozen=True)
class HandedOver:
    """The broker has taken all that was to be sent of an update, or refuses it: from now on a receipt may come."""

    at: float
    update_id: str


@dataclass(frozen=True)
class AdapterTried:
    """What came of an adapter that was to be served; `fault` says why it is not, and what was before is."""

    at: float
    pointer: GlobalPointer
    adapter: Adapter
    fault: str | None = None


@dataclass(frozen=True)
class VersionKept:
    """The version held is on disk, and this is the same adapter, read from there."""

    at: float
    held: GlobalAdapter


@dataclass(frozen=True)
class ReleaseRecalled:
    """An earlier release as it is on disk, verified anew; no adapter where it is not what was kept."""

    at: float
    pointer: GlobalPointer
    adapter: Adapter | None


@dataclass(frozen=True)
class ConditionsRead:
    """What the machine is at, for the owner's policy."""

    at: float
    conditions: Conditions


@dataclass(frozen=True)
class Ticked:
    """Time passed."""

    at: float


Event = (
    Heard
    | BrokerConnected
    | BrokerLost
    | LayoutDescribed
    | HeldOutMeasured
    | MeasuringEnded
    | ServedMeasured
    | StepTrained
    | TrainingFinished
    | TrainingFailed
    | HandedOver
    | AdapterTried
    | VersionKept
    | ReleaseRecalled
    | ConditionsRead
    | Ticked
)


# Effects: what a node can ask for.


@dataclass(frozen=True)
class DescribeLayout:
    """Find out which factors this configuration adds to our base model; the answer is LayoutDescribed."""

    lora: LoraConfig


@dataclass(frozen=True)
class RememberTerms:
    """Keep the terms of the federation for a start without the broker."""

    terms: CoordinatorState


@dataclass(frozen=True)
class RememberMark:
    """Note on disk that no older version than this may be held from now on."""

    mark: tuple[int, int]


@dataclass(frozen=True)
class RememberReleaseMark:
    """Note on disk that no older release than this may be served from now on."""

    mark: tuple[int, int]


@dataclass(frozen=True)
class RememberCertificate:
    """Keep the certificate of the coordinator's key, as it was signed."""

    payload: bytes


@dataclass(frozen=True)
class FetchPiece:
    """Subscribe to one piece of a version: its manifest, or a chunk."""

    piece: Address


@dataclass(frozen=True)
class EndFetch:
    """Unsubscribe from one piece of a version: it is here, or no longer wanted."""

    piece: Address


@dataclass(frozen=True)
class KeepRelease:
    """Write a verified release to disk; of those before it only `earlier` stays there."""

    pointer: GlobalPointer
    adapter: Adapter
    earlier: GlobalPointer | None = None


@dataclass(frozen=True)
class RecallRelease:
    """Read a release that was kept; the answer is ReleaseRecalled."""

    pointer: GlobalPointer


@dataclass(frozen=True)
class ServeAdapter:
    """Answer with this adapter from now on, unless it does not answer well; `AdapterTried` comes of it."""

    pointer: GlobalPointer
    adapter: Adapter


@dataclass(frozen=True)
class KeepVersion:
    """Write a verified version to disk in place of the one before; the answer is VersionKept."""

    pointer: GlobalPointer
    body: bytes


@dataclass(frozen=True)
class Train:
    """Begin a job; the answers are StepTrained, then TrainingFinished or TrainingFailed."""

    job: TrainingJob


@dataclass(frozen=True)
class Measure:
    """Measure the start of a job, and no more; the answers are HeldOutMeasured, if there are examples for it, and then
    MeasuringEnded, or TrainingFailed.
    """

    job: TrainingJob


@dataclass(frozen=True)
class AbortTraining:
    """End the job under way; its answers no longer matter."""


@dataclass(frozen=True)
class StoreUpdate:
    """Put an update into the outbox, on disk, before anything is sent."""

    update: Update


@dataclass(frozen=True)
class SendUpdate:
    """Publish an update of the outbox: its chunks if it has any, then its manifest."""

    update_id: str


@dataclass(frozen=True)
class OfferUpdate:
    """Publish the manifest of an update that the coordinator may have, or have a part of: it asks for the rest."""

    update_id: str


@dataclass(frozen=True)
class SendChunks:
    """Publish these chunks of an update again."""

    update_id: str
    chunks: tuple[int, ...]


@dataclass(frozen=True)
class SettleUpdate:
    """Forget an update that was accepted, and count it."""

    update_id: str


@dataclass(frozen=True)
class DropUpdate:
    """Forget an update that nobody will use."""

    update_id: str


@dataclass(frozen=True)
class PublishState:
    """Tell everybody what this node is and holds."""

    state: NodeState


@dataclass(frozen=True)
class PublishMetrics:
    """Tell everybody how the training goes."""

    metrics: NodeMetrics


@dataclass(frozen=True)
class Note:
    """A line in the log, for the owner's information; which update and version it is about, where it is about one."""

    text: str
    update: str | None = None
    version: int | None = None


@dataclass(frozen=True)
class Warn:
    """A line in the log about something that did not go as it should; see Note."""

    text: str
    update: str | None = None
    version: int | None = None


@dataclass(frozen=True)
class Stop:
    """This node cannot take part; the reason says what its owner should do."""

    reason: str


Effect = (
    DescribeLayout
    | RememberTerms
    | RememberMark
    | RememberReleaseMark
    | RememberCertificate
    | FetchPiece
    | EndFetch
    | KeepVersion
    | KeepRelease
    | RecallRelease
    | ServeAdapter
    | Train
    | Measure
    | AbortTraining
    | StoreUpdate
    | SendUpdate
    | OfferUpdate
    | SendChunks
    | SettleUpdate
    | DropUpdate
    | PublishState
    | PublishMetrics
    | Note
    | Warn
    | Stop
)
Effects = tuple[Effect, ...]
