"""The compose stack with the real small model: it learns, and goes on learning whatever is killed or cut off."""

import json
import re
from collections import Counter
from urllib.request import urlopen

import pytest

from coordinator.journal import read_updates, read_versions
from coordinator.replay.inside import replay

NETWORK = "alignfedtest_default"
ACCEPTED = ("accepted", "aggregated", "duplicate")


def test_every_replica_is_a_node_of_its_own(stack):
    stack.until(lambda: len(stack.states) == 3, "three nodes are on the broker")
    assert set(stack.states) == {"node-1", "node-2", "node-3"}


def test_a_container_may_write_only_where_it_must(stack, execute):
    for service in ("coordinator", "edge"):
        container = stack.containers(service)[0]
        assert "Read-only file system" in execute(container, "touch", "/opt/code/new")
        assert execute(container, "id", "-u") == "10001"


def test_versions_advance(stack):
    stack.until(lambda: stack.version >= 1, "there is a version 1")


def test_the_page_of_the_coordinator_is_on_this_machine_and_knows_every_node(stack):
    status = json.load(urlopen(f"http://127.0.0.1:{stack.variables['PAGE_PORT']}/api/status", timeout=30))
    assert {"node-1", "node-2", "node-3"} <= set(re.findall(r"node-\d", json.dumps(status)))


def test_a_node_answers_with_what_was_learned(stack, execute):
    container = stack.containers("edge")[0]
    command = ("alignfed", "chat", "--node-url", "http://127.0.0.1:8000", "--prompt", "turn on the light")
    assert execute(container, *command, "--max-tokens", "8")


def test_whatever_is_killed_comes_back_and_versions_go_on(stack):
    holders = {container: stack.node_of(container) for container in stack.containers("edge")}
    for service in ("coordinator", "broker", "edge"):
        for container in stack.containers(service):
            stack.kill(container)
        seen = stack.version
        stack.until(lambda seen=seen: stack.version > seen, f"a version after {service} was killed")
    assert {container: stack.node_of(container) for container in holders} == holders


def test_a_node_that_was_cut_off_takes_part_again(stack, docker):
    container = stack.containers("edge")[0]
    node = stack.node_of(container)
    docker("network", "disconnect", NETWORK, container)
    seen = stack.version
    stack.until(lambda: stack.version > seen, "the others go on")
    stack.look(1)
    before = accepted(stack, node)
    docker("network", "connect", NETWORK, container)
    stack.until(lambda: accepted(stack, node) > before, f"an update of {node} is accepted again")


@pytest.fixture(scope="module")
def journal(stack, docker, tmp_path_factory):
    """The coordinator's journal after every container was stopped in order."""
    stack.stop()
    folder = tmp_path_factory.mktemp("coordinator")
    docker("cp", f"{stack.containers('coordinator')[0]}:/coordinator/state", folder)
    return folder / "state" / "journal.db"


def test_everybody_ends_in_order_when_asked_to(stack, journal, inspect):
    containers = [one for service in ("broker", "coordinator", "edge") for one in stack.containers(service)]
    assert [inspect(container, "{{.State.ExitCode}}") for container in containers] == ["0"] * len(containers)


def test_the_chain_is_whole_and_no_update_is_lost_or_used_twice(stack, journal):
    manifests = read_versions(journal)
    assert [manifest.version for manifest in manifests] == list(range(len(manifests)))
    assert [manifest.parent for manifest in manifests[1:]] == [manifest.digest for manifest in manifests[:-1]]
    assert {pointer.digest for pointer in stack.heads} <= {manifest.digest for manifest in manifests}

    used = Counter(update.update_id for manifest in manifests for update in manifest.inputs)
    assert set(used.values()) == {1}
    receipted = {receipt.update_id for _, receipt in stack.receipts if receipt.status in ACCEPTED}
    ledger = {row.update_id: row.status for row in read_updates(journal)}
    assert receipted
    assert receipted <= ledger.keys()
    assert used.keys() == {update for update, status in ledger.items() if status == "aggregated"}


def test_the_journal_makes_the_same_versions_again(journal):
    replayed = list(replay(journal))
    assert replayed
    assert all(version.agrees for version in replayed)


def accepted(stack, node):
    return sum(1 for name, receipt in stack.receipts if name == node and receipt.status == "accepted")
