"""A federation small enough to think about: adapters of two parameters, A and B, often one and the same number.

And a coordinator that is a process on a real broker, with a node played by hand.
"""

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from safetensors.numpy import save_file

from base_model.layout import layout_of
from base_model.reference import resolve
from base_model.settings import TrainingConfig
from broker.client import Client
from broker.embedded import EmbeddedBroker
from broker.events import Message
from coordinator.publisher import publication
from coordinator.questions import Fold
from coordinator.state import CalibrationTerms, FederationConfig, Limits, Received
from coordinator.strategies import FedBuff, Strategy
from coordinator.updates import AdapterUpdate, Buffer, Flush, GlobalAdapter
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.chunks import describe, split
from schemas.codec import encode
from schemas.messages import (
    MAX_INPUTS,
    GlobalManifest,
    GlobalPointer,
    Receipt,
    UpdateManifest,
    Variant,
    join_body,
    update_id,
)
from schemas.topics import (
    GlobalAverageChunk,
    GlobalChunk,
    GlobalHead,
    GlobalManifestOf,
    GlobalRelease,
    ReceiptFor,
    UpdateChunk,
    UpdateManifestOf,
    parse,
    route,
)
from tests.patience import PATIENCE_S

# two busy cores make any single example slow; under CI hypothesis itself derandomizes, and that stays as it is
settings.register_profile("no-deadline", settings(), deadline=None)
settings.load_profile("no-deadline")

LAYOUT = Layout(lora=LoraConfig(rank=1), tensors=(("x.lora_A.weight", (1, 1)), ("x.lora_B.weight", (1, 1))))
BASE_MODEL = "ba5e" * 16
FOLDS: Mapping[Fold, int] = {"anchor": 4, "gate": 8}

MakeAdapter = Callable[..., Adapter]
MakeUpdate = Callable[..., AdapterUpdate]
MakeFlush = Callable[..., Flush]
MakeMessage = Callable[..., Received]
MakeConfig = Callable[..., FederationConfig]


def adapter_of(a: float, b: float | None = None) -> Adapter:
    """The adapter of these two parameters; given one number, both are that."""
    return Adapter(LAYOUT, np.array([a, a if b is None else b], dtype=np.float32))


@pytest.fixture
def adapter() -> MakeAdapter:
    """Make an adapter of A and B, or of one number for both."""
    return adapter_of


@pytest.fixture
def layout() -> Layout:
    """What the two parameters are."""
    return LAYOUT


@pytest.fixture
def calibration() -> CalibrationTerms:
    """A calibration set of both folds, by its digest."""
    return CalibrationTerms(digest="ca11" * 16, folds=FOLDS, training=TrainingConfig())


@pytest.fixture
def config() -> MakeConfig:
    """Make the terms of a federation."""

    def make(strategy: Strategy | None = None, **changes: object) -> FederationConfig:
        return FederationConfig(
            federation="test",
            base_model=BASE_MODEL,
            base_model_name="tiny",
            layout=LAYOUT,
            strategy=strategy or FedBuff(buffer_size=2),
            limits=Limits(nodes=10, updates_per_version=MAX_INPUTS),
        ).model_copy(update=changes)

    return make


@pytest.fixture
def update() -> MakeUpdate:
    """Make a decoded update, as strategies see it."""

    def make(
        node: str, delta: float | Adapter, base_version: int = 0, examples: int = 1, sequence: int = 0
    ) -> AdapterUpdate:
        value = delta if isinstance(delta, Adapter) else adapter_of(delta)
        return AdapterUpdate(node, f"{node}{sequence}", sequence, base_version, examples, 0, value)

    return make


@pytest.fixture
def flush() -> MakeFlush:
    """Make what the next version may be made of: a head, updates, and any other part of a Flush."""

    def make(head: GlobalAdapter, *updates: AdapterUpdate, **parts: object) -> Flush:
        return Flush(head, **{"buffer": Buffer.of(*updates)} | parts)  # type: ignore[arg-type]

    return make


@pytest.fixture
def message() -> MakeMessage:
    """Make the message by which a node publishes an update, body inline."""

    def make(
        node: str,
        delta: float | Adapter,
        base_version: int = 0,
        base_digest: str | None = None,
        sequence: int = 0,
        participation: int = 0,
        at_ns: int = 0,
        held_out_loss: float | None = None,
    ) -> Received:
        value = delta if isinstance(delta, Adapter) else adapter_of(delta)
        body = encode(value, "fp32")
        manifest = UpdateManifest(
            node=node,
            boot_id="b" * 32,
            sequence=sequence,
            base_version=base_version,
            base_digest=base_digest or adapter_of(0).digest,
            base_model=BASE_MODEL,
            layout=value.layout.digest,
            examples=4,
            steps=8,
            participation=participation,
            loss=1.0,
            seconds=1.0,
            held_out_loss=held_out_loss,
            body=describe(body, "fp32"),
        )
        topic = route("test", UpdateManifestOf(node, update_id(manifest.to_bytes()))).topic
        return Received(at_ns, topic, join_body(manifest.to_bytes(), body))

    return make


