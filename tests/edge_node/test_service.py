"""A real node process, a real broker, a real tiny model; the coordinator's side is played by the test."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from base_model.examples import Example, save_examples
from base_model.layout import initial_adapter, layout_of
from base_model.reference import DEFAULT_NAME, ResolvedModel, default_cache, gguf_of, resolve
from broker.client import Client
from broker.embedded import EmbeddedBroker, find_mosquitto
from broker.events import Message, Publication
from edge_node.data.local_data import LocalData
from edge_node.data.settings import LocalDataSettings
from edge_node.serving.export import export, prepack
from schemas import topics
from schemas.adapter import Adapter, LoraConfig
from schemas.chunks import describe, split
from schemas.codec import decode, encode
from schemas.messages import (
    CoordinatorState,
    GlobalManifest,
    GlobalPointer,
    NodeMetrics,
    NodeState,
    Receipt,
    ReleaseReport,
    UpdateManifest,
    split_body,
    update_id,
)
from tests.patience import PATIENCE_S

LORA = LoraConfig(rank=2)
EXAMPLES = tuple(Example(prompt=f"turn on lamp {number}", completion="TurnOn") for number in range(6))

NODE = """
import json, logging, sys
from base_model.settings import BaseModelSettings
from broker.settings import BrokerSettings
from edge_node.service import run
from edge_node.settings import EdgeSettings

logging.basicConfig(level="INFO", format="%(levelname)s %(message)s", stream=sys.stderr)
config = json.loads(sys.argv[1])
run(config["federation"], BaseModelSettings(**config["base_model"]), BrokerSettings(**config["broker"]),
    EdgeSettings(**config["edge"]))
