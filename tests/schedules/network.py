"""An MQTT broker and the links to it, on a fake clock: QoS 1 with all that it allows, and brokers' own lapses.

Messages come twice after a lost connection, topics overtake each other, sessions and retained messages get lost or fall
back to an earlier state, queues overflow in silence after the publisher was told that all is well. Within one topic
and one connection the order is kept, as MQTT asks. Packets move only when `Network` is told to move them.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from broker.client import MAX_IN_FLIGHT
from broker.events import Connected, Disconnected, Event, Message, MessageProperties, Publication, Published, Traffic
from broker.inbox import Inbox
from broker.outgoing import Outgoing, OutgoingQueue
from broker.settings import MAX_PACKET_SIZE
from tests.schedules.clock import Clock

Retain = Literal["always", "if new"]  # when a subscription gets what is retained
Loss = Literal["nothing", "since its last save", "all"]


class Publish(NamedTuple):
    """A publication under way, and its packet id where it has one."""

    publication: Publication
    mid: int
    duplicate: bool = False
    retained: bool = False


class Ack(NamedTuple):
    """An answer to a publication of QoS 1."""

    mid: int
    heard: bool = True


class Subscribe(NamedTuple):
    """A wish for messages."""

    topic_filter: str
    retain: Retain


class Unsubscribe(NamedTuple):
    """No more of them."""

    topic_filter: str


Packet = Publish | Ack | Subscribe | Unsubscribe


@dataclass
class Session:
    """What a broker keeps for a client, connected or not."""

    filters: list[str] = field(default_factory=list)
    queue: list[Publish] = field(default_factory=list)
    in_flight: dict[int, Publish] = field(default_factory=dict)
    last_mid: int = 0


@dataclass
class Kept:
    """What a broker may lose: sessions by client id, retained messages by topic."""

    sessions: dict[str, Session] = field(default_factory=dict)
    retained: dict[str, Publication] = field(default_factory=dict)


class SimulatedClient:
    """What broker.client.Client is to its owner, on its own queues; its packets wait for the network to move them."""

    def __init__(
        self, network: "Network", client_id: str, will: Publication, filters: Sequence[str], *, clean_start: bool
    ) -> None:
        self.network, self.client_id, self.will = network, client_id, will
        self.clean_start = clean_start  # of the next connect; after the first one sessions are resumed
        self.is_connected, self.is_alive = False, True
        self.inbox, self.owes_answers, self.has_events = Inbox(), False, False
        self.outgoing = OutgoingQueue(MAX_PACKET_SIZE, MAX_IN_FLIGHT)
        self.filters: list[str] = []
        self.wishes: dict[str, Retain | None] = {}  # subscriptions to make, and, with None, to end
        self.unanswered: dict[int, Outgoing] = {}  # by packet id: sent again on the next connection
        self.last_mid = 0
        self.up: deque[Packet] = deque()  # on the wire
        self.down: deque[Packet] = deque()
        self.subscribe(*filters)

    def publish(self, publication: Publication) -> int:
        """Queue a publication; the wire may have it before this returns."""
        if publication.qos == 0 and not self.is_connected:
            return 0
        self.network.observe(self.client_id, publication)
        token = self.outgoing.add(publication, self.network.clock.monotonic_s)
        if self.network.chance.random() < 0.5:
            self.hand_over()
        return token

    def ack(self, message: Message) -> None:
        """Owe the broker one acknowledgement less."""
        self.inbox.acknowledge(message)
        self.owes_answers = True
        if self.network.chance.random() < 0.5:
            self.hand_over()

    def subscribe(self, *filters: str) -> None:
        for topic_filter in filters:
            if topic_filter not in self.filters:
                self.filters.append(topic_filter)
            self.wishes[topic_filter] = "always"

    def unsubscribe(self, *filters: str) -> None:
        for topic_filter in filters:
            if topic_filter in self.filters:
                self.filters.remove(topic_filter)
            self.wishes[topic_filter] = None

    def next_event(self, _timeout_s: float | None) -> Event | None:
        if (event := self.inbox.get(0)) is None:
            self.has_events = False
        return event

    @property
    def is_still(self) -> bool:
        """Whether nothing is under way to the broker."""
        return self.is_connected and not (self.up or self.down or self.has_to_hand_over() or len(self.outgoing))

    @property
    def traffic(self) -> Traffic:
        return Traffic(waiting=len(self.outgoing))

    def hand_over(self) -> None:
        """Put on the wire what the owner has queued."""
        if not self.is_connected:
            return
        self.up.extend(Ack(mid) for mid in self.inbox.take_acknowledged())
        self.owes_answers = False
        for topic_filter, retain in self.wishes.items():
            self.up.append(Unsubscribe(topic_filter) if retain is None else Subscribe(topic_filter, retain))
        self.wishes.clear()
        while (ready := self.outgoing.next_to_send(self.network.clock.monotonic_s)) is not None:
            if isinstance(ready, Published):
                self._put(ready)
                continue
            self.last_mid = self.last_mid % 65_535 + 1
            self.up.append(Publish(ready.publication, self.last_mid))
            if ready.publication.qos:
                self.outgoing.sent(ready, self.last_mid)
                self.unanswered[self.last_mid] = ready
            else:
                self.outgoing.done(ready)

    def has_to_hand_over(self) -> bool:
        """Whether `hand_over` would put anything on the wire."""
        room = len(self.unanswered) < self.outgoing.window and len(self.outgoing) > len(self.unanswered)
        return self.is_connected and (room or bool(self.wishes) or self.owes_answers)

    def connected(self, session_present: bool) -> None:
        """As paho: what has no answer is sent again, and every subscription is made again."""
        self.is_connected, self.clean_start = True, False
        self.inbox.begin_generation(session_present)
        lost = {f: wish for f, wish in self.wishes.items() if wish is not None or f not in self.filters}
        self.wishes = {topic_filter: "if new" for topic_filter in self.filters} | lost
        self.up.extend(Publish(one.publication, mid, duplicate=True) for mid, one in self.unanswered.items())
        self._put(Connected(session_present, None, None))

    def disconnected(self) -> None:
        self.wishes = _wishes_on(self.up) | self.wishes
        self.is_connected = False
        self.up.clear()
        self.down.clear()
        self._put(Disconnected("the link is down"))

    def _put(self, event: Event) -> None:
        self.inbox.put(event)
        self.has_events = True

    def take(self, packet: Packet) -> None:
        """One packet from the broker."""
        match packet:
            case Ack(mid, heard):
                self.unanswered.pop(mid, None)
                if (token := self.outgoing.acknowledged(mid)) is not None:
                    self._put(Published(token, None, heard))
            case Publish(publication, mid, duplicate, retained):
                self._put(
                    Message(
                        topic=publication.topic,
                        payload=publication.payload,
                        qos=publication.qos,
                        retain=retained,
                        duplicate=duplicate,
                        properties=MessageProperties(),
                        received_at_ns=self.network.clock.wall_ns(self.client_id),
                        generation=self.inbox.generation,
                        mid=mid,
                    )
                )


def _wishes_on(wire: Sequence[Packet]) -> dict[str, Retain | None]:
    """Subscriptions that the broker has not heard of."""
    wishes: dict[str, Retain | None] = {}
    for packet in wire:
        if isinstance(packet, Subscribe):
            wishes[packet.topic_filter] = packet.retain
        elif isinstance(packet, Unsubscribe):
            wishes[packet.topic_filter] = None
    return wishes


class Network:
    """One broker, the clients that reach it, and the packets between them."""

    def __init__(
        self,
        clock: Clock,
        chance: random.Random,
        queue_limit: int,
        observe: Callable[[str, Publication], None],
        accepted: Callable[[str, Publication], None],
    ) -> None:
        self.clock, self.chance, self.queue_limit = clock, chance, queue_limit
        self.observe, self.accepted = observe, accepted  # told of what is published, and of what the broker has taken
        self.is_up = True
        self.is_whole = True  # nothing is missing that the coordinator has said since the broker last lost something
        self.told_again = self.has_lost = False
        self.kept = Kept()
        self.saved = Kept()
        self.clients: dict[str, SimulatedClient] = {}  # connected ones, by id
        self.wills: dict[str, Publication] = {}

    def connect(self, client: SimulatedClient) -> None:
        """Let a client in; one of the same name that was there is cut off."""
        if (other := self.clients.get(client.client_id)) is not None and other is not client:
            self.cut(other)
        if client.clean_start:
            self.kept.sessions.pop(client.client_id, None)
        is_known = client.client_id in self.kept.sessions
        session = self.kept.sessions.setdefault(client.client_id, Session())
        self.clients[client.client_id] = client
        self.wills[client.client_id] = client.will
        client.connected(is_known)
        for mid, message in session.in_flight.items():
            client.down.append(message._replace(mid=mid, duplicate=True))

    def cut(self, client: SimulatedClient) -> None:
        """Lose a connection with all that was on the wire."""
        if self.clients.get(client.client_id) is client:
            del self.clients[client.client_id]
        client.disconnected()

    def speak_wills(self) -> None:
        """Publish what clients that are away have left behind."""
        for client_id in [name for name in self.wills if name not in self.clients]:
            self._route(self.wills.pop(client_id))

    def save(self) -> None:
        """The broker writes its state to its disk."""
        self.saved = deepcopy(self.kept)

    def crash(self, loss: Loss) -> None:
        """The broker dies; what it loses shows when it is back."""
        for client in list(self.clients.values()):
            self.cut(client)
        self.is_up = False
        self.wills.clear()
        if loss != "nothing":
            self.is_whole, self.told_again, self.has_lost = False, False, True
            self.kept = deepcopy(self.saved) if loss == "since its last save" else Kept()
        self.save()

    def can_take(self, client: SimulatedClient) -> bool:
        """Whether a packet of the client is on its way to the broker."""
        return self.is_up and bool(client.up)

    def take(self, client: SimulatedClient) -> Packet:
        """Let the broker have the client's next packet."""
        packet = client.up.popleft()
        session = self.kept.sessions[client.client_id]
        match packet:
            case Ack(mid):
                session.in_flight.pop(mid, None)
            case Subscribe(topic_filter, retain):
                self._subscribe(session, topic_filter, retain)
            case Unsubscribe(topic_filter):
                if topic_filter in session.filters:
                    session.filters.remove(topic_filter)
            case Publish(publication, mid):
                heard = self._route(publication)
                self.accepted(client.client_id, publication)
                if publication.qos:
                    client.down.append(Ack(mid, heard))
        return packet

    def can_deliver(self, client: SimulatedClient) -> bool:
        """Whether anything waits for the client."""
        session = self.kept.sessions.get(client.client_id)
        return bool(client.down) or (session is not None and bool(self._next_of_each_topic(session)))

    def deliver(self, client: SimulatedClient) -> Packet:
        """Let the client have what is on the wire, or, of its queue, the next message of any topic."""
        session = self.kept.sessions[client.client_id]
        choices = self._next_of_each_topic(session)
        if client.down and (not choices or self.chance.random() < 0.5):
            packet = client.down.popleft()
        else:
            packet = self.chance.choice(choices)
            session.queue.remove(packet)
            if packet.publication.qos:
                session.last_mid = session.last_mid % 65_535 + 1
                packet = packet._replace(mid=session.last_mid)
                session.in_flight[packet.mid] = packet
        client.take(packet)
        return packet

    def _next_of_each_topic(self, session: Session) -> list[Publish]:
        """What may be delivered next: on each topic the oldest, while the window has room."""
        if len(session.in_flight) >= MAX_IN_FLIGHT:
            return []
        oldest: dict[str, Publish] = {}
        for message in session.queue:  # it has grown in order of arrival
            oldest.setdefault(message.publication.topic, message)
        return list(oldest.values())

    def _subscribe(self, session: Session, topic_filter: str, retain: Retain) -> None:
        is_new = topic_filter not in session.filters
        if is_new:
            session.filters.append(topic_filter)
        if is_new or retain == "always":
            for topic, publication in self.kept.retained.items():
                if matches(topic_filter, topic):
                    session.queue.append(Publish(publication, 0, retained=True))

    def _route(self, publication: Publication) -> bool:
        if publication.retain:
            self.kept.retained.pop(publication.topic, None)
            if publication.payload:
                self.kept.retained[publication.topic] = publication
        heard = False
        for client_id, session in self.kept.sessions.items():
            if any(matches(topic_filter, publication.topic) for topic_filter in session.filters):
                heard = True
                is_there = client_id in self.clients
                if (publication.qos or is_there) and len(session.queue) < self.queue_limit:
                    session.queue.append(Publish(replace(publication, retain=False), 0))
        return heard


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a topic falls under a filter."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if wanted[-1] == "#":
        wanted, levels = wanted[:-1], levels[: len(wanted) - 1]
    return len(wanted) == len(levels) and all(one in ("+", level) for one, level in zip(wanted, levels, strict=True))


def topics_of(packets: Sequence[Packet]) -> Iterator[str]:
    """For traces: what packets are about."""
    for packet in packets:
        yield packet.publication.topic if isinstance(packet, Publish) else type(packet).__name__
