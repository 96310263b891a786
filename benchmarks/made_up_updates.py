"""Updates of random numbers, as nodes send them, for benchmarks of the coordinator alone: 460,800 parameters, int8."""

from collections.abc import Iterator

import numpy as np

from coordinator.state import FederationConfig, FederationState, Limits, Received
from coordinator.strategies import FedBuff
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.chunks import describe, split
from schemas.codec import encode
from schemas.messages import UpdateManifest, update_id
from schemas.topics import UpdateChunk, UpdateManifestOf, route

FEDERATION = "bench"
FACTORS = (("A", (8, 576)), ("B", (576, 8)))
LAYOUT = Layout(
    lora=LoraConfig(rank=8),
    tensors=tuple((f"layer.{i:02}.lora_{name}.weight", shape) for i in range(50) for name, shape in FACTORS),
)


def terms(buffer_size: int) -> FederationConfig:
    """Those of a federation with a version of every so many updates, and without a limit for how often they come."""
    return FederationConfig(
        federation=FEDERATION,
        base_model="0" * 64,
        base_model_name="none",
        layout=LAYOUT,
        strategy=FedBuff(buffer_size=buffer_size),
        limits=Limits(updates_per_hour=1_000_000),
    )


def bodies(count: int) -> Iterator[bytes]:
    """Encoded deltas of normal random values: the worst case for an entropy coder."""
    random = np.random.default_rng(0)
    for _ in range(count):
        yield encode(Adapter(LAYOUT, random.normal(0, 1e-3, LAYOUT.size).astype(np.float32)), "int8")


def messages(number: int, body: bytes, state: FederationState, nodes: int) -> list[Received]:
    """What a node, one of so many in turn, sends for one update: chunks, then the manifest."""
    node, head = f"node-{number % nodes}", state.head
    manifest = UpdateManifest(
        node=node,
        boot_id="0" * 32,
        sequence=number,
        base_version=head.version,
        base_digest=head.digest,
        base_model=state.config.base_model,
        layout=LAYOUT.digest,
        examples=32,
        steps=8,
        participation=0,
        loss=1.0,
        seconds=1.0,
        body=describe(body, "int8"),
    ).to_bytes()
    id_ = update_id(manifest)
    chunks = [(route(FEDERATION, UpdateChunk(node, id_, k)).topic, chunk) for k, chunk in enumerate(split(body))]
    topics = [*chunks, (route(FEDERATION, UpdateManifestOf(node, id_)).topic, manifest)]
    return [Received(number, topic, payload) for topic, payload in topics]