"""


class NodeProcess:
    """One node as its owner runs it; `log` is what it wrote to standard error so far."""

    def __init__(self, config: dict[str, Any], log: Path, group: Path | None = None) -> None:
        self._log = log
        with log.open("ab") as output:
            command = [sys.executable, "-c", NODE, json.dumps(config)]
            if group is not None:  # a control group, which it enters before it is what it is
                command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group), *command]
            self.process = subprocess.Popen(command, stderr=output, env=os.environ | {"OMP_NUM_THREADS": "1"})

    @property
    def log(self) -> str:
        return self._log.read_text()

    def training_process(self) -> psutil.Process:
        """The process of the training under way."""
        trainings = [
            child for child in psutil.Process(self.process.pid).children() if "training" in child.cmdline()[-1]
        ]
        assert len(trainings) == 1
        return trainings[0]

    def ends(self) -> int:
        """Its exit code, once it has ended by itself."""
        return self.process.wait(PATIENCE_S)

    def is_asked_to_end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.ends()

    def says(self, text: str, patience_s: float = PATIENCE_S) -> None:
        """Wait until the log has this."""
        deadline = time.monotonic() + patience_s
        while text not in self.log:
            assert self.process.poll() is None and time.monotonic() < deadline, f"{text!r} is not in:\n{self.log}"
            time.sleep(0.05)


class Federation:
    """The coordinator's side, by hand: it publishes what the test says and hears what the node publishes."""

    def __init__(self, broker: EmbeddedBroker, resolved: ResolvedModel) -> None:
        self.name = f"test-{uuid.uuid4().hex[:8]}"
        self.resolved = resolved
        self.layout = layout_of(resolved, LORA)
        self._client = self._connect(broker)

    def _connect(self, broker: EmbeddedBroker) -> Client:
        filters = [topics.topic_filter(self.name, kind) for kind in (topics.UpdateManifestOf, topics.NodeStateOf)]
        client = Client(broker.settings, f"{self.name}-coordinator", subscriptions=filters)
        client.start()
        return client

    def comes_back(self, broker: EmbeddedBroker) -> None:
        """Connect afresh, without the patience that a client has grown while the broker was away."""
        self.close()
        self._client = self._connect(broker)

    def close(self) -> None:
        self._client.stop(1)

    def say(self, address: topics.Address, payload: bytes) -> None:
        self._client.publish(Publication(payload=payload, **topics.route(self.name, address)._asdict()))

    def announce(self, **changes: Any) -> None:
        usual: dict[str, Any] = {
            "online": True,
            "boot_id": "c0" * 16,
            "epoch": 1,
            "base_model": self.resolved.digest,
            "base_model_name": "tiny",
            "lora": LORA,
            "layout": self.layout.digest,
            "strategy": "by hand",
            "one_update_per_version": True,
            "codecs": ("int8", "fp32"),
        }
        self.say(topics.CoordinatorStateOf(), CoordinatorState(**(usual | changes)).to_bytes())

    def publish(
        self, version: int, adapter: Adapter, chunk_size: int = 4096, average: Adapter | None = None
    ) -> GlobalPointer:
        """Chunks, manifest, and the pointer last; the pointer to what would be served, the average if there is one."""
        body = encode(adapter, "safetensors")
        entry = describe(body, "safetensors", chunk_size, inline=0)
        averaged = encode(average, "safetensors") if average is not None else b""
        average_entry = describe(averaged, "safetensors", chunk_size, inline=0) if average is not None else None
        for index, chunk in enumerate(split(averaged, chunk_size) if averaged else ()):
            self.say(topics.GlobalAverageChunk(version, index), chunk)
        manifest = GlobalManifest(
            epoch=1,
            version=version,
            parent=None,
            base_model=self.resolved.digest,
            lora=LORA,
            layout=self.layout.digest,
            strategy="by hand",
            inputs=(),
            release=ReleaseReport(version=version, variant="head", judged=version),
            created_at_ns=0,
            body=entry,
            average=average_entry,
        )
        for index, chunk in enumerate(split(body, chunk_size)):
            self.say(topics.GlobalChunk(version, index), chunk)
        self.say(topics.GlobalManifestOf(version), manifest.to_bytes())
        pointer = GlobalPointer(
            epoch=1, version=version, digest=entry.sha256, parent=None, size=len(body), chunks=len(entry.chunks)
        )
        self.say(topics.GlobalHead(), pointer.to_bytes())
        if average_entry is None:
            return pointer
        sizes = {"size": len(averaged), "chunks": len(average_entry.chunks)}
        return pointer.model_copy(update={"digest": average_entry.sha256, "variant": "average", **sizes})

    def release(self, pointer: GlobalPointer) -> None:
        self.say(topics.GlobalRelease(), pointer.to_bytes())

    def answer(self, node: str, update: str, **receipt: Any) -> None:
        self.say(topics.ReceiptFor(node), Receipt(update_id=update, **receipt).to_bytes())

    def hears(self, wanted: Callable[[topics.Address, bytes], Any]) -> Any:
        """The first thing that `wanted` makes of a message from a node."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            event = self._client.next_event(1.0)
            if isinstance(event, Message):
                self._client.ack(event)
                address = topics.parse(self.name, event.topic)
                assert address is not None
                if (found := wanted(address, event.payload)) is not None:
                    return found
        raise AssertionError("the node did not say what was expected")

    def hears_update(self) -> tuple[str, UpdateManifest, Adapter]:
        """The next update: its id, its manifest, and its decoded delta."""

        def update(address: topics.Address, payload: bytes) -> tuple[str, UpdateManifest, Adapter] | None:
            if not isinstance(address, topics.UpdateManifestOf):
                return None
            head, body = split_body(payload)
            assert update_id(head) == address.update_id
            manifest = UpdateManifest.from_bytes(head)
            return address.update_id, manifest, decode(body, self.layout, manifest.body.codec)

        found: tuple[str, UpdateManifest, Adapter] = self.hears(update)
        return found

    def hears_state(self, wanted: Callable[[NodeState], bool]) -> NodeState:
        """The first state of a node that is as wanted."""

        def state(address: topics.Address, payload: bytes) -> NodeState | None:
            if not isinstance(address, topics.NodeStateOf):
                return None
            told = NodeState.from_bytes(payload)
            return told if wanted(told) else None

        found: NodeState = self.hears(state)
        return found


@pytest.fixture(scope="module")
def resolved(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return resolve(str(tiny_model_dir), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def first(resolved: ResolvedModel) -> Adapter:
    """The adapter of version 0."""
    return initial_adapter(layout_of(resolved, LORA), seed=0)


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "iotcore"])
def each_broker(request: pytest.FixtureRequest) -> Iterator[EmbeddedBroker]:
    if request.param == "mosquitto" and find_mosquitto() is None:
        pytest.skip("MOSQUITTO IS NOT INSTALLED (apt install mosquitto)")
    with EmbeddedBroker(request.param) as running:
        yield running


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as running:
        yield running


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.fixture
def found(resolved: ResolvedModel) -> Iterator[Any]:
    """Found a federation on a broker."""
    federations = []

    def found(broker: EmbeddedBroker, model: ResolvedModel = resolved) -> Federation:
        federations.append(Federation(broker, model))
        return federations[-1]

    yield found
    for federation in federations:
        federation.close()


@pytest.fixture
def start(tmp_path: Path, resolved: ResolvedModel) -> Iterator[Any]:
    """Start the node home-1 of a federation; the same folder each time."""
    processes: list[NodeProcess] = []
    save_examples(EXAMPLES, tmp_path / "examples.jsonl")

    def start(federation: Federation, broker: EmbeddedBroker, group: Path | None = None, **edge: Any) -> NodeProcess:
        usual = {
            "node": "home-1",
            "data": str(tmp_path / "examples.jsonl"),
            "data_dir": str(tmp_path / "home-1"),
            "training": {"steps": 2, "batch_size": 2, "learning_rate": 0.01},
        }
        config = {
            "federation": federation.name,
            "base_model": {"name": str(resolved.path), "cache_dir": str(tmp_path / "cache")},
            "broker": {"host": broker.settings.host, "port": broker.settings.port},
            "edge": usual | edge,
        }
        if federation.resolved != resolved:
            config["base_model"] = {"name": federation.resolved.name}
        processes.append(NodeProcess(config, tmp_path / f"node-{len(processes)}.log", group))
        return processes[-1]

    yield start
    for node in processes:
        if node.process.poll() is None:
            node.process.kill()
            node.process.wait()


def test_a_node_learns_publishes_gets_its_receipt_and_goes_on_with_the_next_version(
    each_broker: EmbeddedBroker, found: Any, start: Any, first: Adapter
) -> None:
    federation = found(each_broker)
    federation.announce()
    federation.publish(0, first)
    node = start(federation, each_broker)
    birth = federation.hears_state(lambda state: state.online)
    assert federation.hears_state(lambda state: state.version == 0).boot_id == birth.boot_id
    update, manifest, delta = federation.hears_update()
    assert (manifest.base_version, manifest.base_digest, manifest.steps) == (0, first.digest, 2)
    assert delta.norm > 0
    federation.answer("home-1", update, status="accepted")
    federation.publish(1, first + delta)
    _, manifest, _ = federation.hears_update()
    assert (manifest.base_version, manifest.participation, manifest.sequence) == (1, 1, 1)
    assert node.is_asked_to_end() == 0
    assert federation.hears_state(lambda state: not state.online).boot_id == birth.boot_id
    for line in ("version 0 held", "training on version 0: 2 steps, loss ", f"update {update[:8]} accepted"):
        assert line in node.log
    assert "Traceback" not in node.log


def test_a_version_published_later_is_picked_up_live(
    each_broker: EmbeddedBroker, found: Any, start: Any, first: Adapter
) -> None:
    federation = found(each_broker)
    node = start(federation, each_broker)
    federation.hears_state(lambda state: state.online)
    federation.announce()
    federation.publish(0, first)
    federation.hears_state(lambda state: state.version == 0)
    federation.publish(1, first * 2.0)
    federation.hears_state(lambda state: state.version == 1)
    assert node.is_asked_to_end(signal.SIGINT) == 0


def test_an_update_without_a_receipt_survives_kill_9_of_its_node(
    broker: EmbeddedBroker, found: Any, start: Any, first: Adapter
) -> None:
    federation = found(broker)
    federation.announce()
    federation.publish(0, first)
    node = start(federation, broker)
    before, _, _ = federation.hears_update()
    node.process.kill()
    node.process.wait()
    node = start(federation, broker)
    again, _, _ = federation.hears_update()
    assert again == before
    federation.answer("home-1", again, status="rejected", reason="the norm of the delta is too large")
    node.says(f"update {again[:8]} rejected: the norm of the delta is too large")


def test_a_node_goes_on_from_what_it_held_while_the_broker_is_away(
    broker: EmbeddedBroker, found: Any, start: Any, first: Adapter
) -> None:
    federation = found(broker)
    federation.announce(one_update_per_version=False)
    federation.publish(0, first)
    node = start(federation, broker)
    federation.hears_state(lambda state: state.version == 0)
    node.process.kill()
    node.process.wait()
    broker.kill()
    node = start(federation, broker, outbox_updates=2)
    node.says("training on version 0: 2 steps")
    broker.restart()
    federation.comes_back(broker)
    _, manifest, _ = federation.hears_update()
    assert manifest.base_version == 0
    assert node.is_asked_to_end() == 0


def test_a_node_with_another_base_model_ends_with_code_3_and_says_what_to_do(
    broker: EmbeddedBroker, found: Any, start: Any
) -> None:
    federation = found(broker)
    federation.announce(base_model="0" * 64, base_model_name="hub/other")
    node = start(federation, broker)
    assert node.ends() == 3
    assert "0" * 64 in node.log
    assert federation.resolved.digest in node.log
    assert "Name that model under [base_model]" in node.log
    assert "Traceback" not in node.log


def asked(port: int) -> tuple[str | None, dict[str, Any]]:
    """The version that a node says has answered, and the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    body = json.dumps({"messages": [{"role": "user", "content": "turn on lamp 1"}], "max_tokens": 8})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer: dict[str, Any] = json.load(response)
    connection.close()
    return response.headers["x-adapter-version"], answer


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