# --- a process, a broker, a node played by hand ---

FEDERATION = "test"
LORA = LoraConfig(rank=2)
USUAL = """
strategy = {name = "fedbuff", buffer_size = 2}
keep_versions = 2
"""


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

    def __init__(self, folder: Path, broker: EmbeddedBroker, base_model: Path, settings: str = USUAL) -> None:
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
{settings}
"""
        )
        self.command = [sys.executable, "-m", "alignfed", "coordinator", "--config", str(self.config)]
        self.log = folder / "coordinator.log"
        self.process = self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        """Start the process, in a session of its own, with its log in a file of its own."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command, stderr=log, start_new_session=True)
        return self.process

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def ends(self) -> tuple[int, str]:
        """Its exit code, when it has ended by itself, and what it said."""
        code = self.process.wait(PATIENCE_S)
        return code, self.log.read_text(encoding="utf-8")


@pytest.fixture
def start_coordinator(tmp_path: Path, broker: EmbeddedBroker) -> Iterator[Callable[..., Coordinator]]:
    """Start a coordinator for a base model, with these settings in its section of the file."""
    started: list[Coordinator] = []

    def start(base_model: Path, settings: str = USUAL) -> Coordinator:
        started.append(Coordinator(tmp_path, broker, base_model, settings))
        return started[-1]

    yield start
    for running in started:
        running.kill()
        print(running.log.read_text(encoding="utf-8"))  # shown when a test fails


@pytest.fixture
def coordinator(start_coordinator: Callable[..., Coordinator], base_model: Path) -> Coordinator:
    """A running coordinator that makes a version of every two updates."""
    return start_coordinator(base_model)


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
        return self._pointer(GlobalHead())

    @property
    def release(self) -> GlobalPointer | None:
        return self._pointer(GlobalRelease())

    def _pointer(self, address: object) -> GlobalPointer | None:
        message = self.retained(address)
        return GlobalPointer.from_bytes(message.payload) if message else None

    def retained(self, address: object) -> Message | None:
        found = [m for topic, m in self.messages.items() if parse(FEDERATION, topic) == address and m.payload]
        return found[0] if found else None

    def _until_retained(self, address: object) -> Message:
        self.until(lambda: self.retained(address) is not None)
        message = self.retained(address)
        assert message is not None
        return message

    def until_version(self, version: int) -> None:
        self.until(lambda: self.head is not None and self.head.version >= version)

    def version(self, version: int) -> GlobalManifest:
        """The manifest of a version; a late joiner may be told the pointer first, so it is waited for."""
        return GlobalManifest.from_bytes(self._until_retained(GlobalManifestOf(version)).payload)

    def body(self, version: int, variant: Variant = "head") -> bytes:
        """A body of a version as a late joiner would put it together."""
        manifest = self.version(version)
        entry, kind = (manifest.body, GlobalChunk) if variant == "head" else (manifest.average, GlobalAverageChunk)
        assert entry is not None
        parts = [self._until_retained(kind(version, index)) for index in range(len(entry.chunks))]
        body = b"".join(part.payload for part in parts)
        assert hashlib.sha256(body).hexdigest() == entry.sha256
        return body

    def adapter(self, version: int, variant: Variant = "head") -> Adapter:
        return Adapter.from_safetensors(self.layout, self.body(version, variant))

    def manifest(self, node: str, sequence: int, base: GlobalPointer, delta: float | Adapter) -> UpdateManifest:
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
        self,
        node: str,
        sequence: int,
        base: GlobalPointer,
        delta: float | Adapter,
        *,
        drop: int | None = None,
        cut: int = 0,
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

    def _encoded(self, delta: float | Adapter) -> bytes:
        if isinstance(delta, Adapter):
            return encode(delta, "fp32")
        return encode(Adapter(self.layout, np.full(self.layout.size, delta, np.float32)), "fp32")

    def statuses(self, id_: str) -> list[str]:
        return [receipt.status for receipt in self.receipts if receipt.update_id == id_]


@pytest.fixture
def node_of(broker: EmbeddedBroker, tmp_path: Path) -> Iterator[Callable[[Path], Node]]:
    """A node by hand that trains this base model."""
    with Client(broker.settings, "hand", subscriptions=["alignfed/#"]) as client:

        def make(base_model: Path) -> Node:
            resolved = resolve(str(base_model), tmp_path / "cache")
            return Node(client, layout_of(resolved, LORA), resolved.digest)

        yield make


@pytest.fixture
def node(node_of: Callable[[Path], Node], base_model: Path) -> Node:
    """A node by hand in the usual federation."""
    return node_of(base_model)
