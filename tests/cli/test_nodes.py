"""`alignfed nodes`: what it shows of a federation that was, and orders that a coordinator obeys."""

import json
import shutil
import time

import pytest

from coordinator.journal import read_nodes
from tests.patience import PATIENCE_S


@pytest.fixture
def data_dir(federated, tmp_path):
    """A copy of the folder of a coordinator that has made two versions of one node's updates."""
    shutil.copytree(federated.data_dir, tmp_path / "coordinator")
    return tmp_path / "coordinator"


def test_list_names_every_node_with_its_figures(alignfed, data_dir) -> None:
    (node,) = json.loads(alignfed("nodes", "list", "--data-dir", data_dir, "--json").stdout)
    assert (node["node"], node["quarantine"], node["alarm"]) == ("kitchen", None, False)
    assert node["participation"] >= 2 and node["norm"] > 0
    assert "kitchen" in alignfed("nodes", "list", "--data-dir", data_dir).stdout


def test_show_says_what_was_taken_and_refused(alignfed, data_dir) -> None:
    shown = alignfed("nodes", "show", "kitchen", "--data-dir", data_dir)
    assert shown.returncode == 0 and "accepted" in shown.stdout and "agreement" in shown.stdout
    said = json.loads(alignfed("nodes", "show", "kitchen", "--data-dir", data_dir, "--json").stdout)
    assert said["node"] == "kitchen" and isinstance(said["latest_refused"], list)


def test_show_of_a_node_that_nobody_knows_fails_and_says_where_to_look(alignfed, data_dir) -> None:
    shown = alignfed("nodes", "show", "cellar", "--data-dir", data_dir)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert "alignfed nodes list" in shown.stderr


def test_a_folder_without_a_journal_is_refused(alignfed, tmp_path) -> None:
    ran = alignfed("nodes", "quarantine", "kitchen", "--data-dir", tmp_path)
    assert ran.returncode == 1 and "--data-dir" in ran.stderr
    assert not list(tmp_path.iterdir())


def test_a_running_coordinator_obeys_and_goes_on_obeying_after_a_restart(
    alignfed, start, federated, data_dir, tmp_path
) -> None:
    words = ("nodes", "quarantine", "kitchen", "--reason", "it was stolen", "--wait", 0, "--json")
    given = alignfed(*words, "--data-dir", data_dir)
    order = {"order": 1, "kind": "quarantine", "node": "kitchen", "reason": "it was stolen"}
    assert (given.returncode, json.loads(given.stdout)) == (0, {**order, "answer": None})
    assert "as soon as it runs" in given.stderr
    shutil.copy(federated.config, tmp_path / "federation.toml")
    shutil.copy(federated.config.parent / "calibration.jsonl", tmp_path)
    start_words = ("coordinator", "--config", "federation.toml", "--federation", "cli")
    running = start(*start_words, "--data-dir", data_dir)
    wait(lambda: state(data_dir) == "it was stolen", running)
    forgiven = alignfed("nodes", "forgive", "kitchen", "--wait", PATIENCE_S, "--data-dir", data_dir)
    assert "order 2 is obeyed" in forgiven.stderr
    assert state(data_dir) is None  # the answer comes when it is done
    running.kill()
    alignfed("nodes", "quarantine", "kitchen", "--wait", 0, "--data-dir", data_dir)
    again = start(*start_words, "--data-dir", data_dir)
    wait(lambda: state(data_dir) == "the operator shut it out", again)
    replayed = alignfed("replay", data_dir / "journal.db")
    assert replayed.returncode == 0, replayed.stderr


def state(data_dir) -> str | None:
    return next(report.quarantine for report in read_nodes(data_dir / "journal.db") if report.node == "kitchen")


def wait(condition, process) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
