"""One node at work: what reaches it becomes an event of the core, and what the core asks for is done, in its order.

It waits for nothing and reads no clock: time comes in with each call, so it runs on a simulated clock as well. Where
events come from, and how training, serving and the network are done, it does not know.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from broker.bundle import Bundle
from broker.connection import Connection
from broker.events import Connected, Disconnected, Message, Published, Subscribed
from edge_node import core, effects, events, held_adapter, state
from edge_node.arrivals import Arrivals
from edge_node.memory import give_back_memory, let_go_of_values
from edge_node.outbox import Outbox
from edge_node.publisher import Publisher
from schemas import topics
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.messages import GlobalPointer, InvalidMessage, NodeState
from schemas.trust import Trust

log = logging.getLogger(__name__)

LARGE = (
    events.AdapterTried,
    events.HandedOver,
    effects.KeepRelease,
    effects.KeepVersion,
    events.MeasuringEnded,
    events.StepTrained,
    events.TrainingFailed,
    events.TrainingFinished,
)
"""What comes and is done that takes megabytes, or after which they are free."""

Item = Message | Connected | Disconnected | Published | Subscribed | events.Event


class Trains(Protocol):
    """What does the core's jobs; their results come back as events."""

    def train(self, job: state.TrainingJob) -> None:
        """Begin a job."""

    def measure(self, job: state.TrainingJob) -> None:
        """Measure the start of a job, and no more."""

    def abort(self) -> None:
        """End it."""


class Serves(Protocol):
    """What answers with an adapter."""

    def serve(self, pointer: GlobalPointer, adapter: Adapter) -> None:
        """Answer with this one from now on."""


@dataclass(frozen=True)
class Equipment:
    """What a node works with. `serving` is None for a node that only trains, `bundle` where nothing is signed."""

    client: Connection
    outbox: Outbox
    folder: Path
    trainer: Trains
    serving: Serves | None
    layout_of: Callable[[LoraConfig], Layout]
    bundle: Bundle | None
    max_packet_size: int  # bytes, our own limit


