"""Replicas of one container take identities of a shared folder: never two the same, and back as who they were."""

import json
import os
import subprocess
import sys

import pytest

from edge_node.identities import HOLDER, SETTINGS, NoFreeIdentity, claim

HOLD = "import sys; from pathlib import Path; from edge_node.identities import claim\n"
HOLD += "print(claim(Path(sys.argv[1]), sys.argv[2]).settings.parent.name, flush=True); sys.stdin.read()"


@pytest.fixture
def nodes(tmp_path):
    """A folder with three nodes."""
    for number in (1, 2, 10):
        (tmp_path / f"node-{number}").mkdir()
        (tmp_path / f"node-{number}" / SETTINGS).touch()
    return tmp_path


@pytest.fixture
def hold(nodes):
    """hold("a"): a process of its own that claims as this holder, and the name of what it got."""
    processes = []

    def start(holder):
        command = [sys.executable, "-c", HOLD, str(nodes), holder]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def names(identity):
    return identity.settings.parent.name


def test_every_process_becomes_another_node_in_order(hold):
    assert [hold(holder)[1] for holder in "abc"] == ["node-1", "node-2", "node-10"]


def test_a_killed_container_comes_back_as_the_node_it_was(hold, nodes):
    (_, _), (second, taken) = hold("a"), hold("b")
    second.kill()
    second.wait()
    assert names(claim(nodes, "b")) == taken == "node-2"


def test_a_node_whose_container_is_gone_for_good_is_taken_before_a_new_one(hold, nodes):
    (_, _), (second, taken) = hold("a"), hold("b")
    second.kill()
    second.wait()
    assert names(claim(nodes, "another", return_s=0.5)) == taken == "node-2"


def test_a_container_that_comes_back_in_time_is_not_robbed(hold, nodes):
    first, taken = hold("a")
    first.kill()
    first.wait()
    newcomer = subprocess.Popen([sys.executable, "-c", HOLD, str(nodes), "b"], stdin=-1, stdout=-1, text=True)
    try:
        again = claim(nodes, "a")
        assert names(again) == taken
        assert newcomer.stdout.readline().strip() == "node-2"
        os.close(again.lock)
    finally:
        newcomer.kill()
        newcomer.communicate()


def test_when_all_are_taken_the_next_one_is_told_what_to_do(hold, nodes):
    for holder in "abc":
        hold(holder)
    with pytest.raises(NoFreeIdentity, match="3 nodes and none is free: make more"):
        claim(nodes, "d")


def test_a_folder_without_nodes_is_said_to_be_one(tmp_path):
    with pytest.raises(NoFreeIdentity, match="0 nodes"):
        claim(tmp_path, "a")


def test_the_holder_is_written_where_a_person_can_read_it(nodes):
    identity = claim(nodes, "3f2a")
    assert (identity.settings.parent / HOLDER).read_text() == "3f2a"


def test_a_running_node_holds_its_identity(nodes, tiny_model_dir, tmp_path):
    (nodes / "node-1" / SETTINGS).write_text(
        f"broker.port = 1\nbase_model.name = {json.dumps(str(tiny_model_dir))}\n"
        f"base_model.cache_dir = {json.dumps(str(tmp_path / 'cache'))}\nedge.node = 'node-1'\n"
        f"edge.data = {json.dumps(str(tmp_path))}\nedge.data_dir = {json.dumps(str(tmp_path / 'node'))}\n"
    )
    command = [sys.executable, "-m", "alignfed", "edge", "--identities", str(nodes)]
    node = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert node.stderr is not None
        assert any("private examples" in line for line in iter(node.stderr.readline, ""))
        assert names(claim(nodes, "another", return_s=0)) == "node-2"
    finally:
        node.kill()
        node.communicate()
