"""Publish recorded messages through a broker again: same topics, order, QoS, flags and properties, each sender apart.

What cannot be sent again as it was: a broker sets the mark of a duplicate itself (duplicates are published once more
instead), QoS 2 goes as QoS 1, and what came in its last second before it expired is given a whole one.
"""

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from broker.client import Client
from broker.events import Connected, Disconnected, Publication, Published, QueueFull
from broker.recording import Row
from broker.settings import BrokerSettings

MAX_SENDERS = 500  # each is a connection and a thread
PATIENCE_S = 30.0  # for the broker to answer


class ReplayerError(RuntimeError):
    """A recording cannot be replayed through this broker; says why."""


@dataclass(frozen=True)
class Sent:
    """How many messages were published so far, how many nobody was subscribed to, and by how many senders."""

    messages: int = 0
    unheard: int = 0
    senders: int = 0


def replay_through(
    broker: BrokerSettings, rows: Iterable[Row], sender_of: Callable[[Row], str], speed: float | None
) -> Generator[Sent, None, None]:
    """Publish rows in order, `speed` times as fast as they came, or one at a time when `speed` is None.

    One at a time: the next goes out when the broker has acknowledged the last, so the order holds across senders.
    Yields after every message, and once more when all are acknowledged. Raises ReplayerError.
    """
    if speed is not None and speed <= 0:
        raise ValueError(f"speed must be positive, got {speed}")
    with ExitStack() as stack:
        senders = _Senders(broker, stack)
        begun, first_ns = time.monotonic(), None
        for row in rows:
            first_ns = row.received_at_ns if first_ns is None else first_ns
            if speed is not None:
                time.sleep(max(0.0, begun + (row.received_at_ns - first_ns) / 1e9 / speed - time.monotonic()))
            senders.publish(sender_of(row), row)
            if speed is None:
                senders.settle()
            yield senders.sent
        senders.settle()
        yield senders.sent


class _Senders:
    """Clients by name, each connected when it is first needed, and what they still wait for."""

    def __init__(self, broker: BrokerSettings, stack: ExitStack) -> None:
        self._broker = broker.model_copy(update={"session_expiry_s": 0})
        self._stack = stack
        self._clients: dict[str, Client] = {}
        self._open: dict[str, set[int]] = {}  # tokens that the broker has not answered for
        self._messages, self._unheard = 0, 0

    @property
    def sent(self) -> Sent:
        return Sent(self._messages, self._unheard, len(self._clients))

    def publish(self, name: str, row: Row) -> None:
        client = self._clients.get(name) or self._connect(name)
        try:
            publication = _publication(row)
        except ValueError as error:
            raise ReplayerError(f"message {row.seq} cannot be published: {error}") from None
        while True:
            try:
                token = client.publish(publication)
            except QueueFull:
                self._listen(name)
                continue
            break
        self._messages += 1
        if publication.qos:
            self._open[name].add(token)

    def settle(self) -> None:
        """Wait until the broker has answered for everything."""
        for name, tokens in self._open.items():
            while tokens:
                self._listen(name)

    def _connect(self, name: str) -> Client:
        if len(self._clients) >= MAX_SENDERS:
            raise ReplayerError(f"more than {MAX_SENDERS} senders: cut the recording by --node")
        client = self._stack.enter_context(Client(self._broker, f"replay-{name}", clean_start=True))
        event = client.next_event(PATIENCE_S)
        if not isinstance(event, Connected):
            reason = event.reason if isinstance(event, Disconnected) else f"no answer in {PATIENCE_S:g} s"
            raise ReplayerError(reason)
        self._clients[name], self._open[name] = client, set()
        return client

    def _listen(self, name: str) -> None:
        """Take in one event of a client that waits for the broker."""
        match self._clients[name].next_event(PATIENCE_S):
            case Published(token, reason, heard):
                self._open[name].discard(token)
                self._unheard += not heard
                if reason is not None:
                    raise ReplayerError(f"the broker refused a message of {name}: {reason}; check its access rights")
            case Disconnected(reason):
                raise ReplayerError(reason)
            case None:
                raise ReplayerError(f"the broker did not acknowledge a message in {PATIENCE_S:g} s")


def _publication(row: Row) -> Publication:
    properties = row.properties
    return Publication(
        topic=row.topic,
        payload=row.payload,
        qos=min(row.qos, 1),
        retain=row.retain,
        expiry_s=None if properties.expiry_s is None else max(1, properties.expiry_s),
        user=properties.user,
        response_topic=properties.response_topic,
        correlation_data=properties.correlation_data,
        content_type=properties.content_type,
        payload_format=properties.payload_format,
    )
