"""Private examples from a local broker: real brokers, one for the devices and one for the federation."""

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from base_model.examples import Example
from broker.client import Client
from broker.embedded import EmbeddedBroker, find_mosquitto
from broker.events import Message, Publication, Published
from broker.settings import BrokerSettings
from edge_node.data import local_feed
from edge_node.data.local_data import LocalData
from edge_node.data.local_feed import LocalFeed, SharedBroker, refuse_federation_broker
from edge_node.data.settings import LocalBrokerSettings, LocalDataSettings
from tests.patience import PATIENCE_S

LAMP = Example(prompt="lamp on", completion="TurnOn")
FAN = Example(prompt="fan off", completion="TurnOff")


@pytest.fixture(scope="module", params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "iotcore"])
def broker(request: pytest.FixtureRequest) -> Iterator[EmbeddedBroker]:
    if request.param == "mosquitto" and find_mosquitto() is None:
        pytest.skip("MOSQUITTO IS NOT INSTALLED (apt install mosquitto)")
    with EmbeddedBroker(request.param) as running:
        yield running


class Gateway:
    """A node's feed, a device that publishes, and an observer of all that is said on the broker."""

    def __init__(self, broker: EmbeddedBroker, folder: Path, log: pytest.LogCaptureFixture) -> None:
        self._log, self._listens = log, 0
        self.name = uuid.uuid4().hex
        self.data = LocalData.open(None, folder / "node", LocalDataSettings(held_out=0))
        self.settings = LocalBrokerSettings(port=broker.settings.port, topic=f"{self.name}/learn/#")
        self.faults: list[Exception] = []
        self.device = Client(broker.settings, f"{self.name}-device", subscriptions=["#"])
        self.device.start()

    def feed(self) -> LocalFeed:
        feed = LocalFeed(self.settings, f"{self.name}-node", self.data, self.faults.append)
        feed.start()
        self._listens += 1
        self._heard_by_then(f"listening to {self.settings.topic}", self._listens)
        return feed

    def _heard_by_then(self, line: str, times: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self._log.text.count(line) < times:
            assert time.monotonic() < deadline, self._log.text
            time.sleep(0.02)

    def says(self, topic: str, payload: bytes) -> None:
        """Publish, and wait until the broker has it."""
        token = self.device.publish(Publication(f"{self.name}/{topic}", payload))
        self.observe(lambda event: isinstance(event, Published) and event.token == token)

    def observe(self, until: Callable[[Any], bool]) -> list[Message]:
        """Every message up to the event that satisfies `until`."""
        seen, deadline = list[Message](), time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            event = self.device.next_event(0.5)
            if isinstance(event, Message):
                self.device.ack(event)
                seen.append(event)
            if until(event):
                return seen
        pytest.fail("it does not come")

    def has(self, *examples: Example) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.data.training() != examples:
            assert time.monotonic() < deadline, self.data.training()
            time.sleep(0.02)


@pytest.fixture
def gateway(broker: EmbeddedBroker, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Gateway]:
    caplog.set_level("INFO")
    gateway = Gateway(broker, tmp_path, caplog)
    yield gateway
    gateway.device.stop(1)


def test_what_devices_say_is_kept_and_what_is_no_example_is_counted(gateway: Gateway) -> None:
    feed = gateway.feed()
    gateway.says("learn/kitchen", LAMP.model_dump_json().encode())
    gateway.says("learn/hall", b"nonsense\n" + FAN.model_dump_json().encode())
    gateway.says("other", b"")
    gateway.has(LAMP, FAN)
    assert {(tally.source, tally.lines) for tally in gateway.data.summary().refused} == {("mqtt", 1)}
    feed.stop()
    assert gateway.faults == []


def test_what_is_said_while_the_node_restarts_is_not_lost(gateway: Gateway) -> None:
    feed = gateway.feed()
    gateway.says("learn/kitchen", LAMP.model_dump_json().encode())
    gateway.has(LAMP)
    feed.stop()
    gateway.says("learn/kitchen", FAN.model_dump_json().encode())
    feed = gateway.feed()
    gateway.has(LAMP, FAN)
    feed.stop()


def test_a_disk_that_takes_nothing_for_a_while_loses_nothing(gateway: Gateway, monkeypatch: Any) -> None:
    monkeypatch.setattr(local_feed, "RETRY_S", 0.1)
    store = gateway.data._store._database
    pages = store.execute("PRAGMA page_count").fetchone()[0]
    store.execute(f"PRAGMA max_page_count = {pages}")
    feed = gateway.feed()
    long = Example(prompt="long", completion="x" * 8000)
    gateway.says("learn/kitchen", long.model_dump_json().encode())
    with pytest.raises(sqlite3.OperationalError, match="full"):
        gateway.data.add("http", [long])
    assert gateway.data.training() == ()
    store.execute("PRAGMA max_page_count = 100000")
    gateway.has(long)
    feed.stop()
    assert gateway.faults == []


def test_the_feed_says_nothing_on_its_broker(gateway: Gateway) -> None:
    feed = gateway.feed()
    gateway.says("learn/kitchen", LAMP.model_dump_json().encode())
    gateway.has(LAMP)
    feed.stop()
    end = f"{gateway.name}/end"
    gateway.device.publish(Publication(end, b"the end"))
    seen = gateway.observe(lambda event: isinstance(event, Message) and event.topic == end)
    assert {message.topic for message in seen} <= {f"{gateway.name}/learn/kitchen", end}


def test_the_federation_s_broker_is_refused_unless_the_owner_means_it() -> None:
    federation = BrokerSettings(host="localhost", port=1884)
    for host in ("localhost", "127.0.0.1", "LOCALHOST"):
        with pytest.raises(SharedBroker, match="is_federation_broker = true if you mean it"):
            refuse_federation_broker(LocalBrokerSettings(host=host, port=1884, topic="learn/#"), federation)
    refuse_federation_broker(LocalBrokerSettings(port=1885, topic="learn/#"), federation)
    refuse_federation_broker(LocalBrokerSettings(port=1884, topic="learn/#", is_federation_broker=True), federation)


@pytest.mark.parametrize(
    "settings",
    [
        {"topic": "alignfed/#"},
        {"topic": "alignfed/v1/home/global/head"},
        {"topic": "#", "is_federation_broker": True},
        {"topic": "+/v1/home/update/#", "is_federation_broker": True},
        {"topic": "a/#/b"},
        {"topic": ""},
    ],
)
def test_a_filter_that_takes_in_the_federation_s_topics_is_no_setting(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LocalBrokerSettings(**settings)


def test_the_federation_s_password_is_not_shown_to_the_local_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNFED_BROKER_PASSWORD", "federation")
    local = LocalBrokerSettings(topic="learn/#", username="gateway")
    assert local.read_password() is None
    monkeypatch.setenv("ALIGNFED_LOCAL_BROKER_PASSWORD", "local")
    assert local.read_password() == "local"
    assert json.loads(local.model_dump_json())["topic"] == "learn/#"
