"""What a running coordinator shows: the same figures everywhere, the truth, and no harm to the service."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker.embedded import EmbeddedBroker
from coordinator.journal import fold_history
from coordinator.publisher import publication
from coordinator.replay.inside import replay
from coordinator.watch.alarms import with_alarms
from coordinator.watch.status import Facts, Status, status_of
from schemas.messages import NodeState
from schemas.topics import NodeMetricsOf, NodeStateOf
from tests.patience import PATIENCE_S

FEDERATION = "test"

Says = Callable[..., None]
NOT_OF_THE_FOLDER = {"at_ns", "process", "nodes", "alarms"}


def get(address: str, path: str) -> bytes:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
        return bytes(answer.read())


def status_at(address: str) -> Status:
    return Status.model_validate_json(get(address, "/api/status"))


def samples(page: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample by its name and its labels' values."""
    families = text_string_to_metric_families(page.decode())
    return {(s.name, tuple(s.labels.values())): s.value for family in families for s in family.samples}


def two_versions(node: Any, address: str) -> list[str]:
    """Two versions of two nodes, an update that is refused, and one that waits, all of it shown; the ids of all."""
    node.until_version(0)
    ids = []
    for version in range(2):
        ids += [node.send("a", version, node.head, 0.1), node.send("b", version, node.head, 0.3)]
        node.until_version(version + 1)
    false = node.head.model_copy(update={"digest": "0" * 64})
    ids += [node.send("b", 8, false, 0.1), node.send("a", 9, node.head, 0.1)]
    node.until(lambda: node.statuses(ids[-2]) == ["rejected"] and node.statuses(ids[-1]) == ["accepted"])
    node.until(lambda: bool((told := status_at(address)).waiting and told.refusals))  # receipts go out first
    return ids


def test_page_metrics_and_status_tell_the_same(watched: Any, node: Any, says: Says, address: str) -> None:
    two_versions(node, address)
    says("a", 2, outbox=1, loss=0.5)
    node.until(lambda: (told := status_at(address).node("a")) is not None and told.outbox == 1)
    status, page = status_at(address), samples(get(address, "/metrics"))
    assert page["alignfed_head_version", ()] == status.head == 2
    assert page["alignfed_update_staleness_versions_count", ()] == sum(status.staleness.values()) == 4
    assert page["alignfed_updates_refused_total", ("unknown version",)] == status.refusals["unknown version"] == 1
    assert page["alignfed_waiting_updates", ("0",)] == status.waiting[0].updates == 1
    for told in status.nodes:
        assert page["alignfed_node_weight_share", (told.node,)] == pytest.approx(told.weight_share)
        assert page["alignfed_node_participation_total", (told.node,)] == told.participation
    assert page["alignfed_node_up", ("a",)] == 1
    assert page["alignfed_node_outbox_updates", ("a",)] == 1


