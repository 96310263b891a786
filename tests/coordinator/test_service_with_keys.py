"""A coordinator process with keys on a mosquitto with TLS and access rules; its nodes are played by hand."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.bundle import Bundle, read_bundle
from broker.client import Client
from broker.embedded import EmbeddedBroker, find_mosquitto
from broker.events import Event, Message, Publication
from broker.federation_keys import enrol, init, revoke, rotate
from coordinator.journal import read_updates
from coordinator.registry import Registry
from coordinator.replay.inside import replay
from coordinator.trust.verification import read_certified, verify_chain
from coordinator.watch.trace import Trace
from schemas.messages import GlobalPointer
from schemas.topics import GlobalKeys, parse
from schemas.trust import Trust
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.mosquitto
FEDERATION = "test"
SETTINGS = """
strategy = {{name = "fedbuff", buffer_size = 2}}
keep_versions = 2
pointer_lifetime_s = {lifetime}
[security]
keys = "{keys}/coordinator"
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The keys of a federation with the nodes a and b."""
    folder = tmp_path_factory.mktemp("keys") / "keys"
    init(folder, FEDERATION, ("127.0.0.1",), days=100)
    for node in ("a", "b"):
        enrol(folder, node, days=100)
    return folder


@pytest.fixture
def broker(keys: Path) -> Iterator[EmbeddedBroker]:
    if find_mosquitto() is None:
        pytest.skip("MOSQUITTO IS NOT INSTALLED")
    with EmbeddedBroker("mosquitto", keys=keys) as running:
        yield running


class SigningClient:
    """A node's client: what it publishes is signed, and what it takes in is verified from the root on."""

    def __init__(self, client: Client, bundle: Bundle) -> None:
        self.client, self.bundle = client, bundle
        self.trust = Trust(bundle.federation, bundle.root)
        self.false: list[str] = []

    def publish(self, publication: Publication) -> int:
        return self.client.publish(self.bundle.signed(publication))

    def next_event(self, timeout_s: float) -> Event | None:
        event = self.client.next_event(timeout_s)
        if not isinstance(event, Message) or not event.payload:
            return event
        address = parse(FEDERATION, event.topic)
        assert address is not None
        try:
            if isinstance(address, GlobalKeys):
                self.trust = self.trust.certified(event.topic, event.payload)
                return event
            payload = self.trust.opened(address, event.topic, event.payload, time.time_ns())
        except ValueError as fault:
            self.false.append(f"{event.topic}: {fault}")
            self.client.ack(event)
            return None
        return replace(event, payload=payload)

    def ack(self, message: Message) -> None:
        self.client.ack(message)


@pytest.fixture
def play(
    node_of: Callable[[Path], Any], broker: EmbeddedBroker, keys: Path, base_model: Path
) -> Iterator[Callable[[str], Any]]:
    """play("a"): the node of that name, by hand; it hears of the coordinator's key before anything else."""
    with ExitStack() as stack:

        def as_node(name: str) -> Any:
            bundle = read_bundle(keys / "nodes" / name)
            settings = bundle.reaches(broker.settings.model_copy(update={"ca_file": None}))
            below = ("global/keys", "global/#", f"receipt/{name}", "coordinator/#")
            filters = [f"alignfed/v1/{FEDERATION}/{topics}" for topics in below]
            client = stack.enter_context(Client(settings, f"hand-{name}", subscriptions=filters, clean_start=True))
            node = node_of(base_model)
            node.client = SigningClient(client, bundle)
            return node

        yield as_node


@pytest.fixture
def launch(start_coordinator: Callable[..., Any], keys: Path, base_model: Path) -> Callable[..., Any]:
    """Start the coordinator with the federation's keys."""

    def start(lifetime: float = 3600) -> Any:
        return start_coordinator(base_model, SETTINGS.format(keys=keys, lifetime=lifetime))

    return start


