"""A broker that breaks the rules or takes nothing: what waits here has an end, and what must arrive does."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from broker.client import MAX_IN_FLIGHT, Client
from broker.events import Connected, Message, Publication, QueueFull
from broker.inbox import MAX_WAITING_BYTES
from broker.settings import MAX_PACKET_SIZE, BrokerSettings

Expect = Callable[..., Any]

CONNACK = bytes((0x20, 3, 0, 0, 0))
MIB = 1024 * 1024
PATIENCE_S = 60.0
SENT = 150  # messages of half a MiB: more than twice what may wait


class BadBroker:
    """It says yes to one client, then sends without minding the window, on these topics in turn, and reads nothing."""

    def __init__(self, messages: int, topics: tuple[str, ...] = ("t",)) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.settings = BrokerSettings(port=self._listener.getsockname()[1])
        self.sent = 0
        self._messages, self._topics, self._ended = messages, topics, threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.recv(4096)  # the whole CONNECT: it is small
            connection.sendall(CONNACK)
            for number in range(1, self._messages + 1):
                topic = self._topics[number % len(self._topics)]
                packet = memoryview(publish_packet(topic, number, number.to_bytes(2, "big") + bytes(MIB // 2)))
                connection.settimeout(0.1)
                while packet and not self._ended.is_set():
                    try:
                        packet = packet[connection.send(packet) :]
                    except TimeoutError:
                        continue
                self.sent = number
            self._ended.wait()


def publish_packet(topic: str, mid: int, payload: bytes) -> bytes:
    """A PUBLISH of QoS 1, without properties."""
    body = len(topic).to_bytes(2, "big") + topic.encode() + mid.to_bytes(2, "big") + b"\0" + payload
    length, left = b"", len(body)
    while left or not length:
        left, low = left >> 7, left & 0x7F
        length += bytes((low | (0x80 if left else 0),))
    return b"\x32" + length + body


@pytest.fixture
def bad_broker(request: pytest.FixtureRequest) -> Iterator[BadBroker]:
    broker = BadBroker(*getattr(request, "param", (0,)))
    yield broker
    broker.end()


@pytest.fixture
def connected(bad_broker: BadBroker, expect: Expect) -> Iterator[Callable[..., Client]]:
    """A client to the bad broker, with these options."""
    clients: list[Client] = []

    def start(**options: Any) -> Client:
        clients.append(Client(bad_broker.settings, "test", **options))
        clients[0].start()
        expect(clients[0], Connected)
        return clients[0]

    yield start
    for client in clients:
        client.stop(timeout_s=0)


@pytest.mark.parametrize("bad_broker", [(SENT,)], indirect=True)
def test_a_broker_that_sends_more_than_it_may_is_not_read_until_there_is_room_and_nothing_is_lost(
    bad_broker: BadBroker, connected: Callable[..., Client], expect: Expect
) -> None:
    client = connected()
    at_rest = time.monotonic()
    before = 0
    while time.monotonic() - at_rest < 2 and bad_broker.sent < SENT:  # until it has to wait, or is let go on for ever
        if client.traffic.bytes_in != before:
            before, at_rest = client.traffic.bytes_in, time.monotonic()
        time.sleep(0.05)
    assert MAX_WAITING_BYTES - MIB < client.traffic.bytes_in < MAX_WAITING_BYTES + MIB
    arrived = [expect(client, Message) for _ in range(SENT)]
    assert [int.from_bytes(message.payload[:2], "big") for message in arrived] == list(range(1, SENT + 1))
    assert MAX_WAITING_BYTES > MAX_IN_FLIGHT * MAX_PACKET_SIZE  # a broker that keeps to the window never has to wait


@pytest.mark.parametrize("bad_broker", [(SENT,)], indirect=True)
def test_a_client_that_has_to_answer_reads_all_and_keeps_what_there_is_room_for(
    bad_broker: BadBroker, connected: Callable[..., Client], expect: Expect
) -> None:
    client = connected(drops_when_behind=True)
    deadline = time.monotonic() + PATIENCE_S
    while client.traffic.messages_in < SENT:
        assert time.monotonic() < deadline, f"only {client.traffic.messages_in} were read"
        time.sleep(0.05)
    kept = SENT - client.dropped
    assert kept == MAX_WAITING_BYTES // (MIB // 2 + 1027)  # of a message, its topic and its objects
    arrived = [expect(client, Message) for _ in range(kept)]
    assert [int.from_bytes(message.payload[:2], "big") for message in arrived] == list(range(1, kept + 1))
    for message in arrived:
        client.ack(message)


@pytest.mark.parametrize("bad_broker", [(4, ("t", "$journal/config"))], indirect=True)
def test_a_topic_with_a_dollar_arrives_only_where_somebody_listens_to_it(
    bad_broker: BadBroker, connected: Callable[..., Client], expect: Expect
) -> None:
    client = connected(subscriptions=["#"])
    assert [expect(client, Message).payload[1] for _ in range(2)] == [2, 4]
    with Client((other := BadBroker(2, ("$journal/config",))).settings, "test", subscriptions=["$journal/#"]) as client:
        assert [expect(client, Message).payload[1] for _ in range(2)] == [1, 2]
    other.end()


def test_what_a_broker_does_not_read_comes_to_an_end_and_what_may_be_lost_before_what_may_not(
    connected: Callable[..., Client],
) -> None:
    client = connected()

    def pour(qos: int) -> None:
        for _ in range(1000):
            client.publish(Publication("t", bytes(MIB // 2), qos))

    with pytest.raises(QueueFull):
        pour(qos=0)
    assert client.publish(Publication("t", bytes(MIB // 2))) > 0
    with pytest.raises(QueueFull):
        pour(qos=1)