def test_the_command_line_tells_the_same_in_the_same_second(watched: Any, node: Any, address: str) -> None:
    two_versions(node, address)
    before = status_at(address)
    command = [sys.executable, "-m", "alignfed", "status", "--url", f"http://{address}", "--json"]
    said = Status.model_validate_json(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    moving = {"at_ns", "process"}
    assert said.model_dump(exclude=moving) == before.model_dump(exclude=moving)
    page = samples(get(address, "/metrics"))
    assert page["alignfed_head_version", ()] == said.head
    assert page["alignfed_updates_refused_total", ("unknown version",)] == said.refusals["unknown version"]


def test_why_a_node_does_not_train_is_shown_with_what_its_owner_wants(
    watched: Any, node: Any, says: Any, address: str, tmp_path: Path
) -> None:
    two_versions(node, address)
    says("a", 2, limits="at most 70 °C, 22:00-06:00", idle="hot")
    says("b", 2, base_version=2, step=3, steps=8)
    node.until(lambda: (told := status_at(address).node("b")) is not None and told.step == 3)
    settings = tmp_path / "shown.toml"
    settings.write_text(f'federation = "test"\n[coordinator]\ndata_dir = "{watched.data_dir}"\nhttp = "{address}"')
    shown = said("status", "--config", settings)
    assert [" ".join(line.split()) for line in shown.splitlines() if "no: " in line or "step 3" in line] == [
        "a 2 - - no: hot at most 70 °C, 22:00-06:00",
        "b 2 - - from 2, step 3 of 8 -",
    ]
    shown = said("nodes", "show", "a", "--config", settings)
    assert "trains      no: hot, at rank 2" in shown and "only with   at most 70 °C" in shown
    told = json.loads(said("nodes", "show", "a", "--config", settings, "--json"))["says"]
    assert (told["idle"], told["limits"]) == ("hot", "at most 70 °C, 22:00-06:00")
    folder = ("--config", settings, "--data-dir", watched.data_dir)
    assert json.loads(said("nodes", "show", "a", *folder, "--json"))["says"] is None


def test_how_well_nodes_are_served_is_shown_everywhere(
    watched: Any, node: Any, says: Any, address: str, tmp_path: Path
) -> None:
    two_versions(node, address)
    says("a", 2, served_loss=1.25, served_loss_version=2, held_out_loss=1.5, held_out_version=1)
    says("b", 2, served_loss=3.0, served_loss_version=2)
    node.until(lambda: (told := status_at(address).fairness.get("served")) is not None and told.nodes == 2)
    page = samples(get(address, "/metrics"))
    losses = {labels: value for (name, labels), value in page.items() if name == "alignfed_node_held_out_loss"}
    assert losses == {("a", "served"): 1.25, ("a", "head"): 1.5, ("b", "served"): 3.0}
    assert page["alignfed_node_held_out_version", ("a", "head")] == 1
    shown = said("status", "--url", f"http://{address}")
    assert "held-out loss of what is served: mean 2.125 over 2 nodes, best 1.250 a, worst 3.000 b" in shown
    assert "1.250 v2" in shown and "1.500 v1" in shown
    settings = tmp_path / "shown.toml"
    settings.write_text(f'federation = "test"\n[coordinator]\ndata_dir = "{watched.data_dir}"\nhttp = "{address}"')
    told = said("nodes", "show", "a", "--config", settings)
    assert "1.250 on 0 examples with version 2, which it serves" in told


def said(*words: Any) -> str:
    """What a command prints, as on a wide terminal."""
    command = [sys.executable, "-m", "alignfed", *map(str, words)]
    wide = os.environ | {"COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, check=True, timeout=60, env=wide, text=True).stdout


def test_the_first_event_is_the_status(watched: Any, node: Any, address: str) -> None:
    two_versions(node, address)
    with urllib.request.urlopen(f"http://{address}/api/events", timeout=10) as stream:
        assert stream.readline() == b"event: status\n"
        told = Status.model_validate_json(stream.readline().removeprefix(b"data: "))
    assert (told.head, told.refusals) == (2, {"unknown version": 1})


def test_the_data_folder_tells_what_the_process_told(watched: Any, node: Any, address: str) -> None:
    two_versions(node, address)
    told = status_at(address)
    watched.kill()
    *_, (state, history, _) = fold_history(watched.data_dir / "journal.db")
    read = with_alarms(status_of(Facts(state, history), told.at_ns))
    assert read.model_dump(exclude=NOT_OF_THE_FOLDER) == told.model_dump(exclude=NOT_OF_THE_FOLDER)
    assert [n.model_copy(update={"liveness": "unknown"}) for n in told.nodes] == list(read.nodes)


def test_what_nodes_say_of_themselves_is_not_journalled(watched: Any, node: Any, says: Says, address: str) -> None:
    node.until_version(0)
    says("a", outbox=3)
    node.until(lambda: status_at(address).node("a") is not None)
    watched.kill()
    with sqlite3.connect(watched.data_dir / "journal.db") as journal:
        assert journal.execute("SELECT count(*) FROM messages WHERE topic LIKE '%/node/%'").fetchone() == (0,)
    assert all(version.agrees for version in replay(watched.data_dir / "journal.db"))


def test_a_will_of_an_older_life_does_not_bury_a_node_that_is_back(
    watched: Any, node: Any, says: Says, address: str
) -> None:
    node.until_version(0)
    says("a")
    late = NodeState(online=False, boot_id="a" * 32, base_model=node.base_model)
    node.client.publish(publication(FEDERATION, NodeStateOf("a"), late.to_bytes()))
    says("last")
    node.until(lambda: status_at(address).node("last") is not None)
    told = status_at(address).node("a")
    assert told is not None and told.liveness == "online"


def test_garbage_on_node_topics_changes_nothing(watched: Any, node: Any, says: Says, address: str) -> None:
    node.until_version(0)
    for payload in (b"{}", b"\xff" * 50, b"[" * 30_000):
        node.client.publish(publication(FEDERATION, NodeStateOf("stray"), payload))
        node.client.publish(publication(FEDERATION, NodeMetricsOf("stray"), payload))
    says("a")
    node.until(lambda: status_at(address).node("a") is not None)
    assert status_at(address).node("stray") is None


def test_an_update_is_followed_from_node_to_version(watched: Any, node: Any, address: str) -> None:
    aggregated, *_, refused, waiting = two_versions(node, address)
    told = json.loads(get(address, f"/api/trace/{aggregated[:8]}"))
    assert (told["node"], told["status"], told["base_version"]) == ("a", "aggregated", 0)
    assert (told["went_into"]["version"], told["went_into"]["updates"]) == (1, 2)
    assert told["went_into"]["weight_share"] == pytest.approx(0.5)
    assert {arrival["what"] for arrival in told["arrivals"]} >= {"manifest", "chunk 0"}
    told = json.loads(get(address, f"/api/trace/{refused}"))
    assert told["status"] == "rejected" and "fetch the head again" in told["reason"]
    assert json.loads(get(address, f"/api/trace/{waiting}"))["went_into"] is None


@pytest.mark.parametrize("id_", ["f" * 32, "short", "%25%25%25%25%25%25", "a" * 33])
def test_an_unknown_update_is_said_to_be_unknown(watched: Any, node: Any, address: str, id_: str) -> None:
    node.until_version(0)
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(address, f"/api/trace/{id_}")
    with caught.value as answer:
        assert answer.code == 404
        assert "update" in json.loads(answer.read())["error"]


def test_health_fails_while_the_broker_is_away(watched: Any, node: Any, address: str, broker: EmbeddedBroker) -> None:
    node.until_version(0)
    assert json.loads(get(address, "/healthz")) == {"status": "ok", "faults": []}
    broker.kill()

    def is_failing() -> bool:
        try:
            return not get(address, "/healthz")
        except urllib.error.HTTPError as answer:
            with answer:
                return answer.code == 503 and "broker" in str(json.loads(answer.read())["faults"])

    node.until(is_failing)
    assert {alarm.kind for alarm in status_at(address).alarms} == {"broker_away"}


def test_a_coordinator_that_is_watched_stops_when_asked(watched: Any, node: Any, address: str) -> None:
    node.until_version(0)
    with urllib.request.urlopen(f"http://{address}/api/events", timeout=10) as stream:
        stream.readline()
        watched.process.send_signal(signal.SIGTERM)
        assert watched.process.wait(PATIENCE_S) == 0


def test_the_page_loads_nothing_from_elsewhere_and_cannot_be_framed(watched: Any, node: Any, address: str) -> None:
    node.until_version(0)
    with urllib.request.urlopen(f"http://{address}/", timeout=10) as answer:
        policy, page = answer.headers["content-security-policy"], answer.read().decode()
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "innerHTML" not in page and "//cdn" not in page and 'src="' not in page


def test_an_address_that_is_taken_is_a_sentence(
    start_coordinator: Callable[..., Any], base_model: Path, address: str
) -> None:
    host, port = address.split(":")
    with socket.create_server((host, int(port))):
        code, said = start_coordinator(base_model, f'http = "{address}"').ends()
    assert code == 1
    assert f"cannot show anything on {address}" in said and "--http" in said