def test_a_federation_with_keys_makes_versions_and_all_that_it_says_is_signed(
    play: Callable[[str], Any], launch: Callable[..., Any], keys: Path
) -> None:
    a, b = play("a"), play("b")
    running = launch()
    a.until_version(0)
    ids = [a.send("a", 0, a.head, 1.0), b.send("b", 0, a.head, 3.0)]
    a.until_version(1)
    a.until(lambda: a.statuses(ids[0]) == ["accepted", "aggregated"])
    b.until(lambda: b.statuses(ids[1]) == ["accepted", "aggregated"])
    assert a.adapter(1).values[0] - a.adapter(0).values[0] == pytest.approx(2.0)
    assert a.client.false == b.client.false == []
    assert all(receipt.update_id == ids[0] for receipt in a.receipts)  # each hears of its own

    running.kill()  # and everything is signed again after a start
    (running.data_dir / "adapters" / "signatures" / "decisions" / "1.signed").unlink()
    running.start()
    a.until(lambda: a.head.epoch == 2 and a.release.epoch == 2)
    assert a.client.false == []
    registry = Registry(running.data_dir / "adapters")
    assert registry.unsealed() == [] and len(registry.versions()) == 2
    chain = verify_chain(registry, read_certified(keys / "coordinator"))
    assert [version.fault for version in chain] == [None, None]
    assert all(version.agrees for version in replay(running.data_dir / "journal.db"))


