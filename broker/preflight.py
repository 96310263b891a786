"""What a broker can do, found out by doing it, on a topic of the caller's. Answers facts; judging them is the caller's.

Leaves no message and no session behind. Raises BrokerUnreachable where there is nothing to try.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from broker.client import Client
from broker.events import Connected, Disconnected, Event, Message, Publication, Published, Subscribed
from broker.settings import BrokerSettings

_SESSION_EXPIRY_S = 60  # should a probe be killed half-way, the broker clears up after it
_MESSAGE_EXPIRY_S = 60

E = TypeVar("E", bound=Event)
Attempt = Callable[[BrokerSettings, str, float], None]


class BrokerUnreachable(RuntimeError):
    """No connection; says why and what to do about it."""


class _ProbeFailed(RuntimeError):
    """The broker did not do what this probe asked for; says what it did."""


@dataclass(frozen=True)
class BrokerAbilities:
    """What a broker can do. The faults are why something does not work, None where it works."""

    max_packet_size: int | None
    connect_s: float
    retained_fault: str | None
    session_fault: str | None


def probe(settings: BrokerSettings, topic: str, timeout_s: float = 10) -> BrokerAbilities:
    """Try everything; `topic` must be free for it. `timeout_s` is the patience with each answer."""
    settings = settings.model_copy(update={"session_expiry_s": _SESSION_EXPIRY_S})
    begun = time.monotonic()
    with _client(settings, "connect") as client:
        connected = _connected(client, timeout_s)
        connect_s = time.monotonic() - begun
    return BrokerAbilities(
        max_packet_size=connected.max_packet_size,
        connect_s=connect_s,
        retained_fault=_fault(_try_retained, settings, topic, timeout_s),
        session_fault=_fault(_try_session, settings, topic, timeout_s),
    )


def look(
    settings: BrokerSettings, filters: Sequence[str], timeout_s: float = 10, quiet_s: float = 1
) -> tuple[dict[str, bytes], dict[str, str]]:
    """What is retained on these topics, and why the broker refused any of them; both by filter.

    `filters` are plain topics. What does not come within `quiet_s` of the last answer is not there.
    """
    retained, refused, answered = dict[str, bytes](), dict[str, str](), set[str]()
    with _client(settings, "look", *filters) as client:
        _connected(client, timeout_s)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            event = client.next_event(quiet_s if len(answered) == len(filters) else timeout_s)
            match event:
                case Subscribed(topic, reason):
                    answered.add(topic)
                    refused |= {} if reason is None else {topic: reason}
                case Message(topic=topic, payload=payload, retain=True):
                    retained[topic] = payload
                    client.ack(event)
                case Message():
                    client.ack(event)
                case Disconnected(reason=reason):
                    raise BrokerUnreachable(reason)
                case None:
                    break
    return retained, refused


def _try_retained(settings: BrokerSettings, topic: str, timeout_s: float) -> None:
    """A retained message must reach whoever subscribes later, and an empty one must delete it."""
    message = Publication(topic, secrets.token_bytes(16), retain=True, expiry_s=_MESSAGE_EXPIRY_S)
    with _client(settings, "keep") as client:
        _publish(client, message, timeout_s)
        try:
            with _client(settings, "late", topic) as late:
                received = _wait(late, Message, timeout_s, "it did not send the retained message to a late subscriber")
                if received.payload != message.payload or not received.retain:
                    raise _ProbeFailed("it sent a late subscriber another message than the retained one")
        finally:
            _publish(client, replace(message, payload=b""), timeout_s)


def _try_session(settings: BrokerSettings, topic: str, timeout_s: float) -> None:
    """A message published while its reader is away must wait for it."""
    client_id = _client_id("session")
    message = Publication(topic, secrets.token_bytes(16), expiry_s=_MESSAGE_EXPIRY_S)
    with Client(settings, client_id, subscriptions=(topic,)) as reader:
        if refusal := _wait(reader, Subscribed, timeout_s, "it did not answer a subscription").reason:
            raise _ProbeFailed(f"it refused a subscription to {topic}: {refusal}")
    try:
        with _client(settings, "writer") as writer:
            _publish(writer, message, timeout_s)
        with Client(settings, client_id, subscriptions=(topic,)) as reader:
            if not _connected(reader, timeout_s).session_present:
                raise _ProbeFailed("it forgot the session of a client that was away")
            received = _wait(reader, Message, timeout_s, "it lost a message for a client that was away")
            reader.ack(received)
    finally:
        with Client(_without_session(settings), client_id, clean_start=True) as reader:
            _connected(reader, timeout_s)


def _fault(attempt: Attempt, settings: BrokerSettings, topic: str, timeout_s: float) -> str | None:
    try:
        attempt(settings, topic, timeout_s)
    except (_ProbeFailed, BrokerUnreachable) as failure:
        return str(failure)
    return None


def _client(settings: BrokerSettings, role: str, *subscriptions: str) -> Client:
    """A client without a past; its session ends with its connection."""
    return Client(_without_session(settings), _client_id(role), subscriptions=subscriptions, clean_start=True)


def _without_session(settings: BrokerSettings) -> BrokerSettings:
    return settings.model_copy(update={"session_expiry_s": 0})


def _client_id(role: str) -> str:
    return f"alignfed-probe-{role}-{secrets.token_hex(4)}"


def _connected(client: Client, timeout_s: float) -> Connected:
    return _wait(client, Connected, timeout_s, "it did not answer")


def _publish(client: Client, publication: Publication, timeout_s: float) -> None:
    token = client.publish(publication)
    published = _wait(client, Published, timeout_s, "it did not acknowledge a message")
    if published.token == token and published.reason is not None:
        raise _ProbeFailed(f"it refused a message to {publication.topic}: {published.reason}")


def _wait(client: Client, kind: type[E], timeout_s: float, otherwise: str) -> E:
    """The next event of this kind. A lost connection ends the waiting."""
    deadline = time.monotonic() + timeout_s
    while (left_s := deadline - time.monotonic()) > 0:
        event = client.next_event(left_s)
        if isinstance(event, kind):
            return event
        if isinstance(event, Disconnected):
            raise BrokerUnreachable(event.reason)
    raise _ProbeFailed(f"{otherwise} within {timeout_s:g} s")