class Node:
    """The core's state, at first from what is on disk, and what is done with its effects. `begin`, then `take` all."""

    def __init__(self, identity: state.Identity, equipment: Equipment, at: float) -> None:
        self._identity, self._equipment = identity, equipment
        self._head_folder, self._release_folder = equipment.folder / "head", equipment.folder / "release"
        self._arrivals = Arrivals(equipment.folder / "arriving")
        self._own: deque[events.Event] = deque()  # what this node has to tell its core
        self._at = at
        self._took_memory = True  # beginning does
        node, client, bundle = identity.settings.node, equipment.client, equipment.bundle
        self._publisher = Publisher(client, identity.federation, node, equipment.outbox, self._handed_over, bundle)
        self.state, self._first = self._recalled(at)

    def begin(self) -> effects.Effects:
        """Do what follows from what is on disk; what was done."""
        return self._carry_out(self._first)

    @property
    def deadline(self) -> float | None:
        """When to tell it that time has passed, if nothing else happens; None while nothing waits for time."""
        return core.next_deadline(self.state)

    def take(self, item: Item, at: float, wall_ns: int) -> effects.Effects:
        """Deal with what came at this time; what was done, in order: with a Stop at the end, the node is to end.

        A message is acknowledged when all that follows from it is on disk.
        """
        self._at = at
        done = self._tell(event) if (event := self._event(item, at, wall_ns)) is not None else ()
        if isinstance(item, Message):
            self._equipment.client.ack(item)
        while self._own and not _stops(done):
            done += self._tell(self._own.popleft())
        self._took_memory |= isinstance(item, LARGE) or any(isinstance(effect, LARGE) for effect in done)
        return done

    def rest(self) -> None:
        """Give back what the last events took, before nothing happens for a while; call it when they are forgotten."""
        if not self._took_memory:
            return
        self._took_memory = False
        if self.state.held is not None:
            let_go_of_values(self.state.held.adapter.values)
        give_back_memory()

    def farewell(self) -> None:
        """Tell everybody that this node is away."""
        self._publisher.state(farewell_of(self._identity))

    def _tell(self, event: events.Event) -> effects.Effects:
        self.state, asked = core.step(self.state, event)
        return self._carry_out(asked)

    def _recalled(self, begun: float) -> tuple[state.EdgeState, effects.Effects]:
        """The state to begin with; what is damaged on disk comes from the broker again."""
        terms = layout = held = served = earlier = None
        try:
            terms = held_adapter.recall_terms(self._head_folder)
            if terms is not None and terms.base_model == self._identity.base_model:
                layout = self._equipment.layout_of(terms.lora)
                held = held_adapter.recall(self._head_folder, layout)
                if self._equipment.serving is not None:
                    served = held_adapter.recall(self._release_folder, layout)
                    earlier = held_adapter.recall_earlier(self._release_folder)
        except held_adapter.DamagedFile as fault:
            log.warning("%s; it will be fetched again", fault)
        memory, waiting = self._equipment.outbox.memory(), self._equipment.outbox.waiting()
        return core.initial_state(
            self._identity, memory, begun, waiting, terms, layout, held, served, earlier, self._trust()
        )

    def _trust(self) -> Trust | None:
        """Whom to believe from the start: the root, and the newest certificate that it was known to have given."""
        bundle = self._equipment.bundle
        if bundle is None:
            return None
        trust = Trust(bundle.federation, bundle.root)
        payload = held_adapter.recall_certificate(self._head_folder)
        if payload is None:
            return trust
        try:
            return trust.certified(topics.route(bundle.federation, topics.GlobalKeys()).topic, payload)
        except InvalidMessage as fault:
            log.warning("the certificate on disk is not taken: %s; it will be heard again", fault)
            return trust

    def _event(self, item: Item, at: float, wall_ns: int) -> events.Event | None:
        """What it means to the core; None when it is not for the core."""
        match item:
            case Message(topic=topic, payload=payload):
                return events.Heard(at, topic, payload, wall_ns)
            case Connected(max_packet_size=limit):
                ours = self._equipment.max_packet_size
                return events.BrokerConnected(at, min(limit or ours, ours))
            case Disconnected(reason=reason):
                return events.BrokerLost(at, reason)
            case Published():
                self._publisher.answered(item)
                return None
            case Subscribed(filter=topic_filter, reason=reason):
                if reason is not None:
                    log.warning("the broker refused the subscription to %s: %s", topic_filter, reason)
                return None
        return item  # the trainer and the clock speak the core's language

    def _carry_out(self, asked: effects.Effects) -> effects.Effects:
        """Do what the core asks for, in this order, up to a Stop; returns what was done."""
        for count, effect in enumerate(asked, start=1):
            if isinstance(effect, effects.Stop):
                log.error("%s", effect.reason)
                return asked[:count]
            self._do(effect)
        return asked

    def _do(self, effect: effects.Effect) -> None:
        client, federation = self._equipment.client, self._identity.federation
        match effect:
            case effects.Note(text):
                log.info("%s", text, extra=_about(effect))
            case effects.Warn(text):
                log.warning("%s", text, extra=_about(effect))
            case effects.PublishState(node_state):
                self._publisher.state(node_state)
            case effects.PublishMetrics(metrics):
                self._publisher.metrics(metrics)
            case effects.SendUpdate(update_id):
                self._publisher.update(update_id)
            case effects.OfferUpdate(update_id):
                self._publisher.offer(update_id)
            case effects.SendChunks(update_id, chunks):
                self._publisher.chunks(update_id, chunks)
            case effects.FetchPiece(piece):
                client.subscribe(topics.route(federation, piece).topic)
            case effects.EndFetch(piece):
                client.unsubscribe(topics.route(federation, piece).topic)
            case effects.ServeAdapter(pointer, adapter):
                if self._equipment.serving is not None:
                    self._equipment.serving.serve(pointer, adapter)
            case effects.VerifyArrived(pointer, layout):
                self._own.append(self._arrived(pointer, layout))
            case effects.RecallRelease(pointer):
                self._own.append(events.ReleaseRecalled(self._at, pointer, self._recalled_release(pointer)))
            case effects.DescribeLayout(lora):
                self._own.append(events.LayoutDescribed(self._at, self._equipment.layout_of(lora)))
            case effects.Train(job):
                self._equipment.trainer.train(job)
            case effects.Measure(job):
                self._equipment.trainer.measure(job)
            case effects.AbortTraining():
                self._equipment.trainer.abort()
            case _:
                self._write(effect)

    def _write(self, effect: effects.Effect) -> None:
        """What has to be on disk before anything that follows it is done."""
        outbox = self._equipment.outbox
        match effect:
            case effects.KeepPieces(pointer, offset, pieces):
                self._arrivals.put(pointer, offset, pieces)
            case effects.DropPieces(pointer):
                self._arrivals.drop(pointer)
            case effects.KeepVersion(pointer):
                held_adapter.keep_file(self._head_folder, pointer, self._arrivals.file(pointer))
            case effects.KeepRelease(pointer, adapter, earlier):
                held_adapter.keep(self._release_folder, pointer, held_adapter.body_of(adapter), earlier)
            case effects.RememberTerms(terms):
                held_adapter.keep_terms(self._head_folder, terms)
            case effects.RememberMark(mark):
                outbox.raise_mark(mark)
            case effects.RememberReleaseMark(mark):
                outbox.raise_release_mark(mark)
            case effects.RememberCertificate(payload):
                held_adapter.keep_certificate(self._head_folder, payload)
            case effects.StoreUpdate(update):
                outbox.put(update)
            case effects.SettleUpdate(update_id):
                self._publisher.forget(update_id)
                outbox.settle(update_id)
            case effects.DropUpdate(update_id):
                self._publisher.forget(update_id)
                outbox.drop(update_id)
            case _:
                raise ValueError(f"nobody carries out {effect}")

    def _arrived(self, pointer: GlobalPointer, layout: Layout) -> events.VersionArrived:
        try:
            return events.VersionArrived(self._at, pointer, self._arrivals.verified(pointer, layout))
        except held_adapter.DamagedFile as fault:
            return events.VersionArrived(self._at, pointer, None, str(fault))

    def _recalled_release(self, pointer: GlobalPointer) -> Adapter | None:
        layout = self.state.layout
        try:
            return held_adapter.verified(self._release_folder, pointer, layout) if layout is not None else None
        except (held_adapter.DamagedFile, OSError) as fault:  # whatever the disk says: the broker has it too
            log.warning("%s; version %d will be fetched", fault, pointer.version)
            return None

    def _handed_over(self, update_id: str) -> None:
        self._own.append(events.HandedOver(self._at, update_id))


def farewell_of(identity: state.Identity) -> NodeState:
    """What is said of a node that is away: by itself at its end, by the broker when it has gone without."""
    return core.introduction(identity, online=False)


def subscriptions(federation: str, node: str, *, is_signed: bool) -> tuple[str, ...]:
    """What a node listens to all the time."""
    return (
        *((topics.topic_filter(federation, topics.GlobalKeys),) if is_signed else ()),
        topics.topic_filter(federation, topics.CoordinatorStateOf),
        topics.topic_filter(federation, topics.GlobalHead),
        topics.topic_filter(federation, topics.GlobalRelease),
        topics.topic_filter(federation, topics.ReceiptFor, node=node),
    )


def _stops(done: effects.Effects) -> bool:
    return bool(done) and isinstance(done[-1], effects.Stop)


def _about(line: effects.Note | effects.Warn) -> dict[str, str | int]:
    """Which update and version a line is about, for programs that read logs."""
    about = {"update": line.update, "version": line.version}
    return {name: value for name, value in about.items() if value is not None}
