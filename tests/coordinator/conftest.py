"""A federation small enough to think about: adapters of two parameters, updates as one number."""

from collections.abc import Callable

import numpy as np
import pytest

from coordinator.state import FederationConfig, Limits, Received
from coordinator.strategies import FedBuff, Strategy
from coordinator.updates import AdapterUpdate
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.chunks import describe
from schemas.codec import encode
from schemas.messages import UpdateManifest, join_body, update_id
from schemas.topics import UpdateManifestOf, route

LAYOUT = Layout(lora=LoraConfig(rank=1), tensors=(("x.lora_A.weight", (1, 1)), ("x.lora_B.weight", (1, 1))))
BASE_MODEL = "ba5e" * 16

MakeUpdate = Callable[..., AdapterUpdate]
MakeMessage = Callable[..., Received]
MakeConfig = Callable[..., FederationConfig]


def adapter_of(value: float) -> Adapter:
    """Both parameters are `value`."""
    return Adapter(LAYOUT, np.full(2, value, dtype=np.float32))


@pytest.fixture
def adapter() -> Callable[[float], Adapter]:
    """Make an adapter whose parameters are all the given number."""
    return adapter_of


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
            limits=Limits(nodes=10),
        ).model_copy(update=changes)

    return make


@pytest.fixture
def update() -> MakeUpdate:
    """Make a decoded update, as strategies see it."""

    def make(node: str, delta: float, base_version: int = 0, examples: int = 1, sequence: int = 0) -> AdapterUpdate:
        return AdapterUpdate(node, f"{node}{sequence}", sequence, base_version, examples, 0, adapter_of(delta))

    return make


@pytest.fixture
def message() -> MakeMessage:
    """Make the message by which a node publishes an update, body inline."""

    def make(
        node: str,
        delta: float,
        base_version: int = 0,
        base_digest: str | None = None,
        sequence: int = 0,
        participation: int = 0,
        at_ns: int = 0,
    ) -> Received:
        body = encode(adapter_of(delta), "fp32")
        manifest = UpdateManifest(
            node=node,
            boot_id="b" * 32,
            sequence=sequence,
            base_version=base_version,
            base_digest=base_digest or adapter_of(0).digest,
            base_model=BASE_MODEL,
            layout=LAYOUT.digest,
            examples=4,
            steps=8,
            participation=participation,
            loss=1.0,
            seconds=1.0,
            body=describe(body, "fp32"),
        )
        topic = route("test", UpdateManifestOf(node, update_id(manifest.to_bytes()))).topic
        return Received(at_ns, topic, join_body(manifest.to_bytes(), body))

    return make
