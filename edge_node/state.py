"""What a node knows: the state of the edge core. Pure. events.py: what it can be told; effects.py: what it can ask for.

Times are seconds on one clock that never goes back, and come in with the events.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge_node.policy import Conditions
from edge_node.settings import EdgeSettings
from schemas.adapter import Adapter, Layout
from schemas.chunks import Assembly
from schemas.messages import CoordinatorState, Factors, GlobalPointer
from schemas.trust import Trust

if TYPE_CHECKING:
    from edge_node.events import Heard


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
    """A version on its way: what has arrived of it, and when to ask the broker for its next piece again.

    What has come in its turn is on disk; `assembly` holds what has not.
    """

    pointer: GlobalPointer
    asked_at: float  # for the next piece
    again_at: float
    patience_s: float  # with the next piece; the link has shown how long one takes
    subscribed: bool = True
    attempts: int = 1  # for the next piece
    assembly: Assembly = field(default_factory=Assembly)


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
