"""The lives that are cut short: of an outbox, of a held adapter, and of a coordinator's journal and registry."""

import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from coordinator.process import EXPECTED
from coordinator.state import FederationConfig
from coordinator.strategies import FedBuff
from edge_node import held_adapter
from edge_node.arrivals import Arrivals
from edge_node.outbox import Outbox
from edge_node.publisher import publication
from edge_node.service import EXPECTED_FAULTS
from edge_node.state import Update
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.chunks import describe
from schemas.codec import encode
from schemas.messages import CoordinatorState, GlobalPointer, UpdateManifest, join_body, update_id
from schemas.topics import UpdateManifestOf, route
from tests.crash_points.points import Life
from tests.schedules.actors import BASE_MODEL, FEDERATION, CoordinatorActor
from tests.schedules.clock import Clock
from tests.schedules.network import Network, Publish

LAYOUT = Layout(lora=LoraConfig(rank=1), tensors=(("x.lora_A.weight", (1, 4)), ("x.lora_B.weight", (4, 1))))


def adapter_of(value: float) -> Adapter:
    """The adapter whose numbers are all `value`."""
    return Adapter(LAYOUT, np.full(LAYOUT.size, value, np.float32))


# --- the outbox ---


def _update(sequence: int, size: int = 10) -> Update:
    manifest = b'{"base_version":7}'
    return Update(f"{sequence:032x}", sequence, "d" * 64, 7, manifest, bytes([sequence]) * size, chunk_size=100)


def _outbox_steps(folder: Path) -> Iterator[None]:
    with Outbox(folder / "outbox.db") as outbox:
        outbox.count_boot()
        yield
        outbox.put(_update(1))
        yield
        outbox.put(_update(2, 9000))
        yield
        outbox.raise_mark((1, 5))
        yield
        outbox.settle(_update(1).update_id)
        yield
        outbox.drop(_update(2).update_id)
        yield
    with Outbox(folder / "outbox.db") as outbox:
        outbox.put(_update(3))
        yield


def _outbox_now(folder: Path) -> object:
    with Outbox(folder / "outbox.db") as outbox:
        loaded = [outbox.load(waiting.update_id) for waiting in outbox.waiting()]
        bodies = [[update.sequence, len(update.body), sum(update.body)] for update in loaded]
        damaged = sorted(path.name for path in folder.glob("*.damaged-*"))
        return [bodies, asdict(outbox.memory()), damaged]


def _outbox_goes_on(folder: Path) -> None:
    with Outbox(folder / "outbox.db") as outbox:
        outbox.count_boot()
        outbox.put(_update(99))
        assert outbox.load(_update(99).update_id) == _update(99)


# --- the held adapter ---


def _pointer(version: int) -> tuple[GlobalPointer, list[bytes]]:
    body = encode(adapter_of(float(version)), "safetensors")
    digest = adapter_of(float(version)).digest
    return GlobalPointer(epoch=1, version=version, digest=digest, parent=None, size=len(body), chunks=0), [body]


def _terms(epoch: int) -> CoordinatorState:
    return CoordinatorState(
        online=True,
        boot_id="c0" * 16,
        epoch=epoch,
        base_model=BASE_MODEL,
        base_model_name="tiny",
        lora=LAYOUT.lora,
        layout=LAYOUT.digest,
        strategy="fedbuff",
        one_update_per_version=False,
        codecs=("fp32",),
    )


def _held_steps(folder: Path) -> Iterator[None]:
    head = folder / "head"
    held_adapter.keep_terms(head, _terms(1))
    yield
    held_adapter.keep_certificate(head, b"a certificate")
    yield
    for version in (3, 4):
        held_adapter.keep(head, *_pointer(version))
        yield
    held_adapter.keep(folder / "release", *_pointer(3))
    yield
    held_adapter.keep(folder / "release", *_pointer(4), earlier=_pointer(3)[0])
    yield
    held_adapter.keep(folder / "release", *_pointer(3), earlier=_pointer(4)[0])  # one step back
    yield
    held_adapter.keep_terms(head, _terms(2))
    yield
    held_adapter.keep_certificate(head, b"a newer certificate")
    yield
    arrivals, (pointer, (body,)) = Arrivals(folder / "arriving"), _pointer(5)
    for offset in range(0, len(body), 100):
        arrivals.put(pointer, offset, [body[offset : offset + 100]])
    assert arrivals.verified(pointer, LAYOUT) == adapter_of(5.0)
    held_adapter.keep_file(head, pointer, arrivals.file(pointer))
    yield


