"""Recorded messages through a real broker: they come again as they were, in order, at any pace."""

from collections.abc import Callable
from typing import Any

import pytest

from broker.client import Client
from broker.embedded import EmbeddedBroker
from broker.events import Message, MessageProperties
from broker.recording import Row, row_of
from broker.replayer import ReplayerError, replay_through

PROPERTIES = MessageProperties((("k", "1"), ("k", "2")), "text/x", "answers", b"\0\xff", 500, payload_format=0)


def sender(row: Row) -> str:
    return row.topic.rsplit("/", 1)[-1]


def test_a_message_comes_again_with_all_that_it_had(
    broker: EmbeddedBroker, topic: str, connect: Callable[..., Client], receive: Any
) -> None:
    rows = [
        Row(1, f"{topic}/a", bytes(range(256)), qos=1, retain=True, properties=PROPERTIES, seq=1),
        Row(2, f"{topic}/b", b"", qos=0, seq=2),
    ]
    listening = connect(broker.settings, subscriptions=[f"{topic}/#"])
    *_, sent = replay_through(broker.settings, rows, sender, None)
    came = {message.topic: message for message in receive(listening, 2)}
    assert (sent.messages, sent.senders) == (2, 2)
    first = row_of(came[f"{topic}/a"])
    assert (first.payload, first.qos, first.properties) == (rows[0].payload, 1, PROPERTIES)
    assert came[f"{topic}/b"].qos == (0 if broker.kind == "mosquitto" else 1)  # iotcore raises it to the subscription's
    [kept] = receive(connect(broker.settings, subscriptions=[f"{topic}/#"]), 1)
    assert (kept.topic, kept.retain) == (f"{topic}/a", True)


def test_what_came_in_its_last_second_expires_again(
    broker: EmbeddedBroker, topic: str, connect: Callable[..., Client], receive: Any
) -> None:
    listening = connect(broker.settings, subscriptions=[topic])
    rows = [Row(1, topic, b"", properties=MessageProperties(expiry_s=0), seq=1)]
    list(replay_through(broker.settings, rows, sender, None))
    [came] = receive(listening, 1)
    assert came.properties.expiry_s in (0, 1)


def test_in_lockstep_the_order_holds_across_senders(
    broker: EmbeddedBroker, topic: str, connect: Callable[..., Client], receive: Any
) -> None:
    rows = [Row(1000 - n, f"{topic}/{n % 5}", b"%d" % n, seq=n) for n in range(300)]
    listening = connect(broker.settings, subscriptions=[f"{topic}/#"])
    *_, sent = replay_through(broker.settings, rows, sender, None)
    messages: list[Message] = receive(listening, 300)
    assert [message.payload for message in messages] == [row.payload for row in rows]
    assert sent.senders == 5


def test_at_any_speed_each_sender_keeps_its_order_and_nothing_is_lost(
    broker: EmbeddedBroker, topic: str, connect: Callable[..., Client], receive: Any
) -> None:
    rows = [Row(n * 1_000_000, f"{topic}/{n % 3}", b"%d" % n, seq=n) for n in range(300)]
    listening = connect(broker.settings, subscriptions=[f"{topic}/#"])
    *_, sent = replay_through(broker.settings, rows, sender, 100.0)
    came = receive(listening, 300)
    for name in "012":
        expected = [row.payload for row in rows if row.topic.endswith(name)]
        assert [message.payload for message in came if message.topic.endswith(f"/{name}")] == expected
    assert sent.messages == 300


def test_what_nobody_listens_to_is_counted(broker: EmbeddedBroker, topic: str) -> None:
    *_, sent = replay_through(broker.settings, [Row(1, f"{topic}/a", b"")], sender, None)
    assert sent.unheard == (1 if broker.kind == "mosquitto" else 0)  # iotcore does not say


def test_a_message_that_cannot_be_published_is_named(broker: EmbeddedBroker) -> None:
    with pytest.raises(ReplayerError, match="message 7 cannot be published: a topic to publish on must not be empty"):
        list(replay_through(broker.settings, [Row(1, "", b"", seq=7)], lambda _: "a", None))
