"""A node's core to talk to, and a coordinator that says what the test wants. Adapters are 2x2, made of one number."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.embedded import EmbeddedBroker, find_mosquitto
from edge_node.core import initial_state, step
from edge_node.effects import Effect, StoreUpdate
from edge_node.events import BrokerConnected, Event, HandedOver, Heard, LayoutDescribed, Ticked, TrainingFinished
from edge_node.settings import EdgeSettings
from edge_node.state import EdgeState, GlobalAdapter, Identity, Memory, Update
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.chunks import describe, split
from schemas.codec import encode
from schemas.messages import (
    CoordinatorState,
    GlobalManifest,
    GlobalPointer,
    Message,
    Receipt,
    ReceiptStatus,
    ReleaseReport,
    join_body,
)
from schemas.topics import (
    Address,
    CoordinatorStateOf,
    GlobalChunk,
    GlobalHead,
    GlobalManifestOf,
    ReceiptFor,
    route,
)
from tests.edge_node.pieces import Pieces

LORA = LoraConfig(rank=2, target_modules=("x",))
LAYOUT = Layout(lora=LORA, tensors=(("x.lora_A.weight", (2, 2)), ("x.lora_B.weight", (2, 2))))
BASE_MODEL = "ba5e" * 16


def adapter_of(value: float) -> Adapter:
    """The adapter whose eight numbers are all `value`."""
    return Adapter(LAYOUT, np.full(LAYOUT.size, value, dtype=np.float32))


@dataclass(frozen=True)
class Version:
    """A global version as it lies on the retained topics."""

    pointer: GlobalPointer
    manifest: bytes  # payload
    chunks: tuple[bytes, ...]
    body: bytes


class Coordinator:
    """Says what the test wants it to say."""

    def adapter(self, value: float) -> Adapter:
        return adapter_of(value)

    def terms(self, **changes: Any) -> CoordinatorState:
        usual: dict[str, Any] = {
            "online": True,
            "boot_id": "c0" * 16,
            "epoch": 1,
            "base_model": BASE_MODEL,
            "base_model_name": "tiny",
            "lora": LORA,
            "layout": LAYOUT.digest,
            "strategy": "fedbuff",
            "one_update_per_version": False,
            "codecs": ("int8", "fp32"),
        }
        return CoordinatorState(**(usual | changes))

    def version(
        self, number: int, value: float = 1.0, epoch: int = 1, chunk_size: int = 0, content: bytes = b"", **changes: Any
    ) -> Version:
        """A version of this value, or these bytes; in chunks if a size is given. `changes` make the manifest lie."""
        body = content or encode(adapter_of(value), "safetensors")
        entry = describe(body, "safetensors", chunk_size or 1, inline=0 if chunk_size else len(body))
        usual: dict[str, Any] = {
            "epoch": epoch,
            "version": number,
            "parent": None,
            "base_model": BASE_MODEL,
            "lora": LORA,
            "layout": LAYOUT.digest,
            "strategy": "fedbuff",
            "inputs": (),
            "release": ReleaseReport(version=number, variant="head", judged=number),
            "created_at_ns": 0,
            "body": entry,
        }
        manifest = GlobalManifest(**(usual | changes))
        pointer = GlobalPointer(
            epoch=epoch,
            version=number,
            digest=entry.sha256,
            parent=None,
            size=len(body),
            chunks=len(entry.chunks),
        )
        chunks = split(body, chunk_size) if chunk_size else ()
        payload = manifest.to_bytes() if chunk_size else join_body(manifest.to_bytes(), body)
        return Version(pointer, payload, chunks, body)

    def held(self, number: int, value: float = 1.0, epoch: int = 1) -> GlobalAdapter:
        return GlobalAdapter(self.version(number, value, epoch).pointer, adapter_of(value))


@dataclass
class Node:
    """The core of one node: tell it things, look at what it asks for. `now` is its clock, in seconds."""

    state: EdgeState
    now: float = 0.0
    first: tuple[Effect, ...] = ()  # what it asked for before it was told anything
    asked: list[Effect] = field(default_factory=list)  # every effect so far
    pieces: Pieces = field(default_factory=Pieces)

    @property
    def name(self) -> str:
        return self.state.identity.settings.node

    def version_held(self) -> int | None:
        return self.state.held.pointer.version if self.state.held is not None else None

    def tell(self, event: Event) -> tuple[Effect, ...]:
        """What it asks for, and what follows when its disk has answered."""
        self.state, effects = step(self.state, event)
        self.asked += effects
        for answer in self.pieces.answers(effects, self.now):
            effects += self.tell(answer)
        return effects

    def hears(self, address: Address, payload: bytes | Message) -> tuple[Effect, ...]:
        raw = payload if isinstance(payload, bytes) else payload.to_bytes()
        return self.tell(Heard(self.now, route("home", address).topic, raw))

    def waits(self, seconds: float) -> tuple[Effect, ...]:
        self.now += seconds
        return self.tell(Ticked(self.now))

    def connects(self, max_packet_size: int | None = None) -> tuple[Effect, ...]:
        return self.tell(BrokerConnected(self.now, max_packet_size))

    def joins(self, terms: CoordinatorState) -> tuple[Effect, ...]:
        """Connected, and on terms with the coordinator."""
        return (
            *self.connects(),
            *self.hears(CoordinatorStateOf(), terms),
            *self.tell(LayoutDescribed(self.now, LAYOUT)),
        )

    def receives(self, version: Version) -> tuple[Effect, ...]:
        """The pointer, the manifest and all chunks of a version."""
        number = version.pointer.version
        effects = self.hears(GlobalHead(), version.pointer) + self.hears(GlobalManifestOf(number), version.manifest)
        for index, chunk in enumerate(version.chunks):
            effects += self.hears(GlobalChunk(number, index), chunk)
        return effects

    def learns(self, value: float, loss: float = 1.25, seconds: float = 1.0) -> Update:
        """Finish the training under way with an adapter of this value; the update that the node makes of it."""
        effects = self.finishes(value, loss, seconds)
        return next(effect.update for effect in effects if isinstance(effect, StoreUpdate))

    def finishes(self, value: float, loss: float = 1.25, seconds: float = 1.0) -> tuple[Effect, ...]:
        assert self.state.training is not None, "the node is not training"
        self.now += seconds
        sequence = self.state.training.job.sequence
        return self.tell(
            TrainingFinished(self.now, sequence, adapter_of(value), examples=5, steps=8, loss=loss, seconds=seconds)
        )

    def hands_over(self, update: Update) -> tuple[Effect, ...]:
        """The broker has all of the update that was to be sent."""
        return self.tell(HandedOver(self.now, update.update_id))

    def is_told(self, update: Update, status: ReceiptStatus, **details: Any) -> tuple[Effect, ...]:
        return self.hears(ReceiptFor(self.name), Receipt(update_id=update.update_id, status=status, **details))


def new_node(**settings: Any) -> Node:
    state, first = begin(**settings)
    return Node(state, first=first)


def begin(memory: Memory | None = None, outbox: Any = (), terms: Any = None, held: Any = None, **settings: Any) -> Any:
    chosen: dict[str, Any] = {"node": "home-1", "data": Path("examples.jsonl")} | settings
    identity = Identity("home", boot_id="b0" * 16, base_model=BASE_MODEL, settings=EdgeSettings(**chosen))
    layout = LAYOUT if terms is not None else None
    return initial_state(identity, memory or Memory(), 0.0, outbox, terms, layout, held)


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "iotcore"])
def each_broker(request: pytest.FixtureRequest) -> Iterator[EmbeddedBroker]:
    if request.param == "mosquitto" and find_mosquitto() is None:
        pytest.skip("MOSQUITTO IS NOT INSTALLED (apt install mosquitto)")
    with EmbeddedBroker(request.param) as running:
        yield running


@pytest.fixture(scope="session")
def coordinator() -> Coordinator:
    return Coordinator()


@pytest.fixture
def node() -> Node:
    """A node that has just been started for the first time."""
    return new_node()


@pytest.fixture(scope="session")
def start_node() -> Any:
    """Start a node with these settings (or `memory`, `outbox`, `terms`, `held` from an earlier life)."""
    return new_node


@pytest.fixture
def member(node: Node, coordinator: Coordinator) -> Node:
    """A node that is connected and knows the federation's terms."""
    node.joins(coordinator.terms())
    return node