def test_an_update_goes_through_a_link_that_is_cut_in_its_midst(
    broker: EmbeddedBroker, found: Any, start: Any, first: Adapter, fault_proxy: Any
) -> None:
    federation = found(broker)
    federation.announce()
    federation.publish(0, first)
    proxy = fault_proxy(broker.settings.port)
    proxy.cuts.extend((1500, 2000))
    link = SimpleNamespace(settings=broker.settings.model_copy(update={"port": proxy.port}))
    node = start(federation, link, codec="fp32")
    update, _, delta = federation.hears_update()
    assert delta.norm > 0
    federation.answer("home-1", update, status="accepted")
    node.says(f"update {update[:8]} accepted")
    assert proxy.connections >= 3


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
    broker: EmbeddedBroker, found: Any, start: Any, first: Adapter, free_port: int
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
    node.says("serving the head of version 1")
    for piece in (topics.GlobalManifestOf(0), *(topics.GlobalChunk(0, index) for index in range(pointer.chunks))):
        federation.say(piece, b"")  # nobody can fetch it any more
    federation.release(pointer.model_copy(update={"epoch": 2}))
    node.says("version 0 is on disk: it is not fetched")
    federation.hears_state(lambda state: state.serving == 0)
    deadline = time.monotonic() + PATIENCE_S
    while (version := asked(free_port)[0]) != "0":  # it is tried first
        assert time.monotonic() < deadline, version
    assert node.is_asked_to_end() == 0