def _held_now(folder: Path) -> object:
    head = folder / "head"
    held, terms = held_adapter.recall(head, LAYOUT), held_adapter.recall_terms(head)
    certificate = held_adapter.recall_certificate(head)
    if held is not None:
        assert held.adapter == adapter_of(float(held.pointer.version))
    head_now = [held and held.pointer.version, terms and terms.epoch, certificate and certificate.decode()]
    return [*head_now, *_released_now(folder / "release")]


def _released_now(folder: Path) -> list[object]:
    """The release and the earlier one: whenever a pointer is there, so is its body."""
    released, earlier = held_adapter.recall(folder, LAYOUT), held_adapter.recall_earlier(folder)
    if released is None:
        return [None, None]
    assert released.adapter == adapter_of(float(released.pointer.version))
    if earlier is not None:
        assert held_adapter.verified(folder, earlier, LAYOUT) == adapter_of(float(earlier.version))
    return [released.pointer.version, earlier and earlier.version]


def _held_goes_on(folder: Path) -> None:
    Arrivals(folder / "arriving")
    assert list((folder / "arriving").iterdir()) == []
    held_adapter.keep(folder / "head", *_pointer(9))
    held = held_adapter.recall(folder / "head", LAYOUT)
    assert held is not None and held.pointer.version == 9
    assert len(list((folder / "head").glob("*.safetensors"))) == 1
    held_adapter.keep(folder / "release", *_pointer(9))
    assert held_adapter.recall(folder / "release", LAYOUT) is not None


# --- the coordinator ---


def _coordinator(folder: Path) -> CoordinatorActor:
    network = Network(Clock(), random.Random(0), 1000, lambda *_: None, lambda *_: None)
    config = FederationConfig(
        federation=FEDERATION,
        base_model=BASE_MODEL,
        base_model_name="tiny",
        layout=LAYOUT,
        strategy=FedBuff(buffer_size=2),
    )
    return CoordinatorActor(folder, network, random.Random(0), config, adapter_of(0.5), 2, None)


def message_of(actor: CoordinatorActor, sequence: int) -> Publish:
    """An update of node a, made from the head."""
    body, head = encode(adapter_of(0.1 * sequence), "fp32"), actor.state.head
    manifest = UpdateManifest(
        node="a",
        boot_id="b" * 32,
        sequence=sequence,
        base_version=head.version,
        base_digest=head.digest,
        base_model=BASE_MODEL,
        layout=actor.config.layout.digest,
        examples=4,
        steps=8,
        participation=0,
        loss=1.0,
        seconds=1.0,
        body=describe(body, "fp32"),
    ).to_bytes()
    topic = UpdateManifestOf("a", update_id(manifest))
    assert route(FEDERATION, topic).qos == 1
    return Publish(publication(FEDERATION, topic, join_body(manifest, body)), mid=sequence)


def _coordinator_steps(folder: Path) -> Iterator[None]:
    actor = _coordinator(folder)
    actor.start()
    yield
    for sequence in (1, 2):  # the second makes a version
        assert actor.client is not None
        actor.client.take(message_of(actor, sequence))
        actor.turn()
        yield
    actor.end()
    actor = _coordinator(folder)
    actor.start()
    yield
    assert actor.client is not None
    actor.client.take(message_of(actor, 3))
    actor.turn()
    yield
    actor.end()


def _coordinator_now(folder: Path) -> object:
    """What a fresh start knows; the start counts as one, in its epoch, so that is left out."""
    actor = _coordinator(folder)
    actor.start()
    assert actor.service is not None and actor.journal is not None
    state, registry = actor.state, actor.service.registry
    for version in range(state.head.version + 1):
        assert registry.adapter(version, LAYOUT).digest == registry.manifest(version).digest
    assert registry.adapter(state.head.version, LAYOUT) == state.head.adapter
    assert registry.release() == state.release
    fates = actor.journal.execute("SELECT update_id, status, version FROM updates ORDER BY update_id").fetchall()
    waiting = [update.sequence for update in state.buffer.updates]
    return [state.head.version, state.head.digest, waiting, [list(fate) for fate in fates]]


def _coordinator_goes_on(folder: Path) -> None:
    actor = _coordinator(folder)
    actor.start()
    assert actor.client is not None
    actor.client.take(message_of(actor, 50))
    actor.client.take(message_of(actor, 51))
    before = actor.state.head.version
    actor.turn()
    assert actor.state.head.version == before + 1


LIVES = (
    Life("outbox", _outbox_steps, _outbox_now, _outbox_goes_on, EXPECTED_FAULTS),
    Life("held adapter", _held_steps, _held_now, _held_goes_on, EXPECTED_FAULTS),
    Life("journal and registry", _coordinator_steps, _coordinator_now, _coordinator_goes_on, EXPECTED),
)
