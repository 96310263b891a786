"""A node's process answers with the release, from its disk where it must, while it learns and takes in examples."""

import http.client
import json
import time
from pathlib import Path
from typing import Any

import pytest

from base_model.examples import Example, save_examples
from broker.client import Client
from broker.embedded import EmbeddedBroker
from broker.events import Message, Publication
from edge_node.data.local_data import LocalData
from edge_node.data.settings import LocalDataSettings
from schemas import topics
from schemas.adapter import Adapter
from schemas.messages import (
    NodeMetrics,
)
from tests.edge_node.processes.by_hand import Federation, asked
from tests.patience import PATIENCE_S


def test_a_node_answers_with_the_release_while_it_trains_from_the_head(
    each_broker: EmbeddedBroker, found: Any, start: Any, first: Adapter, free_port: int
) -> None:
    federation = found(each_broker)
    federation.announce()
    node = start(federation, each_broker, serving={"http": f"127.0.0.1:{free_port}"})
    node.says("answering on http://")
    assert asked(free_port)[0] == "none"
    federation.release(federation.publish(0, first))
    node.says("serving the head of version 0")
    assert asked(free_port)[0] == "0"
    released = federation.publish(1, first * 2.0, average=first * 1.5)
    federation.hears_state(lambda state: state.version == 1)
    version, answer = asked(free_port)
    assert (version, answer["system_fingerprint"]) == ("0", f"v0-{first.digest[:12]}")
    federation.release(released)
    node.says("serving the average of version 1")
    version, answer = asked(free_port)
    assert (version, answer["system_fingerprint"]) == ("1", f"v1-{(first * 1.5).digest[:12]}")
    assert node.is_asked_to_end() == 0
    assert "Traceback" not in node.log


def test_examples_come_in_by_every_door_and_none_goes_out(
    broker: EmbeddedBroker, found: Any, start: Any, first: Adapter, free_port: int, tmp_path: Path
) -> None:
    secret = "xyzzy-plugh"
    (tmp_path / "inbox").mkdir()
    examples = tuple(Example(prompt=f"{secret} {n}", completion=secret) for n in range(32))
    save_examples(examples[:30], tmp_path / "inbox" / "a.jsonl")
    federation = found(broker)
    with EmbeddedBroker() as devices, Client(broker.settings, "observer", subscriptions=["#"]) as observer:
        node = start(
            federation,
            broker,
            data=str(tmp_path / "inbox"),
            serving={"http": f"127.0.0.1:{free_port}"},
            local_broker={"port": devices.settings.port, "topic": "learn/#"},
            local_data={"held_out": 0.3, "measured": 4},
        )
        node.says("answering on http://")
        connection = http.client.HTTPConnection("127.0.0.1", free_port, timeout=PATIENCE_S)
        connection.request("POST", "/v1/examples", examples[30].model_dump_json(), {"Content-Type": "application/json"})
        assert json.load(connection.getresponse()) == {"added": 1, "duplicates": 0}
        connection.close()
        node.says("listening to learn/#")
        with Client(devices.settings, "device") as device:
            device.publish(Publication("learn/hall", examples[31].model_dump_json().encode()))
        federation.announce()
        federation.publish(0, first)
        _, manifest, _ = federation.hears_update()
        assert node.is_asked_to_end() == 0
        seen = _everything_said(observer, federation)
    settings = LocalDataSettings(held_out=0.3)
    summary = LocalData.look(None, tmp_path / "home-1", settings).summary()
    assert summary.sources == {"file a.jsonl": 30, "http": 1, "mqtt": 1}
    assert manifest.examples <= summary.training
    metrics = [NodeMetrics.from_bytes(m.payload) for m in seen if m.topic.endswith("/metrics")]
    (loss,) = {m.held_out_loss for m in metrics if m.held_out_version == 0}
    assert loss is not None
    assert 0 < loss < 100
    assert secret.encode() not in b"".join(message.topic.encode() + message.payload for message in seen)
    assert secret not in node.log


