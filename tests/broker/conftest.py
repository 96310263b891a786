"""Real brokers on loopback ports, clients that are stopped afterwards, and a relay whose connections can be cut."""

import contextlib
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from broker.client import Client
from broker.embedded import EmbeddedBroker, find_mosquitto
from broker.events import Connected, Event, Message, Subscribed
from broker.settings import BrokerSettings
from tests.patience import PATIENCE_S


@pytest.fixture(scope="session")
def mosquitto() -> str:
    """The mosquitto program."""
    return _installed(find_mosquitto(), "mosquitto")


@pytest.fixture(scope="session")
def mosquitto_sub() -> str:
    """Mosquitto's own subscriber, which Debian packs apart from the broker."""
    return _installed(shutil.which("mosquitto_sub"), "mosquitto-clients")


def _installed(program: str | None, package: str) -> str:
    """The program's path; without it the test is skipped loudly, and fails where CI is set."""
    if program is None and os.environ.get("CI"):
        pytest.fail(f"{package} is not installed, and in CI it must be: apt-get install {package}")
    if program is None:
        pytest.skip(f"{package.upper()} IS NOT INSTALLED: this does not run (apt install {package})")
    return program


@pytest.fixture(scope="module", params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "iotcore"])
def broker(request: pytest.FixtureRequest) -> Iterator[EmbeddedBroker]:
    """Each broker in turn, shared by the tests of one file; tests use topics and client ids of their own."""
    if request.param == "mosquitto":
        request.getfixturevalue("mosquitto")
    with EmbeddedBroker(request.param) as running:
        yield running


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "iotcore"])
def own_broker(request: pytest.FixtureRequest) -> Iterator[EmbeddedBroker]:
    """Each broker in turn, for tests that kill it."""
    if request.param == "mosquitto":
        request.getfixturevalue("mosquitto")
    with EmbeddedBroker(request.param) as running:
        yield running


@pytest.fixture
def topic() -> str:
    """A topic that no other test uses."""
    return f"test/{uuid.uuid4().hex}"


@pytest.fixture
def connect() -> Iterator[Callable[..., Client]]:
    """Start a client and wait until it is connected and its subscriptions stand; all are stopped at the end."""
    clients: list[Client] = []

    def start(settings: BrokerSettings, client_id: str | None = None, **options: Any) -> Client:
        client = Client(settings, client_id or f"test-{uuid.uuid4().hex}", **options)
        clients.append(client)
        client.start()
        expect(client, Connected)
        for _ in options.get("subscriptions", ()):
            subscribed = expect(client, Subscribed)
            assert subscribed.reason is None
        return client

    yield start
    for client in clients:
        client.stop(timeout_s=1)


class Relay:
    """A TCP relay between clients and a broker, to cut connections as a lost network does: without a farewell."""

    def __init__(self, target: BrokerSettings) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._target = (target.host, target.port)
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self.settings = target.model_copy(update={"port": self._listener.getsockname()[1]})
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Drop every connection; new ones are let through."""
        with self._lock:
            for end in self._open:
                _shut(end)
            self._open.clear()

    def close(self) -> None:
        _shut(self._listener)
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                broker = socket.create_connection(self._target)
            except OSError:
                _shut(client)
                continue
            with self._lock:
                self._open += [client, broker]
            for source, sink in ((client, broker), (broker, client)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass  # cut
    _shut(source)
    _shut(sink)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # was not connected any more
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@pytest.fixture
def relay(broker: EmbeddedBroker) -> Iterator[Relay]:
    """A relay to the shared broker."""
    between = Relay(broker.settings)
    yield between
    between.close()


@pytest.fixture(name="expect")
def _expect_fixture() -> Callable[..., Any]:
    """The function `expect`; a fixture because test files cannot import from one another."""
    return expect


@pytest.fixture(name="receive")
def _receive_fixture() -> Callable[..., list[Message]]:
    """The function `receive`."""
    return receive


def expect(client: Client, kind: type[Any], where: Callable[[Any], bool] = lambda _: True) -> Any:
    """The next event of a kind that satisfies `where`, passing over others; fails when it does not come."""
    deadline = time.monotonic() + PATIENCE_S
    passed_over: list[Event] = []
    while time.monotonic() < deadline:
        event = client.next_event(deadline - time.monotonic())
        if isinstance(event, kind) and where(event):
            return event
        if event is not None:
            passed_over.append(event)
    pytest.fail(f"no {kind.__name__} came, only {passed_over}")


def receive(client: Client, count: int) -> list[Message]:
    """The next `count` messages, each acknowledged."""
    messages: list[Message] = []
    for _ in range(count):
        messages.append(expect(client, Message))
        client.ack(messages[-1])
    return messages
