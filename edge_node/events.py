"""What a node can be told: the events of the edge core, each with its time. Pure."""

from dataclasses import dataclass

from edge_node.policy import Conditions
from schemas.adapter import Adapter, Layout
from schemas.messages import GlobalPointer


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
class VersionArrived:
    """A version is on disk, whole and verified, and mapped from there; `fault` says why it is none to be believed."""

    at: float
    pointer: GlobalPointer
    adapter: Adapter | None
    fault: str | None = None


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
    | VersionArrived
    | ReleaseRecalled
    | ConditionsRead
    | Ticked
)