def test_a_node_that_may_not_train_says_how_well_versions_answer_its_own_examples(
    broker: EmbeddedBroker, found: Any, start: Any, first: Adapter, free_port: int, tmp_path: Path
) -> None:
    examples = tuple(Example(prompt=f"turn on lamp {n}", completion="yes") for n in range(32))
    save_examples(examples, tmp_path / "inbox.jsonl")
    in_six_hours = (time.localtime().tm_hour + 6) % 24
    federation = found(broker)
    with Client(broker.settings, "observer", subscriptions=["alignfed/#"]) as observer:
        start(
            federation,
            broker,
            data=str(tmp_path / "inbox.jsonl"),
            serving={"http": f"127.0.0.1:{free_port}"},
            policy={"hours": f"{in_six_hours:02}:00-{in_six_hours:02}:30"},
            local_data={"held_out": 0.3, "measured": 4, "measured_idle": True},
        )
        federation.announce()
        federation.release(federation.publish(0, first))
        said, deadline = NodeMetrics(boot_id="0" * 32), time.monotonic() + PATIENCE_S
        while said.held_out_loss is None or said.served_loss is None:
            assert time.monotonic() < deadline, said
            event = observer.next_event(0.5)
            if isinstance(event, Message) and event.topic.endswith("/metrics"):
                said = NodeMetrics.from_bytes(event.payload)
            if isinstance(event, Message):
                observer.ack(event)
    assert (said.idle, said.updates_sent) == ("not_at_this_hour", 0)
    assert (said.held_out_version, said.served_loss_version) == (0, 0)
    assert (said.held_out_examples, said.served_loss_examples) == (4, 4)
    assert said.served_loss == pytest.approx(said.held_out_loss, rel=0.01)


def _everything_said(observer: Client, federation: Federation) -> list[Message]:
    """All that was on the federation's broker up to now."""
    end = b'{"the": "end"}'
    federation.say(topics.NodeMetricsOf("nobody"), end)
    seen, deadline = list[Message](), time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        event = observer.next_event(0.5)
        if isinstance(event, Message):
            observer.ack(event)
            if event.payload == end:
                return seen
            seen.append(event)
    raise AssertionError("the observer hears nothing more")


def test_a_node_serves_from_its_disk_while_the_broker_is_away(
    broker: EmbeddedBroker, found: Any, start: Any, first: Adapter, free_port: int, tmp_path: Path
) -> None:
    federation = found(broker)
    federation.announce()
    serving = {"http": f"127.0.0.1:{free_port}"}
    node = start(federation, broker, serving=serving)
    federation.release(federation.publish(3, first))
    node.says("serving the head of version 3")
    on_disk, deadline = tmp_path / "home-1" / "release" / "pointer.json", time.monotonic() + PATIENCE_S
    while not on_disk.exists():  # it is tried first
        assert time.monotonic() < deadline, node.log
        time.sleep(0.05)
    node.process.kill()
    node.process.wait()
    broker.kill()
    node = start(federation, broker, serving=serving)
    node.says("serving the head of version 3")
    assert asked(free_port)[0] == "3"
    assert node.is_asked_to_end() == 0


def test_one_step_back_needs_no_broker_that_remembers(
    broker: EmbeddedBroker, found: Any, start: Any, first: Adapter, free_port: int, tmp_path: Path
) -> None:
    federation = found(broker)
    federation.announce()
    serving = {"http": f"127.0.0.1:{free_port}"}
    node = start(federation, broker, serving=serving)
    pointer = federation.publish(0, first)
    federation.release(pointer)
    node.says("serving the head of version 0")
    federation.hears_state(lambda state: state.serving == 0)
    federation.release(federation.publish(1, first * 2.0))
    deadline = time.monotonic() + PATIENCE_S
    while len(list((tmp_path / "home-1" / "release").glob("*.safetensors"))) < 2:  # it is tried first
        assert time.monotonic() < deadline, node.log
        time.sleep(0.05)
    for piece in (topics.GlobalManifestOf(0), *(topics.GlobalChunk(0, index) for index in range(pointer.chunks))):
        federation.say(piece, b"")  # nobody can fetch it any more
    assert node.is_asked_to_end() == 0
    node = start(federation, broker, serving=serving)
    node.says("serving the head of version 1")
    federation.release(pointer.model_copy(update={"epoch": 2}))
    node.says("version 0 is on disk: it is not fetched")
    federation.hears_state(lambda state: state.serving == 0)
    deadline = time.monotonic() + PATIENCE_S
    while (version := asked(free_port)[0]) != "0":  # it is tried first
        assert time.monotonic() < deadline, version
    assert node.is_asked_to_end() == 0