def shown(port: int, path: str) -> tuple[int, str]:
    """What a node shows there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request("GET", path)
    response = connection.getresponse()
    told = response.status, response.read().decode()
    connection.close()
    return told


def until_shown(port: int, connected: bool) -> None:
    """Wait for a node that does its work, and says this of its broker."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError):
            status, told = shown(port, "/healthz")
            if status == 200 and json.loads(told)["connected"] == connected:
                return
        time.sleep(0.1)
    raise AssertionError(f"the node does not say that connected is {connected}")


def test_a_node_that_only_trains_shows_its_health_and_figures_and_stays_small(
    broker: EmbeddedBroker, found: Any, start: Any, first: Adapter, free_port: int
) -> None:
    federation = found(broker)
    federation.announce()
    federation.publish(0, first)
    node = start(federation, broker, metrics_http=f"127.0.0.1:{free_port}")
    federation.hears_update()
    until_shown(free_port, connected=True)
    status, figures = shown(free_port, "/metrics")
    assert status == 200
    assert "alignfed_edge_head_version 0.0" in figures
    assert shown(free_port, "/v1/models")[0] == 404
    assert psutil.Process(node.process.pid).memory_info().rss < 80e6
    broker.kill()
    until_shown(free_port, connected=False)
    assert node.is_asked_to_end() == 0


