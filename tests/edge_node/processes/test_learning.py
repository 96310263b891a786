"""A node's process learns, delivers, and goes on after whatever happens to it."""

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from broker.embedded import EmbeddedBroker
from schemas.adapter import Adapter
from tests.edge_node.processes.by_hand import asked
from tests.patience import PATIENCE_S


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
