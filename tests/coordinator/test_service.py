"""The coordinator as a process, on a real broker: what it publishes, and what it keeps through a kill."""

import hashlib
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from broker.embedded import EmbeddedBroker
from coordinator.publisher import publication
from coordinator.replay.inside import replay
from schemas.adapter import Adapter
from schemas.chunks import describe
from schemas.messages import Body, CoordinatorState, join_body, update_id
from schemas.topics import CoordinatorStateOf, GlobalChunk, GlobalManifestOf, UpdateChunk, UpdateManifestOf
from tests.patience import PATIENCE_S

FEDERATION = "test"


def test_a_new_federation_publishes_its_terms_and_version_0(coordinator: Any, node: Any) -> None:
    node.until_version(0)
    birth = node.retained(CoordinatorStateOf())
    assert birth is not None
    terms = CoordinatorState.from_bytes(birth.payload)
    assert (terms.online, terms.strategy, terms.layout) == (True, "fedbuff", node.layout.digest)
    assert node.head is not None
    assert hashlib.sha256(node.body(0)).hexdigest() == node.head.digest


def test_the_ranks_and_codecs_that_are_taken_are_announced(
    start_coordinator: Callable[..., Any], base_model: Path, node: Any
) -> None:
    start_coordinator(base_model, 'node_ranks = [4, 16]\ncodecs = ["int8", "fp16"]')
    node.until_version(0)
    terms = CoordinatorState.from_bytes(node.retained(CoordinatorStateOf()).payload)
    assert (terms.lora.rank, terms.node_ranks, terms.codecs) == (2, (4, 16), ("int8", "fp16"))


def test_two_updates_make_a_version_of_their_mean(coordinator: Any, node: Any) -> None:
    node.until_version(0)
    assert node.head is not None
    ids = [node.send("a", 0, node.head, 1.0), node.send("b", 0, node.head, 3.0)]
    node.until_version(1)
    node.until(lambda: all(node.statuses(id_) == ["accepted", "aggregated"] for id_ in ids))
    before, after = (Adapter.from_safetensors(node.layout, node.body(version)) for version in (0, 1))
    np.testing.assert_array_equal(after.values, before.values + np.float32(2))


def test_versions_that_are_no_longer_kept_leave_the_broker(coordinator: Any, node: Any) -> None:
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


def test_a_lost_chunk_is_asked_for_by_number(coordinator: Any, node: Any) -> None:
    node.until_version(0)
    assert node.head is not None
    id_ = node.send("a", 0, node.head, 1.0, drop=2)
    node.until(lambda: "incomplete" in node.statuses(id_))
    [receipt] = [receipt for receipt in node.receipts if receipt.update_id == id_]
    assert receipt.missing == (2,)


def test_a_killed_coordinator_goes_on_with_nothing_lost_and_nothing_twice(coordinator: Any, node: Any) -> None:
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


def test_a_broker_that_forgot_everything_is_told_again(coordinator: Any, broker: EmbeddedBroker, node: Any) -> None:
    node.until_version(0)
    broker.kill()
    broker.restart()
    node.messages.clear()
    node.until_version(0)
    assert node.body(0)


def test_sigterm_says_farewell_and_the_journal_replays(coordinator: Any, node: Any) -> None:
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


def test_garbage_is_refused_or_counted_and_the_federation_goes_on(coordinator: Any, node: Any) -> None:
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


def test_each_kind_of_false_update_is_refused_with_its_reason(coordinator: Any, node: Any) -> None:
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


def test_truncated_chunks_are_asked_for_again(coordinator: Any, node: Any) -> None:
    node.until_version(0)
    assert node.head is not None
    id_ = node.send("a", 0, node.head, 1.0, cut=1)
    node.until(lambda: "incomplete" in node.statuses(id_))
    assert {index for receipt in node.receipts for index in receipt.missing} == {0, 1, 2}


def test_other_settings_for_the_same_data_are_refused_with_a_way_out(
    coordinator: Any, node: Any, tmp_path: Path
) -> None:
    node.until_version(0)
    coordinator.kill()
    coordinator.config.write_text(coordinator.config.read_text().replace("rank = 2", "rank = 3"))
    done = subprocess.run(coordinator.command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1
    assert "data_dir of its own" in done.stderr
