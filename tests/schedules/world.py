"""One schedule: a federation in a world where anything may happen next, all of it decided by one number.

First a storm: packets, turns, trainings and time in any order, and among them kills, power cuts, full disks, lost
connections, brokers that forget and clocks that jump. Then the world heals, and the federation must go on by itself:
make versions, answer for every update, and come to rest with every node on the head.
"""

import hashlib
import logging
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from base_model.settings import TrainingConfig
from broker.federation_keys import enrol, init
from broker.settings import MAX_PACKET_SIZE
from coordinator.operations import order_file
from coordinator.operations.orders import RollBack
from coordinator.process import EXPECTED as COORDINATOR_EXPECTS
from coordinator.state import CalibrationTerms, FederationConfig, Limits
from coordinator.strategies import AlignFed, FedAsync, FedAvg, FedBuff, Strategy
from edge_node.effects import Stop
from edge_node.service import EXPECTED_FAULTS as NODE_EXPECTS
from edge_node.settings import EdgeSettings, ServingSettings
from schemas.adapter import Adapter, Layout, LoraConfig
from tests.schedules.actors import BASE_MODEL, FEDERATION, Actor, CoordinatorActor, NodeActor
from tests.schedules.clock import Clock
from tests.schedules.disk import Died, Disk, Failure
from tests.schedules.network import Ack, Network, Packet, Publish
from tests.schedules.promises import Books, Broken

STORM = 180  # moves
CALM = 12_000  # moves in which a healed federation has to come to rest
CALM_S = 30 * 24 * 3600.0
VERSIONS_AFTER = 1  # that it has to make by then
STRATEGIES: tuple[Strategy, ...] = (
    FedBuff(buffer_size=1),
    FedBuff(buffer_size=2),
    FedBuff(buffer_size=3),
    FedAsync(),
    FedAvg(nodes_per_round=2, timeout_s=30),
)
WITH_MODEL: tuple[Strategy, ...] = (
    AlignFed(buffer_size=2),
    AlignFed(preset="patient", buffer_size=2, align="transplant", timeout_s=60),
)
KINDS = {"trains": 0.2, "saves": 0.1, "speaks wills": 0.1, "starts": 0.5}  # how likely, compared with others
SIZES = ((1, 4), (1, 2500), (1, 17_000))  # rank, and width: 32 bytes inline, two chunks up, two chunks down


Choice = tuple[str, Callable[[], Any]]


