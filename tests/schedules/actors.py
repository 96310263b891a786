"""The coordinator and the nodes of a schedule: the production services, on this world's disk, clock and broker.

What is made up here is what lies outside of them: the training, whose result is a few random numbers, the base model's
answers, and the lease, which nobody else wants.
"""

import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from broker.bundle import Bundle, load_node_bundle
from broker.events import Publication
from broker.recording import transaction
from coordinator.checkpoint import Keeper
from coordinator.journal import open_journal
from coordinator.questions import (
    AlignDeltas,
    AlignedDeltas,
    Answer,
    MeasuredLosses,
    MeasureLosses,
    Question,
    TrainAnchor,
    TrainedAnchor,
    answer_to_bytes,
)
from coordinator.recovery import restore_with_history
from coordinator.registry import Registry
from coordinator.service import Service
from coordinator.settings import CoordinatorSettings
from coordinator.state import FederationConfig, FederationState, QuestionId
from coordinator.trust.voice import CoordinatorKeys
from coordinator.watch.board import Board
from edge_node.effects import Effects
from edge_node.events import AdapterTried, HeldOutMeasured, StepTrained, Ticked, TrainingFailed, TrainingFinished
from edge_node.node import Equipment, Node, farewell_of, subscriptions
from edge_node.outbox import Outbox
from edge_node.publisher import publication
from edge_node.settings import EdgeSettings
from edge_node.state import EdgeState, Identity, TrainingJob
from schemas.adapter import Adapter, Layout
from schemas.messages import GlobalPointer
from schemas.topics import NodeStateOf
from tests.schedules.network import Network, SimulatedClient

FEDERATION = "test"
BASE_MODEL = "ba5e" * 16


class SoleLease:
    """The right to decide, where nobody else wants it; see coordinator.lease.Lease."""

    is_lost = False

    def __init__(self, journal: sqlite3.Connection) -> None:
        self._journal = journal

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with transaction(self._journal):
            yield

    def confirm(self) -> None: ...


class MadeUpModel:
    """Answers questions when it is told to; see coordinator.model_process.ModelProcess."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._questions: list[tuple[QuestionId, Question[Any]]] = []
        self._answers: list[tuple[QuestionId, bytes]] = []

    @property
    def waiting(self) -> int:
        return len(self._questions)

    @property
    def has_answered(self) -> bool:
        return bool(self._answers)

    def ask(self, question_id: QuestionId, question: Question[Any]) -> None:
        self._questions.append((question_id, question))

    def think(self) -> None:
        """Answer the first question."""
        question_id, question = self._questions.pop(0)
        self._answers.append((question_id, answer_to_bytes(self._answer(question))))

    def answer(self) -> tuple[QuestionId, bytes] | None:
        return self._answers.pop(0) if self._answers else None

    def _answer(self, question: Question[Any]) -> Answer:
        losses = [self._chance.choice((1.0, 1.1, 2.0, 9.0)) for _ in range(2)]
        match question:
            case TrainAnchor(start=start):
                values = np.full(start.layout.size, self._chance.uniform(-1, 1), np.float32)
                return TrainedAnchor(Adapter(start.layout, values), losses[0], losses[1], seconds=1)
            case MeasureLosses(adapters=adapters):
                return MeasuredLosses(tuple(self._chance.choice(losses) for _ in adapters), seconds=1)
            case AlignDeltas(deltas=deltas):
                return AlignedDeltas(deltas, losses[0], losses[1], seconds=1)
        raise ValueError(f"nobody answers {question}")


class KeeperOfNoClock(Keeper):
    """Its checkpoints do not depend on the machine: one whenever anything was decided, or none."""

    is_eager = False

    @property
    def is_due(self) -> bool:
        return self.is_eager and self.unkept_s > 0


@dataclass
class CoordinatorActor:
    """A coordinator's process, and the folder that outlives it."""

    folder: Path
    network: Network
    chance: random.Random
    config: FederationConfig
    first: Adapter
    keep_versions: int
    keys_folder: Path | None
    is_eager: bool = False  # to keep checkpoints
    name: str = "coordinator"
    journal: sqlite3.Connection | None = None
    service: Service | None = None
    model: MadeUpModel | None = None

    @property
    def client_id(self) -> str:
        return f"{FEDERATION}:coordinator"

    @property
    def client(self) -> SimulatedClient | None:
        return None if self.service is None else self.service.client  # type: ignore[return-value]

    def start(self) -> None:
        """Begin a process on what the last one has left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        now_ns = self._now_ns
        self.journal = open_journal(self.folder / "journal.db")
        registry = Registry(self.folder / "adapters")
        keys = CoordinatorKeys(self.keys_folder, FEDERATION) if self.keys_folder is not None else None
        ring = keys.reread_ring() if keys is not None else None
        restored = restore_with_history(self.journal, registry, self.config, self.first, now_ns(), ring)
        self.model = MadeUpModel(self.chance) if self.config.calibration is not None else None
        settings = CoordinatorSettings(data_dir=self.folder, keep_versions=self.keep_versions, pointer_lifetime_s=7200)
        lease: Any = SoleLease(self.journal)
        model: Any = self.model
        boot_id = f"{self.chance.getrandbits(128):032x}"
        self.service = Service(
            restored, self._connect, settings, self.journal, lease, registry, model, Board(), keys, now_ns, boot_id
        )
        self.service.keeper = keeper = KeeperOfNoClock(self.journal, lease, registry, restored.folding_s)
        keeper.is_eager = self.is_eager
        self.service.begin(restored.questions)

    def turn(self) -> None:
        assert self.service is not None
        self.service.turn()

    @property
    def has_work(self) -> bool:
        """Whether a turn would do anything now."""
        service = self.service
        if service is None:
            return False
        due = service.deadline
        answered = self.model is not None and self.model.has_answered
        # it wakes up twice a second, and finds out; with nothing to do it would not be woken here
        set_back = self._now_ns() < self.service.seen_ns
        return answered or set_back or self.client.has_events or (due is not None and self._now_ns() >= due)

    @property
    def due_in_s(self) -> float | None:
        """Seconds until time alone gives it something to do."""
        due = self.service.deadline if self.service is not None else None
        return None if due is None else (due - self._now_ns()) / 1e9

    def end(self) -> None:
        """Close what the process had open; its disk no longer listens."""
        if self.journal is not None:
            self.journal.close()
        self.service = self.journal = self.model = None

    @property
    def state(self) -> FederationState:
        assert self.service is not None
        return self.service.state

    def _now_ns(self) -> int:
        return self.network.clock.wall_ns(self.client_id)

    def _connect(self, will: Publication, filters: Sequence[str]) -> Any:
        return SimulatedClient(self.network, self.client_id, will, filters, clean_start=False)


@dataclass
class Trainer:
    """Has a job, or none; when it ends is the world's to say."""

    job: TrainingJob | None = None

    def train(self, job: TrainingJob) -> None:
        self.job = job

    def measure(self, job: TrainingJob) -> None:
        raise AssertionError("these nodes measure what they train on alone")

    def abort(self) -> None:
        self.job = None