def test_a_trace_tells_what_a_signed_manifest_says(
    play: Callable[[str], Any], start_coordinator: Callable[..., Any], keys: Path, base_model: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    running = start_coordinator(base_model, f'http = "{address}"' + SETTINGS.format(keys=keys, lifetime=3600))
    a = play("a")
    a.until_version(0)
    id_ = a.send("a", 7, a.head, 1.0)
    a.until(lambda: a.statuses(id_) == ["accepted"])
    command = [sys.executable, "-m", "alignfed", "trace", id_, "--json", "--config", str(running.config)]
    said = Trace.model_validate_json(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    assert (said.node, said.status, said.base_version, said.sequence) == ("a", "accepted", 0, 7)
    assert (said.examples, said.steps, said.loss, said.training_seconds, said.codec) == (4, 8, 1.0, 1.0, "fp32")
    assert said.size == a.manifest("a", 7, a.head, 1.0).body.size
    with urllib.request.urlopen(f"http://{address}/api/trace/{id_[:6]}", timeout=10) as answer:
        assert Trace.model_validate_json(answer.read()) == said


def test_what_another_nodes_key_has_signed_comes_to_nothing(
    play: Callable[[str], Any], launch: Callable[..., Any], keys: Path
) -> None:
    a = play("a")
    running = launch()
    a.until_version(0)
    own = a.client.bundle
    a.client.bundle = replace(own, key=read_bundle(keys / "nodes" / "b").key)
    wrong = a.send("a", 1, a.head, 9.0)
    a.client.bundle = own
    right = a.send("a", 2, a.head, 1.0)
    a.until(lambda: bool(a.statuses(right)))
    assert a.statuses(wrong) == []
    assert [row.update_id for row in read_updates(running.data_dir / "journal.db")] == [right]


def test_enrolment_and_revocation_take_effect_while_the_coordinator_runs(
    play: Callable[[str], Any], launch: Callable[..., Any], keys: Path
) -> None:
    enrol(keys, "c", days=100)
    c = play("c")
    running = launch()
    c.until_version(0)
    accepted = c.send("c", 0, c.head, 1.0)
    c.until(lambda: c.statuses(accepted) == ["accepted"])
    revoke(keys, "c")
    c.until(lambda: c.statuses(accepted) == ["accepted", "rejected"])  # it waited, and goes into no version
    refused = c.send("c", 1, c.head, 1.0)
    c.until(lambda: c.statuses(refused) == ["rejected"])
    enrol(keys, "d", days=100)
    d = play("d")
    d.until_version(0)

    deadline = time.monotonic() + PATIENCE_S
    while not any(receipt.status == "accepted" for receipt in d.receipts):
        assert time.monotonic() < deadline, f"no update of d was accepted: {d.receipts}"
        d.send("d", 0, d.head, 1.0)  # again and again: the coordinator reads the key ring once a second
        again = time.monotonic() + 0.2
        d.until(lambda again=again: bool(d.receipts) or time.monotonic() > again)
    running.kill()
    assert all(version.agrees for version in replay(running.data_dir / "journal.db"))


def test_a_new_key_of_the_coordinator_is_taken_up_while_it_runs(
    play: Callable[[str], Any], launch: Callable[..., Any], keys: Path
) -> None:
    a = play("a")
    launch()
    a.until_version(0)
    before = a.client.trust.certificate
    rotate(keys, days=100)
    a.until(lambda: a.client.trust.certificate.number == before.number + 1)
    a.messages.clear()
    a.until(lambda: a.head is not None and a.release is not None)  # signed by the new key, or they would be false
    update = a.send("a", 0, a.head, 1.0)
    a.until(lambda: a.statuses(update) == ["accepted"])


def test_pointers_are_renewed_before_they_expire(play: Callable[[str], Any], launch: Callable[..., Any]) -> None:
    a = play("a")
    launch(lifetime=2)
    a.until_version(0)
    first: GlobalPointer = a.head
    assert first.expires_at_ns is not None
    a.until(lambda: a.head.expires_at_ns > first.expires_at_ns and a.release.expires_at_ns > first.expires_at_ns)
    assert a.head.model_copy(update={"expires_at_ns": None}) == first.model_copy(update={"expires_at_ns": None})


def test_a_manifest_that_nobody_signed_is_counted_by_the_coordinator(
    play: Callable[[str], Any], launch: Callable[..., Any]
) -> None:
    a = play("a")
    running = launch()
    a.until_version(0)
    signing = a.client
    a.client = signing.client
    unsigned = a.send("a", 0, a.head, 5.0)
    a.client = signing
    signed = a.send("a", 1, a.head, 1.0)
    a.until(lambda: bool(a.statuses(signed)))
    assert a.statuses(unsigned) == []
    running.kill()
    assert "update that is not signed" in running.log.read_text()


@pytest.mark.parametrize("change", [("keys = ", "#"), (FEDERATION, "elsewhere")])
def test_a_coordinator_whose_keys_do_not_fit_ends_with_a_sentence(
    launch: Callable[..., Any], change: tuple[str, str]
) -> None:
    running = launch()
    running.kill()
    text = running.config.read_text()
    old, new = change
    if old == FEDERATION:
        running.config.write_text(text.replace(f'federation = "{old}"', f'federation = "{new}"'))
        said = "is of federation test, the settings say elsewhere"
    else:
        host = text.replace(old, "# keys = ").replace("broker = {", 'broker = {host = "broker.example", ')
        running.config.write_text(host)
        said = "set security.keys"
    running.start()
    code, log = running.ends()
    assert code == 1 and said in log


def test_a_rollback_reaches_connected_nodes_and_is_recorded(
    play: Callable[[str], Any], launch: Callable[..., Any]
) -> None:
    a = play("a")
    running = launch()
    a.until_version(0)
    for number in range(2):
        a.send("a", number, a.head, 1.0)
    a.until(lambda: a.release is not None and a.release.version == 1)
    command = [sys.executable, "-m", "alignfed", "adapters", "rollback", "0", "--json"]
    where = ["--data-dir", str(running.data_dir), "--wait", str(PATIENCE_S)]
    back = json.loads(subprocess.run([*command, *where], check=True, capture_output=True, text=True).stdout)
    assert (back["release"], back["head"], back["refused"]) == (0, 1, None)
    a.until(lambda: a.release.version == 0)
    assert a.release.epoch == back["epoch"] > a.head.epoch
    assert a.release.digest == a.version(0).digest

    back = json.loads(subprocess.run([*command, "--head", *where], check=True, capture_output=True, text=True).stdout)
    a.until(lambda: a.head.version == 2 and a.release.version == 2)
    assert a.head.digest == a.version(0).digest and a.version(2).rolled_back_to == 0
    assert a.client.false == []
    running.kill()
    assert all(version.agrees for version in replay(running.data_dir / "journal.db"))
    verify = [sys.executable, "-m", "alignfed", "adapters", "verify", "--json", "--config", str(running.config)]
    verified = json.loads(subprocess.run(verify, check=True, capture_output=True, text=True).stdout)
    assert verified["ok"] and [version["fault"] for version in verified["versions"]] == [None] * 3
