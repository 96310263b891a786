"""The compose stack with the real small model: it learns, and goes on learning whatever is killed or cut off."""

import json
import re
from collections import Counter
from urllib.request import urlopen

import pytest

from broker.retained import BrokerAway, read_retained
from coordinator.journal import read_updates, read_versions
from coordinator.registry import Registry
from coordinator.replay.inside import replay
from coordinator.replay.outside import replay_topics
from schemas.topics import CoordinatorStateOf, route

# paho leaves the socket of a TLS handshake that fails, as it does while no broker is there, to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

NETWORK = "alignfedtest_default"
ACCEPTED = ("accepted", "aggregated", "duplicate")
SERVICES = ("edge", "coordinator", "recorder", "broker")


def test_every_replica_is_a_node_of_its_own(stack):
    stack.until(lambda: len(stack.states) == 3, "three nodes are on the broker")
    assert set(stack.states) == {"node-1", "node-2", "node-3"}


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_may_write_only_where_it_must(stack, execute, inspect, service):
    container = stack.containers(service)[0]
    for place in ("/etc/new", "/usr/bin/new", "/new"):
        assert "Read-only file system" in execute(container, "touch", place)
    assert execute(container, "id", "-u") == "10001"
    assert re.search(r"^CapEff:\s+0+$", execute(container, "cat", "/proc/1/status"), flags=re.MULTILINE)
    assert int(inspect(container, "{{.HostConfig.Memory}}")) > 0


@pytest.mark.parametrize("service", SERVICES)
def test_nobody_who_runs_sees_the_keys_that_make_keys(stack, execute, service):
    for folder in ("offline", "authority"):
        assert "No such file" in execute(stack.containers(service)[0], "ls", f"/keys/{folder}")


def test_the_broker_lets_nobody_in_without_a_certificate(stack, bundle):
    topic = route("home", CoordinatorStateOf()).topic
    assert read_retained(bundle(), topic)
    stranger = bundle().model_copy(update={"cert_file": None, "key_file": None})
    with pytest.raises(BrokerAway):
        read_retained(stranger, topic)


def test_versions_advance(stack):
    stack.until(lambda: stack.version >= 1, "there is a version 1")


def test_the_page_of_the_coordinator_is_on_this_machine_and_knows_every_node(stack):
    port = stack.project.variables["PAGE_PORT"]
    status = json.load(urlopen(f"http://127.0.0.1:{port}/api/status", timeout=30))
    assert {"node-1", "node-2", "node-3"} <= set(re.findall(r"node-\d", json.dumps(status)))


def test_a_node_answers_with_what_was_learned(stack, execute):
    container = stack.containers("edge")[0]
    command = ("alignfed", "chat", "--node-url", "http://127.0.0.1:8000", "--prompt", "turn on the light")
    assert execute(container, *command, "--max-tokens", "8")


def test_whatever_is_killed_comes_back_and_versions_go_on(stack):
    holders = {container: stack.node_of(container) for container in stack.containers("edge")}
    for service in ("coordinator", "broker", "edge", "recorder"):
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
def left(stack, docker, figures, tmp_path_factory):
    """What the coordinator and the recorder have on disk after every service was asked to end."""
    stack.leave()
    for service in SERVICES:
        took = stack.stop(service)
        figures[f"`{service}` from SIGTERM to its end"] = f"{took:.1f} s"
    folder = tmp_path_factory.mktemp("left")
    docker("cp", f"{stack.containers('coordinator')[0]}:/coordinator/state", folder)
    docker("cp", f"{stack.containers('recorder')[0]}:/recordings", folder)
    return folder


@pytest.fixture
def journal(left):
    return left / "state" / "journal.db"


def test_everybody_ends_in_order_before_the_engine_loses_patience(stack, left, inspect):
    containers = stack.containers(*SERVICES)
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


def test_the_recording_makes_the_versions_of_the_registry_again(left, journal):
    kept = [manifest.digest for manifest in Registry(left / "state" / "adapters").versions()]
    replayed = replay_topics(left / "recordings" / "federation.rec", journal)
    assert [version.replayed for version in replayed.versions] == kept
    assert {(version.verdict, version.reason) for version in replayed.versions} == {
        ("agrees", "made again, bit for bit")
    }


def accepted(stack, node):
    return sum(1 for name, receipt in stack.receipts if name == node and receipt.status == "accepted")