@dataclass
class Served:
    """What a node was told to answer with, in order, since its process began; all of it answers well."""

    adapters: list[tuple[GlobalPointer, Adapter]] = field(default_factory=list)
    tried: int = 0  # of those

    def serve(self, pointer: GlobalPointer, adapter: Adapter) -> None:
        self.adapters.append((pointer, adapter))


@dataclass
class NodeActor:
    """A node's process, and the folder that outlives it."""

    name: str
    network: Network
    chance: random.Random
    settings: EdgeSettings
    layout: Layout
    max_packet_size: int
    keys_folder: Path | None
    outbox: Outbox | None = None
    node: Node | None = None
    client: SimulatedClient | None = None
    trainer: Trainer = field(default_factory=Trainer)
    served: Served | None = None

    @property
    def client_id(self) -> str:
        return f"{FEDERATION}:node:{self.name}"

    def start(self) -> Effects:
        """Begin a process on what the last one has left; what it did at once."""
        self.outbox = Outbox(self.settings.data_dir / "outbox.db")
        boot_id = f"{self.outbox.count_boot():08x}{self.chance.getrandbits(96):024x}"
        identity = Identity(FEDERATION, boot_id, BASE_MODEL, self.settings)
        bundle = self._bundle()
        farewell = publication(FEDERATION, NodeStateOf(self.name), farewell_of(identity).to_bytes())
        will = farewell if bundle is None else bundle.signed(farewell)
        filters = subscriptions(FEDERATION, self.name, is_signed=bundle is not None)
        self.client = SimulatedClient(self.network, self.client_id, will, filters, clean_start=True)
        self.trainer = Trainer()
        self.served = Served() if self.settings.serving.is_on else None
        equipment = Equipment(
            client=self.client,
            outbox=self.outbox,
            folder=self.settings.data_dir,
            trainer=self.trainer,
            serving=self.served,
            layout_of=lambda _: self.layout,
            bundle=bundle,
            max_packet_size=self.max_packet_size,
        )
        self.node = Node(identity, equipment, self.network.clock.monotonic_s)
        return self.node.begin()

    def turn(self) -> Effects:
        """Take what has come, or let time have its due."""
        assert self.node is not None and self.client is not None
        item = self.client.next_event(0)
        return self._take(item if item is not None else Ticked(self._at))

    def end_training(self, failed: bool) -> Effects:
        """The job under way comes to its end."""
        job, self.trainer.job = self.trainer.job, None
        assert job is not None
        if failed:
            return self._take(TrainingFailed(self._at, job.sequence, "made up"))
        done = self._take(HeldOutMeasured(self._at, job.sequence, 4, 1.0))
        done += self._take(StepTrained(self._at, job.sequence, 1, 2.0))
        move = np.float32(self.chance.uniform(-0.1, 0.1))
        adapter = Adapter(job.start.adapter.layout, job.start.adapter.values + move)
        finished = TrainingFinished(self._at, job.sequence, adapter, examples=5, steps=8, loss=1.0, seconds=1.0)
        return done + self._take(finished)

    @property
    def has_work(self) -> bool:
        if self.node is None or self.client is None:
            return False
        return self.client.has_events or (self.due_in_s or 1) <= 0

    @property
    def due_in_s(self) -> float | None:
        due = self.node.deadline if self.node is not None else None
        return None if due is None else due - self._at

    def end(self) -> None:
        """Close what the process had open."""
        if self.outbox is not None:
            self.outbox.__exit__()
        self.node = self.outbox = self.client = None
        self.trainer = Trainer()

    @property
    def state(self) -> EdgeState:
        assert self.node is not None
        return self.node.state

    @property
    def _at(self) -> float:
        return self.network.clock.monotonic_s

    def _take(self, item: Any) -> Effects:
        assert self.node is not None
        done = self.node.take(item, self._at, self.network.clock.wall_ns(self.client_id))
        while self.served is not None and self.served.tried < len(self.served.adapters):
            tried = AdapterTried(self._at, *self.served.adapters[self.served.tried])
            self.served.tried += 1
            done += self.node.take(tried, self._at, self.network.clock.wall_ns(self.client_id))
        return done

    def _bundle(self) -> Bundle | None:
        if self.keys_folder is None:
            return None
        return load_node_bundle(self.keys_folder / "nodes" / self.name, FEDERATION, self.name)


Actor = CoordinatorActor | NodeActor
