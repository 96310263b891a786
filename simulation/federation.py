"""One federation in virtual time: nodes at work, messages on their way, and the coordinator's own core deciding.

The core gets what it gets from a broker, byte for byte, and is ticked and answered as its shell does it. Nothing here
reads a clock but to measure what the core costs, and nothing here measures how good a version is.
"""

import time as clocks
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

from base_model.examples import Example
from coordinator.core import found, next_deadline, step
from coordinator.questions import AlignDeltas, MeasureLosses, TrainAnchor, answer_to_bytes
from coordinator.state import (
    Answered,
    AskModel,
    Drop,
    Effect,
    Event,
    FederationConfig,
    FederationState,
    NoiseKeyDrawn,
    PublishRelease,
    PublishVersion,
    QuestionId,
    RaiseAlarm,
    Received,
    SendReceipt,
    Ticked,
)
from coordinator.updates import GlobalAdapter
from schemas.adapter import Adapter
from schemas.messages import GlobalManifest, ReleaseReport
from simulation.agenda import Agenda
from simulation.learner import Job, Learner, Message
from simulation.schedule import Presence, Schedule, job_time, transfer_time
from simulation.server import ModelServer

FOUNDED_NS = 10**18
JOB_NS = 10**9  # for the core, a job of the fastest node takes a second


class Joined(NamedTuple):
    """A node is there, and wants to work."""

    node: str


class JobEnded(NamedTuple):
    """A node has trained."""

    job: Job


class UpdateArrived(NamedTuple):
    """The last of an update's messages has come, and its node is free again."""

    job: Job
    messages: tuple[Message, ...]


class AnswerCame(NamedTuple):
    """The base model has answered the coordinator."""

    question_id: QuestionId
    payload: bytes


Happening = Joined | JobEnded | UpdateArrived | AnswerCame


@dataclass(frozen=True)
class Fleet:
    """The nodes, and how fast everything is."""

    schedule: Schedule
    presences: Mapping[str, Presence]
    examples: Mapping[str, tuple[Example, ...]]
    seed: int


@dataclass
class Traffic:
    """What went over the network so far."""

    uploads: Counter[str] = field(default_factory=Counter)  # updates that reached the coordinator, by node
    receipts: Counter[str] = field(default_factory=Counter)  # what became of them; diverged ones were never sent
    sent: int = 0  # bytes, by nodes
    fetched: int = 0  # bytes of heads

    @property
    def updates(self) -> int:
        """Work that nodes have spent, in updates."""
        return self.uploads.total() + self.receipts["diverged"]


@dataclass(frozen=True)
class Version:
    """A version came out."""

    time: float
    manifest: GlobalManifest
    head: Adapter
    server_time: Mapping[str, float]  # charged to the base model since the version before, by stage
    server_seconds: Mapping[str, float]  # of the processor, measured: the same stages, and "aggregate"


@dataclass(frozen=True)
class Released:
    """It was decided what nodes serve, which may be what they served before."""

    time: float
    report: ReleaseReport
    served: Adapter
    updates: int  # by then, as in Traffic
    sent: int
    fetched: int


