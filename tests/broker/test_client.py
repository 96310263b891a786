"""The client when something is wrong: nobody there, somebody else there, refused, hanging, broken inside."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from broker.client import Client, next_wait_s
from broker.embedded import EmbeddedBroker
from broker.events import Connected, Disconnected, Message, NetworkThreadDied, Publication, Published
from broker.inbox import Inbox
from broker.settings import BrokerSettings
from tests.ports import free_port

Connect = Callable[..., Client]
Expect = Callable[..., Any]
Receive = Callable[..., list[Message]]


@contextmanager
def running(settings: BrokerSettings, client_id: str = "test", **options: Any) -> Iterator[Client]:
    client = Client(settings, client_id, **options)
    client.start()
    try:
        yield client
    finally:
        client.stop(timeout_s=0)


def reason_of(settings: BrokerSettings, expect: Expect) -> str:
    with running(settings) as client:
        reason: str = expect(client, Disconnected).reason
        return reason


def test_a_broker_that_is_away_is_named_and_waited_for(own_broker: EmbeddedBroker, topic: str, expect: Expect) -> None:
    own_broker.kill()
    with running(own_broker.settings) as client:
        token = client.publish(Publication(topic, b"patient"))
        assert own_broker.settings.address in expect(client, Disconnected).reason
        own_broker.restart()
        expect(client, Connected)
        assert expect(client, Published).token == token


def test_a_small_packet_does_not_wait_for_the_answer_of_the_brokers_tcp(
    own_broker: EmbeddedBroker, expect: Expect
) -> None:
    with running(own_broker.settings) as client:
        expect(client, Connected)
        open_here = psutil.Process().net_connections("tcp4")
        (link,) = [one for one in open_here if one.raddr and one.raddr.port == own_broker.settings.port]
        with socket.socket(fileno=os.dup(link.fd)) as connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_a_server_that_hangs_up_is_told_from_one_that_is_away(expect: Expect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        reason = reason_of(BrokerSettings(port=server.getsockname()[1]), expect)
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert "is it an MQTT 5 broker" in reason


def test_a_server_that_says_nothing_is_given_up(expect: Expect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.client._CONNECT_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "does not answer" in reason_of(BrokerSettings(port=server.getsockname()[1]), expect)


def test_a_broker_of_an_older_mqtt_is_refused_in_words(tmp_path: Path, expect: Expect) -> None:
    port = free_port()
    command = [sys.executable, "-m", "iotcore", "--port", str(port), "--listen", "127.0.0.1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        with running(BrokerSettings(port=port)) as client:
            expect(client, Disconnected, lambda d: "does not answer an MQTT 5 connect" in d.reason)
        process.terminate()  # its own child ends with it


def test_a_client_that_another_one_pushes_out_gets_a_hint(
    broker: EmbeddedBroker, topic: str, connect: Connect, expect: Expect
) -> None:
    name = topic.replace("/", "-")
    first = connect(broker.settings, name)
    with running(broker.settings, name):
        assert "another client uses the same client id" in expect(first, Disconnected).reason


@pytest.mark.mosquitto
def test_a_broker_that_stops_answering_is_noticed(mosquitto: str, expect: Expect) -> None:
    with EmbeddedBroker("mosquitto") as broker, running(_impatient(broker.settings)) as client:
        expect(client, Connected)
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            assert "has stopped answering" in expect(client, Disconnected).reason
        finally:
            os.kill(broker.pid, signal.SIGCONT)
        expect(client, Connected)


def _impatient(settings: BrokerSettings) -> BrokerSettings:
    return settings.model_copy(update={"keepalive_s": 1})


def test_a_failure_inside_the_network_thread_reaches_the_caller(
    broker: EmbeddedBroker, topic: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(broker.settings, subscriptions=(topic,))

    def out_of_memory(self: Inbox, event: object) -> None:
        raise MemoryError("no room for the message")

    monkeypatch.setattr(Inbox, "put", out_of_memory)
    client.publish(Publication(topic, b""))
    with pytest.raises(NetworkThreadDied, match="no room for the message"):
        client.next_event(20)


def test_a_silent_network_thread_is_noticed(
    broker: EmbeddedBroker, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(broker.settings)
    monkeypatch.setattr("broker.client._STUCK_AFTER_S", -1.0)  # any silence is too long
    with pytest.raises(NetworkThreadDied, match="no sign of life"):
        client.next_event(20)


def test_many_threads_may_publish_at_once(
    broker: EmbeddedBroker, topic: str, connect: Connect, expect: Expect, receive: Receive
) -> None:
    subscriber, publisher = connect(broker.settings, subscriptions=(topic,)), connect(broker.settings)
    tokens: list[int] = []

    def publish(worker: int) -> None:
        for i in range(50):
            tokens.append(publisher.publish(Publication(topic, b"%d %d" % (worker, i) + b" " * 5_000)))

    workers = [threading.Thread(target=publish, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    arrived = [tuple(map(int, message.payload.split())) for message in receive(subscriber, 200)]
    for worker in workers:
        worker.join()
    assert {expect(publisher, Published).token for _ in range(200)} == set(tokens) == set(range(1, 201))
    assert sorted(arrived) == [(worker, i) for worker in range(4) for i in range(50)]
    assert all([i for w, i in arrived if w == worker] == list(range(50)) for worker in range(4))


def test_stopping_delivers_what_was_queued(
    broker: EmbeddedBroker, topic: str, connect: Connect, receive: Receive
) -> None:
    subscriber, publisher = connect(broker.settings, subscriptions=(topic,)), connect(broker.settings)
    for i in range(100):
        publisher.publish(Publication(topic, b"%d" % i))
    publisher.stop()
    assert [message.payload for message in receive(subscriber, 100)] == [b"%d" % i for i in range(100)]
    assert [type(e) for e in iter(lambda: publisher.next_event(None), None)] == [Published] * 100


def test_a_publication_that_nobody_hears_is_marked_where_the_broker_tells(
    broker: EmbeddedBroker, topic: str, connect: Connect, expect: Expect
) -> None:
    client = connect(broker.settings)
    client.publish(Publication(topic, b""))
    answer = expect(client, Published)
    assert answer.reason is None
    assert answer.heard == (broker.kind == "iotcore")  # which does not tell


@pytest.mark.parametrize("client_id", ["", "a/b", "a+b", "a#b", "a$b"])
def test_a_client_id_that_not_every_broker_survives_is_refused(client_id: str) -> None:
    with pytest.raises(ValueError, match="client id"):
        Client(BrokerSettings(), client_id)


def test_the_wait_before_a_new_attempt_doubles_and_every_second_of_service_halves_it():
    assert next_wait_s(1.0, served_s=0) == 2.0
    assert next_wait_s(1.0, served_s=3) == 0.25
    assert next_wait_s(29.0, served_s=0) == 30.0
    assert next_wait_s(30.0, served_s=100_000) == next_wait_s(0.01, served_s=1) == 0.2