@dataclass(frozen=True)
class Report:
    """What a schedule came to. `broken` is None when every promise held."""

    seed: int
    broken: str | None
    moves: int
    simulated_s: float
    versions: int
    updates: int
    faults: Counter[str]
    trace: tuple[str, ...] = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """The same for the same schedule, move for move."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()


def play(seed: int, folder: Path | None = None) -> Report:
    """Play the schedule of this number, in a folder of its own in memory where there is one."""
    place = Path(tempfile.mkdtemp(prefix="schedule-", dir=folder or _in_memory()))
    try:
        return World(seed, place).play()
    finally:
        shutil.rmtree(place, ignore_errors=True)


class World:
    """Everything there is, and the one source of chance."""

    def __init__(self, seed: int, place: Path) -> None:
        self.seed, self.chance = seed, random.Random(seed)
        self.clock = Clock()
        self.disk = Disk(place, random.Random(f"disk {seed}"))
        self.place, self.trace = str(place), list[str]()
        self.faults = Counter[str]()
        self.moves = 0
        self.trains, self.is_calm = True, False
        chance, signed = self.chance, self.chance.random() < 0.2
        self.network = Network(
            self.clock,
            chance,
            chance.choice((1000, 1000, 12)),
            observe=lambda who, what: self.books.published(who, what),
            accepted=lambda who, what: self.books.taken(who, what),
        )
        keys = _keys() if signed else None
        layout = _layout(*chance.choices(SIZES, (20, 5, 1))[0])
        self.coordinator = self._new_coordinator(place, layout, keys / "coordinator" if keys else None)
        self.nodes = [self._new_node(name, place, layout, keys) for name in "abc"[: chance.choice((1, 2, 2, 3))]]
        self.actors: list[Actor] = [self.coordinator, *self.nodes]
        self.turn_order: list[Actor | None] = [None, *self.actors]  # None is the broker
        self.books = Books(self.coordinator, self.nodes, self.network)
        self.weights = {
            (actor.name, kind): chance.choice((0.2, 1.0, 1.0, 4.0))
            for actor in self.actors
            for kind in ("starts", "connects", "hands over", "is heard", "hears", "turns", "trains", "answers")
        }
        self.storminess = chance.choice((0.01, 0.03, 0.08))
        self.asleep: dict[str, int] = {}  # actors that do nothing until this move

    def play(self) -> Report:
        """Storm, then calm."""
        broken = None
        with self.disk.watched(), _quiet():
            try:
                while self.moves < STORM:
                    self._storm()
                self._heal()
                self._calm()
            except Broken as promise:
                broken = str(promise)
            finally:
                self._note(broken or "all promises held")
                for actor in self.actors:
                    self._close(actor)
        versions, updates = len(self.books.manifests), len(self.books.owner)
        seconds = self.clock.monotonic_s
        return Report(self.seed, broken, self.moves, seconds, versions, updates, self.faults, tuple(self.trace))

    # The storm.

    def _storm(self) -> None:
        if self.chance.random() < self.storminess:
            self._fault()
        self._move()

    def _fault(self) -> None:
        """One thing goes wrong."""
        actor = self.chance.choice(self.actors)
        kinds: dict[str, tuple[float, Callable[[Actor], str | None]]] = {
            "cut": (4, self._cut),
            "killed": (3, lambda actor: self._end(actor, "killed")),
            "power cut": (3, lambda actor: self._end(actor, "power cut")),
            "dies in a write": (4, self._doom),
            "disk fails": (2, self._spoil),
            "broker": (3, self._crash_broker),
            "clock": (1, self._jump),
            "sleeps": (1, self._sleep),
            "order": (1, self._order),
        }
        kind = self.chance.choices(list(kinds), [weight for weight, _ in kinds.values()])[0]
        if (what := kinds[kind][1](actor)) is not None:
            self.faults[kind] += 1
            self._note(f"!! {what}")

    def _cut(self, actor: Actor) -> str | None:
        if actor.client is None or not actor.client.is_connected:
            return None
        self.network.cut(actor.client)
        return f"the connection of {actor.name} is lost"

    def _end(self, actor: Actor, how: Failure) -> str | None:
        if not _is_running(actor):
            return None
        self._close(actor)
        self.disk.restart(actor.name, how)
        return f"{actor.name} is ended: {how}"

    def _doom(self, actor: Actor) -> str:
        how: Failure = self.chance.choice(("killed", "power cut"))
        after = self.chance.randrange(40)
        self.disk.fail(actor.name, after, how)
        return f"{actor.name} will end in its {after}. operation on the disk from now: {how}"

    def _spoil(self, actor: Actor) -> str:
        how: Failure = self.chance.choice(("full", "broken"))
        after, times = self.chance.randrange(40), self.chance.choice((1, 2, 20))
        self.disk.fail(actor.name, after, how, times)
        return f"the disk of {actor.name} will be {how} after {after} operations, for {times}"

    def _crash_broker(self, _: Actor) -> str | None:
        if not self.network.is_up:
            return None
        loss = self.chance.choice(("nothing", "since its last save", "all"))
        self.network.crash(loss)
        return f"the broker is ended and loses {loss}"

    def _jump(self, actor: Actor) -> str:
        days = self.chance.choice((-3650, -1, 1, 400))
        self.clock.offsets_ns[actor.client_id] = days * 24 * 3600 * 10**9
        return f"the clock of {actor.name} is wrong by {days} days"

    def _sleep(self, actor: Actor) -> str:
        moves = self.chance.randrange(10, 100)
        self.asleep[actor.name] = self.moves + moves
        return f"{actor.name} is frozen for {moves} moves"

    def _order(self, _: Actor) -> str | None:
        """The operator wants an earlier version back; the disk may fail the operator too."""
        if self.coordinator.service is None or not self.books.manifests:
            return None
        version, scope = self.chance.choice(sorted(self.books.manifests)), self.chance.choice(("release", "head"))
        try:
            order_file.give(self.coordinator.folder, RollBack(version=version, scope=scope))
        except (OSError, Died):
            return None
        return f"the operator wants version {version} back for the {scope}"

    # One move.

    def _move(self) -> None:
        self.moves += 1
        self.clock.pass_s(self.chance.expovariate(20))
        if not self.is_calm and self.chance.random() < 0.02:
            self._let_time_pass()
            return
        unlikely: list[tuple[str, Choice]] = []
        for who in self.chance.sample(self.turn_order, len(self.turn_order)):
            name = "broker" if who is None else who.name
            choices = list(self._broker_choices() if who is None else self._choices_of(who))
            weights = [self.weights.get((name, kind), 1.0) * KINDS.get(kind, 1.0) for kind, _ in choices]
            if choices and self.chance.random() < sum(weights):
                return self._do(name, self.chance.choices(choices, weights)[0])
            unlikely += [(name, choice) for choice in choices]
        if unlikely:
            return self._do(*self.chance.choice(unlikely))
        return None if self.is_calm and not self.trains and self._rests() else self._let_time_pass()

    def _do(self, name: str, choice: Choice) -> None:
        kind, do = choice
        what = do()
        self._note(f"{name} {kind}{f': {what}' if what else ''}")
        self._check_whole()

    def _broker_choices(self) -> Iterator[Choice]:
        network = self.network
        if not network.is_up:
            yield "is back", self._restart_broker
        elif not self.is_calm:
            yield "saves", network.save
        if any(client_id not in network.clients for client_id in network.wills):
            yield "speaks wills", network.speak_wills

    def _choices_of(self, actor: Actor) -> Iterator[Choice]:
        """What may happen next to this actor, or be done by it."""
        if self.asleep.get(actor.name, 0) > self.moves:
            return
        if not _is_running(actor):
            yield "starts", lambda: self._start(actor)
            return
        client, network = actor.client, self.network
        assert client is not None
        if actor.has_work:
            yield "turns", lambda: self._turn(actor)
        if not client.is_connected:
            if network.is_up:
                yield "connects", lambda: network.connect(client)
        else:
            if client.has_to_hand_over():
                yield "hands over", client.hand_over
            if network.can_take(client):
                yield "is heard", lambda: self._some(lambda: network.can_take(client), lambda: network.take(client))
            if network.can_deliver(client):
                yield "hears", lambda: self._some(lambda: network.can_deliver(client), lambda: network.deliver(client))
        if isinstance(actor, NodeActor) and actor.trainer.job is not None and self.trains:
            yield "trains", lambda: self._train(actor)
        if isinstance(actor, CoordinatorActor) and actor.model is not None and actor.model.waiting:
            yield "answers", actor.model.think

    def _some(self, can: Callable[[], bool], move: Callable[[], Packet]) -> str:
        """A few packets one after the other; all there are, once it is calm."""
        packets = [move()]
        while can() and (self.is_calm or self.chance.random() < 0.5):
            packets.append(move())
        return "; ".join(map(_words, packets))

    def _let_time_pass(self) -> None:
        """Up to the next thing that only time brings, or, in a storm, for any while."""
        due = [s for actor in self.actors if _is_running(actor) and (s := actor.due_in_s) is not None]
        seconds = max(0.0, min(due, default=3600.0))
        if not self.is_calm and self.chance.random() < 0.3:
            seconds = self.chance.choice((1.0, 10.0, 100.0, 4000.0))
        self.clock.pass_s(seconds)
        self._note(f"{seconds:.1f} s pass")

    def _start(self, actor: Actor) -> str | None:
        outcome = self._guarded(actor, lambda: self._begin(actor))
        return outcome

    def _begin(self, actor: Actor) -> None:
        if isinstance(actor, CoordinatorActor):
            if not self.is_calm and self.chance.random() < 0.15:  # the operator has thought of something else
                choices = STRATEGIES if actor.config.calibration is None else WITH_MODEL
                actor.config = actor.config.model_copy(update={"strategy": self.chance.choice(choices)})
            actor.start()
            self.books.coordinator_began()
        else:
            effects = actor.start()
            self.books.node_began(actor)
            self.books.node_did(actor, effects)

    def _turn(self, actor: Actor) -> str | None:
        return self._guarded(actor, lambda: self._act(actor, actor.turn))

    def _train(self, node: NodeActor) -> str | None:
        failed = not self.is_calm and self.chance.random() < 0.1
        return self._guarded(node, lambda: self._act(node, lambda: node.end_training(failed)))

    def _act(self, actor: Actor, do: Callable[[], Any]) -> str | None:
        if isinstance(actor, CoordinatorActor):
            do()
            return f"version {actor.state.head.version}, {len(actor.state.buffer.updates)} in the buffer"
        effects = do()
        self.books.node_did(actor, effects)
        if any(isinstance(effect, Stop) for effect in effects):
            raise Broken(f"{actor.name} refuses to take part: {effects[-1]}")
        return ", ".join(_effect_words(effect) for effect in effects if not type(effect).__name__.startswith("Publish"))

    def _guarded(self, actor: Actor, do: Callable[[], str | None]) -> str | None:
        """Do it; an end by the disk is an end of the process, and any other fault is one that nobody should see."""
        trouble = self.disk.is_troubled(actor.name)
        expected = COORDINATOR_EXPECTS if isinstance(actor, CoordinatorActor) else NODE_EXPECTS
        try:
            return do()
        except Died:
            pass
        except Broken:
            raise
        except Exception as fault:
            if not trouble:
                raise Broken(f"{actor.name} fails with {type(fault).__name__}: {fault}") from fault
            if not self.disk.has_ended(actor.name) and not isinstance(fault, expected):
                raise Broken(f"{actor.name} does not say in words what its disk did: {fault!r}") from fault
            words = f"ends itself: {fault}"
            self._close(actor)
            self.disk.restart(actor.name, "killed")
            return words
        how = self.disk.fate(actor.name)
        self._close(actor)
        self.disk.restart(actor.name, "killed")
        return f"dies in a write: {how}"

    def _close(self, actor: Actor) -> None:
        if actor.client is not None and actor.client.is_connected:
            self.network.cut(actor.client)
        if isinstance(actor, NodeActor):
            self.books.node_ended(actor)
        with self.disk.held_as_it_is(actor.name):
            actor.end()

    def _restart_broker(self) -> None:
        self.network.is_up = True

    def _check_whole(self) -> None:
        """The broker has all again once the coordinator has said all again."""
        service = self.coordinator.service
        if service is not None and self.network.told_again and service.announcer.is_done:
            self.network.is_whole = True

    # The calm.

    def _heal(self) -> None:
        self._note("-- the storm is over")
        self.is_calm = True
        self.asleep.clear()
        self.clock.offsets_ns.clear()
        self.disk.heal()
        self.weights.clear()
        self.healed_at, self.healed_s = self.moves, self.clock.monotonic_s
        self.versions_before = len(self.books.manifests)

    def _calm(self) -> None:
        """Go on until all has come to rest."""
        while self.trains or self.moves % 4 or not self._rests():
            self.trains = self.trains and not self._has_gone_on()
            if self.moves - self.healed_at > CALM or self.clock.monotonic_s - self.healed_s > CALM_S:
                raise Broken(f"the federation does not come to rest: {self._unrest()}")
            self._move()
        self.books.all_is_well()

    def _has_gone_on(self) -> bool:
        return len(self.books.manifests) >= self.versions_before + VERSIONS_AFTER

    def _rests(self) -> bool:
        if any(not _is_running(actor) for actor in self.actors) or not self.network.is_up:
            return False
        state = self.coordinator.state
        return (
            not any(actor.has_work or not actor.client.is_still for actor in self.actors)
            and not state.open_questions
            and not any(self.network.can_deliver(actor.client) for actor in self.actors)
            and all(
                not node.state.outbox
                and node.state.held is not None
                and node.state.held.adapter.digest == state.head.digest
                and node.state.held.pointer.version == state.head.version
                and node.state.fetch is None
                and node.state.release_fetch is None
                for node in self.nodes
            )
        )

    def _unrest(self) -> str:
        parts = [f"{len(self.books.manifests) - self.versions_before} versions since"]
        for actor in self.actors:
            if not _is_running(actor):
                parts.append(f"{actor.name} is down")
            elif isinstance(actor, NodeActor):
                held, fetch = actor.state.held, actor.state.fetch
                text = f"{actor.name} holds {held and held.pointer.version}, {len(actor.state.outbox)} in its outbox"
                parts.append(f"{text}, fetches {fetch and fetch.pointer.version}")
            else:
                parts.append(f"the head is {actor.state.head.version}, {len(actor.state.buffer.updates)} in the buffer")
        return "; ".join(parts)

    # What there is at first.

    def _new_coordinator(self, place: Path, layout: Layout, keys: Path | None) -> CoordinatorActor:
        chance = self.chance
        with_model = chance.random() < 0.25
        config = FederationConfig(
            federation=FEDERATION,
            base_model=BASE_MODEL,
            base_model_name="tiny",
            layout=layout,
            strategy=chance.choice(WITH_MODEL if with_model else STRATEGIES),
            limits=Limits(nodes=10),
            calibration=_calibration() if with_model else None,
            root=_root() if keys is not None else None,
        )
        first = Adapter(layout, np.full(layout.size, 0.5, np.float32))
        keep = chance.choice((1, 2, 3))
        eager = chance.random() < 0.5
        return CoordinatorActor(place / "coordinator", self.network, chance, config, first, keep, keys, eager)

    def _new_node(self, name: str, place: Path, layout: Layout, keys: Path | None) -> NodeActor:
        chance = self.chance
        settings = EdgeSettings(
            node=name,
            data=Path("nothing"),
            data_dir=place / name,
            codec=chance.choice(("fp32", "int8", "kltp")),
            serving=ServingSettings(mqtt=chance.random() < 0.5),
            outbox_updates=chance.choice((2, 16)),
        )
        largest = chance.choice((MAX_PACKET_SIZE, 18_000))
        return NodeActor(name, self.network, chance, settings, layout, largest, keys)

    def _note(self, what: str) -> None:
        what = what.replace(self.place, "")  # an error names its file, and the folder's name is not of the world
        self.trace.append(f"{self.moves:5d} {self.clock.monotonic_s:10.2f} s  {what}")


def _is_running(actor: Actor) -> bool:
    return (actor.service if isinstance(actor, CoordinatorActor) else actor.node) is not None


def _words(packet: Packet) -> str:
    """A packet in a trace."""
    match packet:
        case Publish(publication, mid, duplicate, retained):
            marks = "".join(mark for mark, is_so in ((" again", duplicate), (" retained", retained)) if is_so)
            topic = publication.topic.removeprefix(f"alignfed/v1/{FEDERATION}/")
            return f"{topic} ({len(publication.payload)} bytes, packet {mid}{marks})"
        case Ack(mid):
            return f"answer to packet {mid}"
    return f"{type(packet).__name__} {packet.topic_filter.removeprefix(f'alignfed/v1/{FEDERATION}/')}"


def _effect_words(effect: Any) -> str:
    text = getattr(effect, "text", None)
    return type(effect).__name__ if text is None else f'"{text}"'


@cache
def _layout(rank: int, width: int) -> Layout:
    lora = LoraConfig(rank=rank, target_modules=("x",))
    return Layout(lora=lora, tensors=(("x.lora_A.weight", (rank, width)), ("x.lora_B.weight", (width, rank))))


@cache
def _calibration() -> CalibrationTerms:
    return CalibrationTerms(digest="ca11" * 16, folds={"anchor": 4, "gate": 8}, training=TrainingConfig())


@cache
def _keys() -> Path:
    """The keys of the federation, made once for the process; nothing that happens depends on what they are."""
    folder = Path(tempfile.mkdtemp(prefix="schedule-keys-"))
    init(folder, FEDERATION, ["localhost"], days=3650)
    for node in "abc":
        enrol(folder, node, days=3650)
    return folder


@cache
def _root() -> str:
    from broker.bundle import read_membership

    return read_membership(_keys() / "coordinator").root


def _in_memory() -> Path | None:
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else None


@contextmanager
def _quiet() -> Iterator[None]:
    """No log lines of the services: their effects are in the trace."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