class Federation:
    """Nodes, coordinator and all that is under way.

    `on_news` hears of every version as it comes out and of every decision what is served, `on_update` of every
    update's number and time.
    """

    def __init__(
        self,
        config: FederationConfig,
        fleet: Fleet,
        learner: Learner,
        server: ModelServer,
        on_news: Callable[[Version | Released], None],
        on_update: Callable[[int, float], None],
    ) -> None:
        self.fleet, self.learner = fleet, learner
        self._config, self._server = config, server
        self._on_news, self._on_update = on_news, on_update
        self.traffic = Traffic()
        self.now = 0.0
        self._agenda: Agenda[Happening] = Agenda()
        self._jobs: Counter[str] = Counter()
        self._held: dict[str, int] = {}  # the version that each node has fetched
        self._waiting: list[str] = []  # nodes that may not train again from the version they hold
        self._step_seconds = 0.0

    @property
    def state(self) -> FederationState:
        """What the coordinator knows, from the beginning of the run on."""
        return self._state

    def run(self, first: Adapter, updates: int | None, until: float | None) -> str:
        """Found the federation on its first adapter and let it happen; says why it ended.

        With the last of `updates` nodes stop, and what the coordinator is making of them is finished. At the time
        `until` everything stops.
        """
        self._state, effects = found(self._config, first, _at_ns(0.0))
        self._carry_out(effects)
        if self._config.privacy is not None:
            key = sha256(f"noise {self.fleet.seed}".encode()).digest()  # everybody may know it: nobody's data are here
            self._tell(NoiseKeyDrawn(_at_ns(0.0), key))
        for node, presence in self.fleet.presences.items():
            self._agenda.expect(presence.joins_at, Joined(node))
        while (due := self._due()) is not None:
            if until is not None and due > until:
                self.now = until
                return f"the time of {until:g} jobs was over"
            self._advance()
            if updates is not None and self.traffic.updates >= updates:
                self._agenda.keep_only(AnswerCame)
                while self._agenda.due is not None:
                    self._advance()
                    self._agenda.keep_only(AnswerCame)  # a node that waited for the version would begin anew
                return f"{updates} updates were made"
        return "nothing was left to happen: every node is gone, or waits for a version that does not come"

    def _due(self) -> float | None:
        """When something happens next; a tick of the coordinator is something, too."""
        times = [time for time in (self._agenda.due, self._tick_due()) if time is not None]
        return min(times, default=None)

    def _tick_due(self) -> float | None:
        at_ns = next_deadline(self._state)
        return None if at_ns is None else max(self.now, (at_ns - FOUNDED_NS) / JOB_NS)

    def _advance(self) -> None:
        tick, due = self._tick_due(), self._agenda.due
        if tick is not None and (due is None or tick <= due):
            self.now = tick
            self._tell(Ticked(_at_ns(tick)))
            return
        self.now, happening = self._agenda.take()
        match happening:
            case Joined(node):
                self._begin(node)
            case JobEnded(job):
                self._end(job)
            case UpdateArrived(job, messages):
                self._receive(job, messages)
            case AnswerCame(question_id, payload):
                # when it goes back to what is served, it withdraws what it asked for the version in the making
                if any(asked.id == question_id for asked in self._state.open_questions):
                    self._tell(Answered(_at_ns(self.now), question_id, payload))

    # --- nodes ---

    def _begin(self, node: str) -> None:
        """Fetch the newest head, if it is news, and train from it."""
        presence, schedule = self.fleet.presences[node], self.fleet.schedule
        begins_at = self.now
        if self._held.get(node) != self._head.version:
            size = self._head_size
            self._held[node] = self._head.version
            self.traffic.fetched += size
            begins_at += transfer_time(schedule, size)
        number = self._jobs[node]
        duration = job_time(schedule, presence.speed, self.fleet.seed, node, number)
        # who leaves meanwhile takes the work along
        if begins_at + duration <= presence.leaves_at:
            self._agenda.expect(begins_at + duration, JobEnded(Job(node, number, self._head, duration)))

    def _end(self, job: Job) -> None:
        """Train, and send the update."""
        self._jobs[job.node] += 1
        messages = self.learner.work(job, self.fleet.examples[job.node])
        if not messages:
            self.traffic.receipts["diverged"] += 1
            self._begin(job.node)
            return
        arrives_at = self.now + transfer_time(self.fleet.schedule, _size(messages))
        if arrives_at <= self.fleet.presences[job.node].leaves_at:
            self._agenda.expect(arrives_at, UpdateArrived(job, messages))

    def _receive(self, job: Job, messages: tuple[Message, ...]) -> None:
        """Hand an update to the coordinator; then its node goes on, or waits for another version."""
        self.traffic.uploads[job.node] += 1
        self.traffic.sent += _size(messages)
        self._on_update(self.traffic.updates, self.now)
        for topic, payload in messages:
            self._tell(Received(_at_ns(self.now), topic, payload))
        if self._config.strategy.one_update_per_version and self._head.version == job.start.version:
            self._waiting.append(job.node)
        else:
            self._begin(job.node)

    # --- the coordinator ---

    def _tell(self, event: Event) -> None:
        begun = clocks.process_time()
        self._state, effects = step(self._state, event)
        self._step_seconds += clocks.process_time() - begun
        self._carry_out(effects)

    def _carry_out(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case PublishVersion():
                    self._publish(effect)
                case AskModel(question_id, TrainAnchor() | MeasureLosses() | AlignDeltas() as question):
                    answer, comes_at = self._server.answer(question, self.now)
                    self._agenda.expect(comes_at, AnswerCame(question_id, answer_to_bytes(answer)))
                case PublishRelease():
                    self._release(effect)
                case SendReceipt() if effect.receipt.status != "aggregated":  # that comes later, with a version
                    self.traffic.receipts[effect.receipt.status] += 1
                case RaiseAlarm():
                    pass  # nobody watches
                case Drop():
                    raise RuntimeError(f"the coordinator dropped a message: {effect.reason}: {effect.detail}")

    def _publish(self, effect: PublishVersion) -> None:
        manifest = effect.manifest
        self._head, self._head_size = GlobalAdapter(manifest.version, effect.adapter), manifest.body.size
        server_time, server_seconds = self._server.take_costs()
        server_seconds["aggregate"], self._step_seconds = self._step_seconds, 0.0
        self._on_news(Version(self.now, manifest, effect.adapter, server_time, server_seconds))
        waiting, self._waiting = self._waiting, []
        for node in waiting:
            self._begin(node)

    def _release(self, effect: PublishRelease) -> None:
        traffic = self.traffic
        self._on_news(Released(self.now, effect.report, effect.adapter, traffic.updates, traffic.sent, traffic.fetched))


def _at_ns(time: float) -> int:
    return FOUNDED_NS + round(time * JOB_NS)


def _size(messages: tuple[Message, ...]) -> int:
    return sum(len(message.payload) for message in messages)
