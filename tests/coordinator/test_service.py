"""The coordinator as a process, on a real broker: what it publishes, and what it keeps through a kill."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from base_model.layout import layout_of
from base_model.reference import resolve
from broker.client import Client
from broker.embedded import EmbeddedBroker
from broker.events import Message
from coordinator.publisher import publication
from coordinator.replay import replay
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.chunks import describe, split
from schemas.codec import encode
from schemas.messages import (
    Body,
    CoordinatorState,
    GlobalManifest,
    GlobalPointer,
    Receipt,
    UpdateManifest,
    join_body,
    update_id,
)
from schemas.topics import (
    CoordinatorStateOf,
    GlobalChunk,
    GlobalHead,
    GlobalManifestOf,
    ReceiptFor,
    UpdateChunk,
    UpdateManifestOf,
    parse,
)

FEDERATION = "test"
PATIENCE_S = 30.0
LORA = LoraConfig(rank=2)


@pytest.fixture
def base_model(tmp_path: Path) -> Path:
    """The files of a model with two projections: the coordinator reads their headers and never loads them."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    names = [f"model.layers.0.self_attn.{name}.weight" for name in ("q_proj", "v_proj")]
    save_file({name: np.zeros((64, 64), np.float32) for name in names}, folder / "model.safetensors")
    return folder


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker("auto") as running:
        yield running


class Coordinator:
    """A coordinator process that can be killed and started again on the same data."""

    def __init__(self, folder: Path, broker: EmbeddedBroker, base_model: Path) -> None:
        self.data_dir = folder / "coordinator"
        self.config = folder / "alignfed.toml"
        self.config.write_text(
            f"""
            federation = "{FEDERATION}"
            base_model = {{name = "{base_model}", cache_dir = "{folder / "cache"}"}}
            broker = {{port = {broker.settings.port}}}
            [coordinator]
            data_dir = "{self.data_dir}"
            lora = {{rank = {LORA.rank}}}
            strategy = {{name = "fedbuff", buffer_size = 2}}
            keep_versions = 2
            """
        )
        self.process = self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "alignfed", "coordinator", "--config", str(self.config)]
        self.process = subprocess.Popen(command)
        return self.process

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def coordinator(tmp_path: Path, broker: EmbeddedBroker, base_model: Path) -> Iterator[Coordinator]:
    running = Coordinator(tmp_path, broker, base_model)
    yield running
    running.kill()