def test_an_address_that_is_taken_ends_the_node_with_a_sentence(broker: EmbeddedBroker, found: Any, start: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        node = start(found(broker), broker, serving={"http": address})
        assert node.ends() == 1
        watched = start(found(broker), broker, metrics_http=address)
        assert watched.ends() == 1
    assert f"cannot answer on {address}: Address already in use; choose another --http" in node.log
    assert f"cannot answer on {address}: Address already in use; choose another edge.metrics_http" in watched.log
    assert "Traceback" not in node.log + watched.log


def test_a_node_ends_cleanly_in_the_midst_of_a_step(
    broker: EmbeddedBroker, found: Any, start: Any, first: Adapter
) -> None:
    federation = found(broker)
    federation.announce()
    federation.publish(0, first)
    node = start(federation, broker, slowdown=1000, training={"steps": 1000, "batch_size": 2})
    federation.hears_state(lambda state: state.version == 0)
    node.says("training on float32 weights")
    assert node.is_asked_to_end() == 0


def test_a_training_that_is_killed_costs_a_round_and_not_the_service(
    broker: EmbeddedBroker, found: Any, start: Any, first: Adapter, free_port: int
) -> None:
    federation = found(broker)
    federation.announce()
    slow = {"steps": 1000, "batch_size": 2}
    node = start(federation, broker, slowdown=1000, training=slow, serving={"http": f"127.0.0.1:{free_port}"})
    federation.release(federation.publish(0, first))
    node.says("serving the head of version 0")
    node.says("training on float32 weights")
    assert "torch" not in " ".join(mapped.path for mapped in psutil.Process(node.process.pid).memory_maps())
    node.training_process().kill()
    node.says("cannot train: the training process was killed")
    assert "Next try in" in node.log
    assert asked(free_port)[0] == "0"
    assert node.is_asked_to_end() == 0
    assert "Traceback" not in node.log


def test_no_training_outlives_a_node_that_is_killed(
    broker: EmbeddedBroker, found: Any, start: Any, first: Adapter
) -> None:
    federation = found(broker)
    federation.announce()
    federation.publish(0, first)
    node = start(federation, broker, slowdown=1000, training={"steps": 1000, "batch_size": 2})
    node.says("training on float32 weights")
    training = node.training_process()
    node.process.kill()
    training.wait(PATIENCE_S)


MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")
GIGABYTE = 1_000_000_000


@pytest.fixture
def limited() -> Iterator[Path]:
    """A control group that may have a gigabyte of memory, and no swap."""
    group = MEMORY_GROUPS / f"alignfed-test-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(GIGABYTE))
        (group / "memory.swappiness").write_text("0")
    except OSError as fault:
        pytest.skip(
            f"THE GIGABYTE IS NOT TESTED: NO CONTROL GROUP OF MEMORY CAN BE MADE HERE (cgroup v1, root): {fault}"
        )
    yield group
    for pid in (group / "cgroup.procs").read_text().split():
        psutil.Process(int(pid)).kill()
    deadline = time.monotonic() + PATIENCE_S
    while (group / "cgroup.procs").read_text().split() and time.monotonic() < deadline:
        time.sleep(0.05)
    group.rmdir()


def _forget_pages(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


@pytest.mark.slow
def test_a_node_serves_and_trains_the_real_model_in_a_gigabyte(
    broker: EmbeddedBroker, found: Any, start: Any, limited: Path, free_port: int
) -> None:
    cache = default_cache()
    real = resolve(DEFAULT_NAME, cache)
    served = prepack(export(real, cache, "q41x"), cache)  # once per machine, and not in this group
    for path in (gguf_of(real, cache), *served.graph.parent.iterdir()):
        _forget_pages(path)  # those that others have read would be counted as theirs
    federation = found(broker, real)
    federation.announce()
    address = f"127.0.0.1:{free_port}"
    training = {"steps": 3, "batch_size": 4}
    node = start(federation, broker, limited, training=training, serving={"http": address, "parallel": 2})
    node.says("answering on http://", 300)
    version = initial_adapter(layout_of(real, LORA), seed=0)
    federation.release(federation.publish(0, version))
    node.says("serving the head of version 0", 300)
    node.says("training on the blocks of ", 300)
    assert asked(free_port)[0] == "0"  # while it trains
    node.says("training on version 0: 3 steps", 300)
    _, manifest, delta = federation.hears_update()
    assert (manifest.base_version, manifest.steps) == (0, 3)
    assert delta.norm > 0
    assert asked(free_port)[0] == "0"
    assert node.is_asked_to_end() == 0
    assert "cannot train" not in node.log
    assert "oom_kill 0" in (limited / "memory.oom_control").read_text()
    assert int((limited / "memory.max_usage_in_bytes").read_text()) <= GIGABYTE


@pytest.mark.slow
def test_where_memory_ends_the_training_goes_and_the_service_stays(
    broker: EmbeddedBroker, found: Any, start: Any, limited: Path, free_port: int
) -> None:
    (limited / "memory.limit_in_bytes").write_text(str(250 << 20))
    real = resolve(DEFAULT_NAME, default_cache())
    federation = found(broker, real)
    federation.announce()
    node = start(federation, broker, limited, serving={"http": f"127.0.0.1:{free_port}"})
    node.says("answering on http://", 300)
    federation.release(federation.publish(0, initial_adapter(layout_of(real, LORA), seed=0)))
    node.says("cannot train: the training process was killed", 300)
    assert asked(free_port)[0] == "0"
    assert node.is_asked_to_end() == 0


def test_faults_of_the_owner_end_with_code_1_and_a_sentence(
    broker: EmbeddedBroker, found: Any, start: Any, tmp_path: Path
) -> None:
    federation = found(broker)
    node = start(federation, broker, data=str(tmp_path / "nothing.jsonl"))
    assert node.ends() == 1
    assert f"cannot read {tmp_path / 'nothing.jsonl'}" in node.log
    (tmp_path / "home-1" / "outbox.db").write_bytes(b"this is not a database" * 100)
    node = start(federation, broker)
    assert node.ends() == 1
    assert "outbox.db is damaged" in node.log
    running = start(federation, broker)
    running.says("connected to the broker")
    second = start(federation, broker)
    assert second.ends() == 1
    assert "another node works in" in second.log
    assert running.is_asked_to_end() == 0
    assert "Traceback" not in node.log + second.log + running.log
