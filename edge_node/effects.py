"""What a node can ask for: the effects of the edge core, for the shell to carry out in their order. Pure."""

from dataclasses import dataclass

from edge_node.state import TrainingJob, Update
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.messages import CoordinatorState, GlobalPointer, NodeMetrics, NodeState
from schemas.topics import Address


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
class KeepPieces:
    """Put the next pieces of a version on its way on disk, behind the `offset` bytes of it that are to stay there."""

    pointer: GlobalPointer
    offset: int
    pieces: tuple[bytes, ...]


@dataclass(frozen=True)
class VerifyArrived:
    """Look whether the pieces on disk are what the pointer names, an adapter; the answer is VersionArrived."""

    pointer: GlobalPointer
    layout: Layout


@dataclass(frozen=True)
class DropPieces:
    """Remove from disk what is there of a version that is not on its way any more."""

    pointer: GlobalPointer


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
    """Keep a version that has arrived and is verified, on disk, in place of the one before."""

    pointer: GlobalPointer


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
    | KeepPieces
    | VerifyArrived
    | DropPieces
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