class Node:
    """A node played by hand: it makes deltas of a given value and remembers what it was told."""

    def __init__(self, client: Client, layout: Layout, base_model: str) -> None:
        self.client, self.layout, self.base_model = client, layout, base_model
        self.messages: dict[str, Message] = {}
        self.receipts: list[Receipt] = []

    def until(self, condition: Callable[[], bool]) -> None:
        """Take in messages until the condition holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"still waiting; receipts so far: {self.receipts}"
            event = self.client.next_event(0.1)
            if isinstance(event, Message):
                self.messages[event.topic] = event
                if isinstance(parse(FEDERATION, event.topic), ReceiptFor):
                    self.receipts.append(Receipt.from_bytes(event.payload))
                self.client.ack(event)

    @property
    def head(self) -> GlobalPointer | None:
        message = self.retained(GlobalHead())
        return GlobalPointer.from_bytes(message.payload) if message else None

    def retained(self, address: object) -> Message | None:
        found = [m for topic, m in self.messages.items() if parse(FEDERATION, topic) == address and m.payload]
        return found[0] if found else None

    def until_version(self, version: int) -> None:
        self.until(lambda: self.head is not None and self.head.version >= version)

    def body(self, version: int) -> bytes:
        """The body of a version as a late joiner would put it together."""
        message = self.retained(GlobalManifestOf(version))
        assert message is not None
        manifest = GlobalManifest.from_bytes(message.payload)
        parts = [self.retained(GlobalChunk(version, index)) for index in range(len(manifest.body.chunks))]
        body = b"".join(part.payload for part in parts if part is not None)
        assert hashlib.sha256(body).hexdigest() == manifest.digest
        return body

    def manifest(self, node: str, sequence: int, base: GlobalPointer, delta: float) -> UpdateManifest:
        """The manifest of an update in chunks of 1000 bytes."""
        return UpdateManifest(
            node=node,
            boot_id="b" * 32,
            sequence=sequence,
            base_version=base.version,
            base_digest=base.digest,
            base_model=self.base_model,
            layout=self.layout.digest,
            examples=4,
            steps=8,
            participation=0,
            loss=1.0,
            seconds=1.0,
            body=describe(self._encoded(delta), "fp32", 1000, inline=0),
        )

    def send(
        self, node: str, sequence: int, base: GlobalPointer, delta: float, *, drop: int | None = None, cut: int = 0
    ) -> str:
        """Publish an update in chunks: without the one numbered `drop`, each less its last `cut` bytes; its id."""
        manifest = self.manifest(node, sequence, base, delta).to_bytes()
        id_ = update_id(manifest)
        for index, chunk in enumerate(split(self._encoded(delta), 1000)):
            if index != drop:
                address = UpdateChunk(node, id_, index)
                self.client.publish(publication(FEDERATION, address, chunk[: len(chunk) - cut]))
        self.client.publish(publication(FEDERATION, UpdateManifestOf(node, id_), manifest))
        return id_

    def _encoded(self, delta: float) -> bytes:
        return encode(Adapter(self.layout, np.full(self.layout.size, delta, np.float32)), "fp32")

    def statuses(self, id_: str) -> list[str]:
        return [receipt.status for receipt in self.receipts if receipt.update_id == id_]


@pytest.fixture
def node(broker: EmbeddedBroker, base_model: Path, tmp_path: Path) -> Iterator[Node]:
    resolved = resolve(str(base_model), tmp_path / "cache")
    with Client(broker.settings, "hand", subscriptions=["alignfed/#"]) as client:
        yield Node(client, layout_of(resolved, LORA), resolved.digest)


def test_a_new_federation_publishes_its_terms_and_version_0(coordinator: Coordinator, node: Node) -> None:
    node.until_version(0)
    birth = node.retained(CoordinatorStateOf())
    assert birth is not None
    terms = CoordinatorState.from_bytes(birth.payload)
    assert (terms.online, terms.strategy, terms.layout) == (True, "fedbuff", node.layout.digest)
    assert node.head is not None
    assert hashlib.sha256(node.body(0)).hexdigest() == node.head.digest


def test_two_updates_make_a_version_of_their_mean(coordinator: Coordinator, node: Node) -> None:
    node.until_version(0)
    assert node.head is not None
    ids = [node.send("a", 0, node.head, 1.0), node.send("b", 0, node.head, 3.0)]
    node.until_version(1)
    node.until(lambda: all(node.statuses(id_) == ["accepted", "aggregated"] for id_ in ids))
    before, after = (Adapter.from_safetensors(node.layout, node.body(version)) for version in (0, 1))
    np.testing.assert_array_equal(after.values, before.values + np.float32(2))


def test_versions_that_are_no_longer_kept_leave_the_broker(coordinator: Coordinator, node: Node) -> None:
    node.until_version(0)
    for version in range(3):
        assert node.head is not None
        for name in ("a", "b"):
            node.send(name, version, node.head, 0.1)
        node.until_version(version + 1)
    node.until(lambda: node.retained(GlobalManifestOf(1)) is None)
    assert node.retained(GlobalManifestOf(0)) is None
    assert node.retained(GlobalChunk(0, 0)) is None
    assert [node.retained(GlobalManifestOf(version)) is not None for version in (2, 3)] == [True, True]


def test_a_lost_chunk_is_asked_for_by_number(coordinator: Coordinator, node: Node) -> None:
    node.until_version(0)
    assert node.head is not None
    id_ = node.send("a", 0, node.head, 1.0, drop=2)
    node.until(lambda: "incomplete" in node.statuses(id_))
    [receipt] = [receipt for receipt in node.receipts if receipt.update_id == id_]
    assert receipt.missing == (2,)


def test_a_killed_coordinator_goes_on_with_nothing_lost_and_nothing_twice(coordinator: Coordinator, node: Node) -> None:
    node.until_version(0)
    assert node.head is not None
    first = node.head
    kept = node.send("a", 0, first, 1.0)
    node.until(lambda: node.statuses(kept) == ["accepted"])
    coordinator.kill()
    coordinator.start()
    node.until(lambda: node.head is not None and node.head.epoch > first.epoch)
    node.send("a", 0, first, 1.0)  # a node that missed its receipt sends again
    node.until(lambda: node.statuses(kept) == ["accepted", "duplicate"])
    node.send("b", 0, first, 3.0)
    node.until_version(1)
    before, after = (Adapter.from_safetensors(node.layout, node.body(version)) for version in (0, 1))
    np.testing.assert_array_equal(after.values, before.values + np.float32(2))


def test_a_broker_that_forgot_everything_is_told_again(
    coordinator: Coordinator, broker: EmbeddedBroker, node: Node
) -> None:
    node.until_version(0)
    broker.kill()
    broker.restart()
    node.messages.clear()
    node.until_version(0)
    assert node.body(0)


def test_sigterm_says_farewell_and_the_journal_replays(coordinator: Coordinator, node: Node) -> None:
    node.until_version(0)
    coordinator.process.send_signal(signal.SIGTERM)
    assert coordinator.process.wait(PATIENCE_S) == 0
    node.until(
        lambda: (
            (state := node.retained(CoordinatorStateOf())) is not None
            and not CoordinatorState.from_bytes(state.payload).online
        )
    )
    assert all(version.agrees for version in replay(coordinator.data_dir / "journal.db"))


def test_garbage_is_refused_or_counted_and_the_federation_goes_on(coordinator: Coordinator, node: Node) -> None:
    node.until_version(0)
    assert node.head is not None
    for payload in (b"", b"\0" * 1000, b"{}", b'{"boot_id": 1}\n' + b"x" * 100, json.dumps({"size": 1 << 60}).encode()):
        address = UpdateManifestOf("stray", update_id(payload.partition(b"\n")[0]))
        node.client.publish(publication(FEDERATION, address, payload))
        node.client.publish(publication(FEDERATION, UpdateManifestOf("stray", "0" * 32), payload))
        node.client.publish(publication(FEDERATION, UpdateChunk("stray", "0" * 32, 99_999), payload))
    for name in ("a", "b"):
        node.send(name, 0, node.head, 1.0)
    node.until_version(1)
    refused = [receipt for receipt in node.receipts if receipt.status == "rejected"]
    assert refused and all(receipt.reason for receipt in refused)


def test_each_kind_of_false_update_is_refused_with_its_reason(coordinator: Coordinator, node: Node) -> None:
    node.until_version(0)
    assert node.head is not None
    sound = node.manifest("stray", 0, node.head, 1.0)
    nan = np.full(node.layout.size, np.nan, np.float32).tobytes()
    vast = Body(codec="int8", sha256="0" * 64, size=100_000_000, chunks=("0" * 64,) * 900)
    false = {
        "base version 999 is unknown": sound.model_copy(update={"base_version": 999}),
        "another adapter here": sound.model_copy(update={"base_digest": "0" * 64}),
        "configure the same base model": sound.model_copy(update={"base_model": "0" * 64}),
        "shape": sound.model_copy(update={"layout": "0" * 64}),
        "100000000 bytes": sound.model_copy(update={"body": vast}),
        "NaN": sound.model_copy(update={"body": describe(nan, "fp32")}),
        "your own name": sound.model_copy(update={"node": "somebody"}),
    }
    for manifest in false.values():
        address = UpdateManifestOf("stray", update_id(manifest.to_bytes()))
        node.client.publish(publication(FEDERATION, address, join_body(manifest.to_bytes(), nan)))
    node.until(lambda: len(node.receipts) == len(false))
    for reason, manifest in false.items():
        [receipt] = [r for r in node.receipts if r.update_id == update_id(manifest.to_bytes())]
        assert receipt.status == "rejected"
        assert reason in str(receipt.reason)
    for name in ("a", "b"):
        node.send(name, 0, node.head, 1.0)
    node.until_version(1)


def test_truncated_chunks_are_asked_for_again(coordinator: Coordinator, node: Node) -> None:
    node.until_version(0)
    assert node.head is not None
    id_ = node.send("a", 0, node.head, 1.0, cut=1)
    node.until(lambda: "incomplete" in node.statuses(id_))
    assert {index for receipt in node.receipts for index in receipt.missing} == {0, 1, 2}


def test_other_settings_for_the_same_data_are_refused_with_a_way_out(
    coordinator: Coordinator, node: Node, tmp_path: Path
) -> None:
    node.until_version(0)
    coordinator.kill()
    coordinator.config.write_text(coordinator.config.read_text().replace(f"rank = {LORA.rank}", "rank = 3"))
    command = [sys.executable, "-m", "alignfed", "coordinator", "--config", str(coordinator.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1
    assert "data_dir of its own" in done.stderr


def test_two_coordinators_cannot_share_their_data(coordinator: Coordinator, node: Node) -> None:
    node.until_version(0)
    command = [sys.executable, "-m", "alignfed", "coordinator", "--config", str(coordinator.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1
    assert "another coordinator works in" in done.stderr
