"""What somebody with an enrolled key and a client of their own can do to a running federation, from outside."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from broker.federation_keys import revoke
from coordinator.journal import read_updates, read_versions
from coordinator.registry import Registry
from coordinator.replay.inside import replay
from schemas.adapter import Adapter
from schemas.chunks import describe
from schemas.codec import encode
from schemas.frames import compress
from schemas.messages import GlobalManifest
from schemas.signing import sign
from schemas.topics import GlobalHead, GlobalManifestOf, ReceiptFor, UpdateManifestOf, route
from tests.attacks.conftest import FEDERATION, HONEST, LIAR, STEP, STRATEGY

pytestmark = pytest.mark.mosquitto
VERSIONS = 10


def manifests(scene: Any) -> list[GlobalManifest]:
    return read_versions(scene.coordinator.data_dir / "journal.db")


def share(manifest: GlobalManifest) -> float:
    """The liar's share of a version's weights."""
    weights = {given.node: 0.0 for given in manifest.inputs}
    for given in manifest.inputs:
        weights[given.node] += given.weight
    return weights.get(LIAR, 0.0) / sum(weights.values())


def send(scene: Any, body: bytes, codec: str) -> str:
    """These bytes as the body of an update of the liar's."""
    return scene.liar.send(scene.manifest(body, body=describe(body, codec)), body)  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [100.0, -100.0, -2.0], ids=["scale", "sign-flip", "as long as may be"])
def test_no_delta_moves_the_head_further_or_elsewhere_than_the_honest_allow(scene: Any, factor: float) -> None:
    for _ in range(VERSIONS):
        scene.lie(scene.delta(factor * STEP))
        scene.round()
    registry = Registry(scene.coordinator.data_dir / "adapters")
    heads = [Adapter.from_safetensors(scene.node.layout, registry.body(v)) for v in range(VERSIONS + 1)]
    honest = scene.delta(seed=0)
    longest = 1.1 * STRATEGY.step * STRATEGY.norm_limit * honest.norm
    assert all((after - before).norm <= longest for before, after in pairwise(heads))
    assert (heads[-1] - heads[0]).cosine(honest) > 0.5  # where the honest go
    assert all(share(manifest) <= STRATEGY.largest_share + 1e-9 for manifest in manifests(scene)[1:])


def test_many_updates_and_large_claims_give_no_more_than_an_equal_share_beside_others(scene: Any) -> None:
    for _ in range(VERSIONS):
        for number in range(3):
            scene.lie(scene.delta(), participation=number, examples=2**20)
        scene.round()
    shared = [manifest for manifest in manifests(scene)[1:] if {given.node for given in manifest.inputs} != {LIAR}]
    assert len(shared) >= VERSIONS / 2
    for manifest in shared:
        nodes = {given.node for given in manifest.inputs}
        assert share(manifest) <= max(STRATEGY.largest_share, 1 / len(nodes)) + 1e-9


def test_what_is_no_update_is_refused_with_a_reason_and_the_honest_go_on(scene: Any) -> None:
    layout = scene.node.layout
    number = np.ones(layout.size, np.float32)
    body = encode(scene.delta(), "fp32")
    other = describe(body, "fp32").model_copy(update={"sha256": "0" * 64})
    refused = [
        send(scene, (number * np.nan).tobytes(), "fp32"),
        send(scene, (number * np.inf).tobytes(), "fp32"),
        send(scene, (number * 1e6).tobytes(), "fp32"),
        send(scene, body[:-4], "fp32"),
        send(scene, compress(bytes(10_000_000), 3), "int8"),
        scene.lie(scene.delta(), base_version=10**6),
        scene.lie(scene.delta(), base_digest="0" * 64),
        scene.lie(scene.delta(), base_model="0" * 64),
        scene.lie(scene.delta(), layout="0" * 64),
        scene.lie(scene.delta(), node=HONEST[1]),
    ]
    for id_ in refused:
        scene.liar.waits_for(id_, "rejected")
    unanswered = scene.liar.send(scene.manifest(body, body=other), body)
    good = scene.lie(scene.delta())
    scene.round()
    scene.liar.waits_for(good, "aggregated")
    assert scene.liar.statuses(unanswered) == []
    (version,) = manifests(scene)[1:]
    assert {given.update_id for given in version.inputs} == {good, *scene.ids}


def test_old_messages_and_other_names_count_for_nothing(scene: Any) -> None:
    body = encode(scene.delta(), "fp32")
    manifest = scene.manifest(body)
    id_ = scene.liar.send(manifest, body)
    for _ in range(10):
        scene.liar.send(manifest, body)
    for name in HONEST:  # under names of others: the broker lets nobody do that
        scene.liar.send(scene.manifest(body, node=name), body, under=name)
    scene.round()
    scene.liar.waits_for(id_, "aggregated")
    scene.liar.send(manifest, body)
    scene.lie(scene.delta())
    scene.round()
    updates = read_updates(scene.coordinator.data_dir / "journal.db")
    assert sum(update.update_id == id_ for update in updates) == 1
    assert sum(update.node in HONEST for update in updates) == len(scene.ids) == 6
    assert scene.liar.statuses(id_).count("accepted") == 1 and "duplicate" in scene.liar.statuses(id_)
    uses = [given.update_id for version in manifests(scene) for given in version.inputs]
    assert len(uses) == len(set(uses)) == 8


def test_nobody_but_the_coordinator_speaks_for_it(scene: Any) -> None:
    topics = [
        route(FEDERATION, address).topic for address in (GlobalHead(), GlobalManifestOf(0), ReceiptFor(HONEST[0]))
    ]
    before = scene.node.head
    for topic in topics:
        later = before.model_copy(update={"epoch": 9}).to_bytes()
        for payload in (b"", b"{}", sign(scene.liar.bundle.key, topic, later)):
            scene.liar.publish(topic, payload, retain=True)
    scene.liar.waits_for(scene.lie(scene.delta()), "accepted")  # behind all of these
    late = scene.newcomer()
    late.until_version(0)
    assert late.head == before and late.version(0) == scene.node.version(0)  # nothing is deleted either
    scene.round()
    hands = (late, *scene.honest.values())
    assert all(hand.client.false == [] for hand in hands)  # the broker has passed on none of it
    assert (scene.node.head.epoch, scene.node.head.version) == (before.epoch, 1)


def test_after_its_revocation_nothing_of_a_node_is_taken(scene: Any) -> None:
    taken = scene.lie(scene.delta())
    scene.liar.waits_for(taken, "accepted")
    revoke(scene.keys, LIAR)
    scene.liar.waits_for(taken, "rejected")  # it waited, and goes into no version
    late = [scene.lie(scene.delta()) for _ in range(20)]
    scene.liar.waits_for(late[-1], "rejected")
    scene.round(*HONEST, HONEST[0])
    assert not any({"accepted", "aggregated"} & set(scene.liar.statuses(id_)) for id_ in late)
    assert all(given.node in HONEST for version in manifests(scene) for given in version.inputs)


def test_all_of_it_replays(scene: Any) -> None:
    scene.liar.publish(route(FEDERATION, UpdateManifestOf(LIAR, "0" * 32)).topic, b"\0" * 1000)
    for value in (np.nan, 5.0, -1.0):
        send(scene, np.full(scene.node.layout.size, value, np.float32).tobytes(), "fp32")
    scene.round()
    scene.coordinator.kill()
    assert all(version.agrees for version in replay(scene.coordinator.data_dir / "journal.db"))
