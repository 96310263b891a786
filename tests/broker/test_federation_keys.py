"""Keys are made once and kept, their files are nobody else's, and mosquitto does what is made of them."""

import base64
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from broker.access import federation_rules
from broker.bundle import load_coordinator_bundle, load_node_bundle, load_ring, read_bundle
from broker.certificates import common_name, hosts_of, read_certificate
from broker.client import Client
from broker.embedded import BrokerFailed, EmbeddedBroker
from broker.events import Connected, Disconnected, Message, Publication, Published, Subscribed
from broker.federation_keys import enrol, init, let_in_home_assistant, look, revoke, rotate
from broker.key_files import KeyFileError, read_signing_key, write_new_file
from broker.preflight import probe
from broker.settings import BrokerSettings
from schemas.signing import key_id, verified
from schemas.topics import (
    ADDRESSES,
    CoordinatorStateOf,
    GlobalHead,
    GlobalKeys,
    InferenceAnswerFor,
    InferenceRequestTo,
    NodeFiguresOf,
    NodeMetricsOf,
    NodeStateOf,
    ReceiptFor,
    UpdateChunk,
    UpdateManifestOf,
    home_assistant_topic,
    parse,
    route,
)
from tests.ports import free_port

HOSTS = ("127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The keys of a federation of two nodes; tests that change them take a copy."""
    folder = tmp_path_factory.mktemp("keys") / "plant"
    init(folder, "plant", HOSTS, days=100)
    for node in ("kitchen", "office"):
        enrol(folder, node, days=100)
    return folder


@pytest.fixture
def keys(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "keys"))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the configuration, which names the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("mosquitto.conf", ".lock")
    }


# --- what is made ---


def test_every_secret_is_for_its_owner_alone(made: Path) -> None:
    secrets = [path for path in made.rglob("*.key")]
    assert len(secrets) == 1 + 1 + 1 + 2 + 1 + 2 * 2  # root, authority, broker, coordinator, observer, two nodes
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_everything_done_again_changes_nothing(keys: Path) -> None:
    before = contents(keys)
    init(keys, "plant", HOSTS, days=100)
    enrol(keys, "kitchen", days=100)
    assert contents(keys) == before
    let_in_home_assistant(keys, "homeassistant", days=100)
    before = contents(keys)
    let_in_home_assistant(keys, "homeassistant", days=100)
    init(keys, "plant", HOSTS, days=100)
    assert contents(keys) == before


def test_a_certificate_is_for_the_nodes_name_and_signed_by_the_authority(made: Path) -> None:
    certificate = read_certificate(made / "nodes" / "kitchen" / "client.crt")
    authority = read_certificate(made / "nodes" / "kitchen" / "ca.crt")
    assert common_name(certificate) == "kitchen"
    certificate.verify_directly_issued_by(authority)


def test_a_node_signs_with_the_key_that_is_on_the_ring(made: Path) -> None:
    bundle = load_node_bundle(made / "nodes" / "kitchen", "plant", "kitchen")
    assert bundle.key is not None
    assert load_ring(made / "coordinator").by_id[key_id(bundle.key.public)].node == "kitchen"


def test_the_root_has_signed_the_coordinators_key(made: Path) -> None:
    bundle, online = load_coordinator_bundle(made / "coordinator", "plant")
    topic = route("plant", GlobalKeys()).topic
    assert verified(bundle.root, topic, online.payload) == online.certificate.to_bytes()
    assert online.certificate.key == online.key.public
    assert bundle.root == read_signing_key(made / "offline" / "root.key").public


def test_a_node_has_nothing_of_the_others(made: Path) -> None:
    files = sorted(path.name for path in (made / "nodes" / "kitchen").iterdir())
    assert files == ["ca.crt", "client.crt", "client.key", "federation.json", "signing.key"]
    assert json.loads((made / "nodes" / "kitchen" / "federation.json").read_text()) == {
        "federation": "plant",
        "name": "kitchen",
        "root": look(made).root,
    }


def test_new_hosts_are_added_to_the_brokers_certificate_whose_key_stays(keys: Path) -> None:
    key = (keys / "broker" / "server.key").read_bytes()
    init(keys, "plant", ("gateway.local", "10.0.0.7"), days=100)
    assert hosts_of(read_certificate(keys / "broker" / "server.crt")) == (*HOSTS, "gateway.local", "10.0.0.7")
    assert (keys / "broker" / "server.key").read_bytes() == key


def test_a_certificate_that_runs_out_is_renewed_and_its_key_stays(tmp_path: Path) -> None:
    init(tmp_path / "keys", "plant", HOSTS, days=100)
    bundle = enrol(tmp_path / "keys", "kitchen", days=7)
    before = contents(bundle)
    enrol(tmp_path / "keys", "kitchen", days=100)
    after = contents(bundle)
    assert [name for name in before if before[name] != after[name]] == ["client.crt"]
    assert read_certificate(bundle / "client.crt").not_valid_after_utc > datetime.now(UTC) + timedelta(days=90)


# --- what is refused ---


def test_a_folder_is_of_one_federation(keys: Path) -> None:
    with pytest.raises(KeyFileError, match="plant"):
        init(keys, "other", HOSTS, days=100)


@pytest.mark.parametrize("name", ["coordinator", "observer", "home-assistant", "broker"])
def test_no_node_takes_a_name_that_the_federation_uses(keys: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no node may be called"):
        enrol(keys, name, days=100)


def test_no_key_is_ever_overwritten(tmp_path: Path) -> None:
    write_new_file(tmp_path / "a.key", b"secret")
    with pytest.raises(FileExistsError):
        write_new_file(tmp_path / "a.key", b"another")
    assert [path.name for path in tmp_path.iterdir()] == ["a.key"]
    assert (tmp_path / "a.key").read_bytes() == b"secret"


def test_a_secret_that_others_can_read_is_not_used(keys: Path) -> None:
    (keys / "nodes" / "kitchen" / "signing.key").chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_node_bundle(keys / "nodes" / "kitchen", "plant", "kitchen")


def test_what_systemd_hands_over_is_used_although_it_looks_readable(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = keys / "nodes" / "kitchen"
    (bundle / "signing.key").chmod(0o440)  # its access is by an ACL, whose mask is shown in the group's place
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(bundle))
    assert load_node_bundle(bundle, "plant", "kitchen").key is not None


@pytest.mark.parametrize("file", ["signing.key", "federation.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"-----BEGIN PRIVATE KEY-----\n"])
def test_a_damaged_bundle_says_which_file(keys: Path, file: str, content: bytes | None) -> None:
    path = keys / "nodes" / "kitchen" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    with pytest.raises(KeyFileError, match=file):
        load_node_bundle(path.parent, "plant", "kitchen")


def test_a_key_of_which_one_byte_is_changed_is_another_or_is_refused(keys: Path) -> None:
    path = keys / "nodes" / "kitchen" / "signing.key"
    content = path.read_bytes()
    start, end = content.index(b"\n") + 1, content.rindex(b"\n-")
    sound = base64.b64decode(content[start:end])
    refused = 0
    for place in range(len(sound)):  # in the first bytes it says what kind of key it is
        changed = bytes(byte ^ 4 if at == place else byte for at, byte in enumerate(sound))
        path.write_bytes(content[:start] + base64.b64encode(changed) + content[end:])
        try:
            read_signing_key(path)
        except KeyFileError as refusal:
            refused += 1
            assert "signing.key holds" in str(refusal) and "\n" not in str(refusal)
    assert refused >= len(sound) - 32  # the last 32 bytes are the key, and any are one


def test_the_bundle_of_another_node_or_federation_is_refused(made: Path) -> None:
    with pytest.raises(KeyFileError, match="bundle of kitchen, not of office"):
        load_node_bundle(made / "nodes" / "kitchen", "plant", "office")
    with pytest.raises(KeyFileError, match="federation plant"):
        load_node_bundle(made / "nodes" / "kitchen", "home", "kitchen")


def test_an_observer_signs_nothing(made: Path) -> None:
    observer = read_bundle(made / "observer")
    with pytest.raises(KeyFileError, match="only looks on"):
        observer.signed(Publication(route("plant", GlobalHead()).topic, b"{}"))


def test_what_deletes_a_retained_message_and_chunks_carry_no_signature(made: Path) -> None:
    bundle, _ = load_coordinator_bundle(made / "coordinator", "plant")
    for publication in (
        Publication(route("plant", GlobalHead()).topic, b""),
        Publication(route("plant", UpdateChunk("kitchen", "a" * 32, 0)).topic, b"bytes"),
        Publication("elsewhere", b"bytes"),
    ):
        assert bundle.signed(publication) == publication


# --- changes ---


def test_revoked_is_in_the_ring_the_access_rules_and_the_list_of_certificates(keys: Path) -> None:
    serial = read_certificate(keys / "nodes" / "kitchen" / "client.crt").serial_number
    revoke(keys, "kitchen")
    assert load_ring(keys / "coordinator").enrolled == {"office"}
    assert (keys / "broker" / "acl").read_text().endswith("\nuser kitchen\ntopic deny #\n")
    crl = x509.load_pem_x509_crl((keys / "broker" / "revoked.crl").read_bytes())
    assert [entry.serial_number for entry in crl] == [serial]
    assert not (keys / "nodes" / "kitchen").exists()
    before = contents(keys)
    revoke(keys, "kitchen")
    assert {name for name, content in contents(keys).items() if before.get(name) != content} <= {"broker/revoked.crl"}


def test_a_revoked_node_can_be_enrolled_again_with_new_keys(keys: Path) -> None:
    before = read_signing_key(keys / "nodes" / "kitchen" / "signing.key").public
    revoke(keys, "kitchen")
    bundle = enrol(keys, "kitchen", days=100)
    assert read_signing_key(bundle / "signing.key").public != before
    assert "deny #" not in (keys / "broker" / "acl").read_text()
    crl = x509.load_pem_x509_crl((keys / "broker" / "revoked.crl").read_bytes())
    assert read_certificate(bundle / "client.crt").serial_number not in {entry.serial_number for entry in crl}
    assert [(m.name, m.revoked) for m in look(keys).nodes] == [("kitchen", True), ("office", False), ("kitchen", False)]


def test_a_revocation_that_was_cut_short_is_finished_by_the_next_enrolment(keys: Path) -> None:
    ring = load_ring(keys / "coordinator").without_node("kitchen")
    (keys / "coordinator" / "keyring.json").write_bytes(ring.to_bytes())  # and nothing more was done
    old = read_certificate(keys / "nodes" / "kitchen" / "client.crt").serial_number
    bundle = enrol(keys, "kitchen", days=100)
    crl = x509.load_pem_x509_crl((keys / "broker" / "revoked.crl").read_bytes())
    assert [entry.serial_number for entry in crl] == [old]
    assert read_certificate(bundle / "client.crt").serial_number != old
    assert load_ring(keys / "coordinator").enrolled == {"kitchen", "office"}


def test_a_node_that_was_never_enrolled_cannot_be_revoked(keys: Path) -> None:
    with pytest.raises(KeyFileError, match="there are: kitchen, office"):
        revoke(keys, "cellar")
    with pytest.raises(KeyFileError, match="was never let in"):
        revoke(keys, "home-assistant")


def test_what_home_assistant_may_do_outlives_every_other_change_of_the_keys(keys: Path) -> None:
    let_in_home_assistant(keys, "hass", days=100)
    before = (keys / "broker" / "acl").read_text()
    assert "topic write hass/device/+/config" in before and look(keys).discovery_prefix == "hass"
    enrol(keys, "attic", days=100)
    init(keys, "plant", HOSTS, days=100)
    revoke(keys, "attic")
    assert (keys / "broker" / "acl").read_text() == before + "\nuser attic\ntopic deny #\n"


def test_home_assistant_can_be_shut_out_and_let_in_again_with_new_keys(keys: Path) -> None:
    old = read_certificate(let_in_home_assistant(keys, "homeassistant", days=100) / "client.crt").serial_number
    revoke(keys, "home-assistant")
    access = (keys / "broker" / "acl").read_text()
    assert access.endswith("\nuser home-assistant\ntopic deny #\n") and "homeassistant/" not in access
    assert not (keys / "home-assistant").exists() and look(keys).discovery_prefix is None
    before = contents(keys)
    revoke(keys, "home-assistant")
    assert {name for name, content in contents(keys).items() if before.get(name) != content} <= {"broker/revoked.crl"}
    bundle = let_in_home_assistant(keys, "homeassistant", days=100)
    crl = x509.load_pem_x509_crl((keys / "broker" / "revoked.crl").read_bytes())
    assert [entry.serial_number for entry in crl] == [old] != [read_certificate(bundle / "client.crt").serial_number]
    assert "deny #" not in (keys / "broker" / "acl").read_text()


def test_rotation_needs_the_root_and_gives_a_new_key_with_a_higher_number(keys: Path) -> None:
    (keys / "offline").rename(keys.parent / "medium")
    with pytest.raises(KeyFileError, match="is away"):
        rotate(keys, days=100)
    before = look(keys)
    (keys.parent / "medium").rename(keys / "offline")
    after = rotate(keys, days=100)
    assert (before.certificate_number, after.certificate_number) == (1, 2)
    assert before.coordinator_key_id != after.coordinator_key_id
    assert [path.name for path in (keys / "coordinator").glob("signing-*")] == [
        f"signing-{after.coordinator_key_id}.key"
    ]


def test_a_rotation_that_was_cut_short_uses_the_key_that_it_had_made(keys: Path) -> None:
    (keys / "offline").rename(keys.parent / "medium")
    with pytest.raises(KeyFileError):
        rotate(keys, days=100)
    waiting = {path.name for path in (keys / "coordinator").glob("signing-*")}
    (keys.parent / "medium").rename(keys / "offline")
    assert f"signing-{rotate(keys, days=100).coordinator_key_id}.key" in waiting


def test_another_root_is_not_taken_for_the_federations(keys: Path) -> None:
    (keys / "offline" / "root.key").unlink()
    shutil.copy(keys / "nodes" / "office" / "signing.key", keys / "offline" / "root.key")
    with pytest.raises(KeyFileError, match="is not the root"):
        rotate(keys, days=100)


# --- access rules ---


def test_every_topic_has_a_rule_for_nodes_and_all_but_questions_one_for_the_coordinator() -> None:
    patterns = [(rule.user, rule.pattern) for rule in federation_rules("plant")]
    for kind in ADDRESSES:
        fields = dict.fromkeys(kind.__dataclass_fields__, "+")
        for user, node in ((None, "%u"), ("coordinator", "+")):
            pattern = f"alignfed/v1/plant/{kind.spec.pattern.format(**(fields | {'node': node}))}"
            is_question = kind in (InferenceRequestTo, InferenceAnswerFor)
            assert ((user, pattern) in patterns) is not (is_question and user == "coordinator")


@pytest.fixture
def secured(mosquitto: str, keys: Path) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker("mosquitto", keys=keys) as broker:
        yield broker


def client_of(keys: Path, broker: EmbeddedBroker, folder: str, *filters: str) -> Client:
    settings = read_bundle(keys / folder).reaches(broker.settings.model_copy(update={"ca_file": None}))
    return Client(settings, f"client-{folder.replace('/', '-')}", subscriptions=filters, clean_start=True)


@pytest.mark.mosquitto
def test_a_node_publishes_as_itself_only(keys: Path, secured: EmbeddedBroker, expect: Callable[..., Any]) -> None:
    addresses = [UpdateManifestOf(node, "a" * 32) for node in ("kitchen", "office")]
    addresses += [NodeStateOf("kitchen"), NodeStateOf("office"), ReceiptFor("kitchen"), GlobalHead(), GlobalKeys()]
    with (
        client_of(keys, secured, "observer", "alignfed/#") as observer,
        client_of(keys, secured, "nodes/kitchen") as node,
    ):
        expect(observer, Subscribed)
        tokens = {node.publish(Publication(route("plant", a).topic, b"x")): a for a in addresses}
        answers = [expect(node, Published) for _ in tokens]
        assert {tokens[answer.token] for answer in answers if answer.reason is None} == {addresses[0], addresses[2]}
        seen = {parse("plant", expect(observer, Message).topic) for _ in range(2)}
        assert seen == {addresses[0], addresses[2]}


@pytest.mark.mosquitto
def test_whoever_is_enrolled_asks_any_node_and_reads_its_own_answers_only(
    keys: Path, secured: EmbeddedBroker, expect: Callable[..., Any]
) -> None:
    question, answer, other = (
        Publication(route("plant", address).topic, b"x")
        for address in (
            InferenceRequestTo("kitchen"),
            InferenceAnswerFor("kitchen", "office"),
            InferenceAnswerFor("kitchen", "lamp"),
        )
    )
    forged = Publication(route("plant", InferenceAnswerFor("garage", "office")).topic, b"x")
    with (
        client_of(keys, secured, "coordinator", "alignfed/#") as coordinator,
        client_of(keys, secured, "nodes/office", "alignfed/#") as office,
        client_of(keys, secured, "nodes/kitchen", question.topic) as kitchen,
    ):
        for one in (coordinator, office, kitchen):
            expect(one, Subscribed)
        office.publish(question)
        assert expect(kitchen, Message).topic == question.topic
        reasons = {kitchen.publish(said): said for said in (other, forged, answer)}
        refused = [reasons[told.token] for told in (expect(kitchen, Published) for _ in reasons) if told.reason]
        assert refused == [forged]
        assert expect(office, Message).topic == answer.topic  # and not what is for the lamp
        kitchen.publish(Publication(route("plant", NodeStateOf("kitchen")).topic, b"x"))
        assert expect(coordinator, Message).topic == route("plant", NodeStateOf("kitchen")).topic  # nor any question


@pytest.mark.mosquitto
def test_the_observer_asks_nodes_and_publishes_nothing_else_not_even_as_a_node_of_its_name(
    keys: Path, secured: EmbeddedBroker, expect: Callable[..., Any]
) -> None:
    denied = [kind(**_anything(kind, node="observer")) for kind in ADDRESSES if kind is not InferenceRequestTo]
    question = InferenceRequestTo("kitchen")
    with client_of(keys, secured, "observer", "alignfed/#") as observer:
        assert expect(observer, Subscribed).reason is None
        said = {observer.publish(Publication(route("plant", one).topic, b"x")): one for one in (*denied, question)}
        answers = [expect(observer, Published) for _ in said]
        assert [said[answer.token] for answer in answers if answer.reason != "Not authorized"] == [question]


def _anything(kind: type[Any], **fixed: Any) -> dict[str, Any]:
    """A value for every field of an address."""
    any_ = {"node": "kitchen", "device": "lamp", "update_id": "a" * 32, "version": 1, "index": 0}
    return {field.name: (any_ | fixed)[field.name] for field in fields(kind)}


@pytest.mark.mosquitto
def test_home_assistant_reads_what_it_is_told_of_nodes_and_does_nothing_else(
    keys: Path, mosquitto: str, expect: Callable[..., Any]
) -> None:
    told = Publication(home_assistant_topic("homeassistant", "kitchen"), b"x")
    said_by = {
        "coordinator": (CoordinatorStateOf(), NodeFiguresOf("kitchen"), GlobalHead(), ReceiptFor("kitchen")),
        "nodes/kitchen": (NodeStateOf("kitchen"), NodeMetricsOf("kitchen"), UpdateManifestOf("kitchen", "a" * 32)),
    }
    with EmbeddedBroker("mosquitto", keys=keys) as broker:
        with client_of(keys, broker, "coordinator") as coordinator:
            coordinator.publish(told)
            assert expect(coordinator, Published).reason == "Not authorized"  # nobody has let it in yet
        let_in_home_assistant(keys, "homeassistant", days=100)
        broker.restart()
        with client_of(keys, broker, "home-assistant", "#") as home:
            expect(home, Subscribed)
            for folder, addresses in said_by.items():
                with client_of(keys, broker, folder) as member:
                    for address in addresses:
                        member.publish(Publication(route("plant", address).topic, b"x"))
                        assert expect(member, Published).reason is None
            with client_of(keys, broker, "coordinator") as coordinator:
                coordinator.publish(told)  # last: what comes before it has come by now
                assert expect(coordinator, Published).reason is None
            heard = [expect(home, Message).topic for _ in range(4)]
            shown = (CoordinatorStateOf(), NodeFiguresOf("kitchen"), NodeStateOf("kitchen"))
            assert heard == [*(route("plant", address).topic for address in shown), told.topic]
            own = (
                NodeStateOf("home-assistant"),
                UpdateManifestOf("home-assistant", "a" * 32),
                InferenceRequestTo("kitchen"),
            )
            topics = [told.topic, "homeassistant/status", *(route("plant", address).topic for address in own)]
            for topic in topics:
                home.publish(Publication(topic, b"x"))
                assert expect(home, Published).reason == "Not authorized", topic


@pytest.mark.mosquitto
def test_a_revoked_node_is_denied_at_once_and_refused_after_a_restart(
    keys: Path, secured: EmbeddedBroker, expect: Callable[..., Any]
) -> None:
    own = Publication(route("plant", NodeStateOf("kitchen")).topic, b"x")
    bundle = Path(shutil.copytree(keys / "nodes" / "kitchen", keys / "stolen"))
    with client_of(keys, secured, bundle.name) as node:
        node.publish(own)
        assert expect(node, Published).reason is None
        revoke(keys, "kitchen")
        os.kill(secured.pid, signal.SIGHUP)
        deadline = time.monotonic() + 20
        while True:
            node.publish(own)
            if expect(node, Published).reason == "Not authorized":
                break
            assert time.monotonic() < deadline
    secured.restart()
    with client_of(keys, secured, bundle.name) as node:
        assert not isinstance(expect(node, Connected | Disconnected), Connected)


def test_iotcore_says_that_it_cannot_use_keys(made: Path) -> None:
    with pytest.raises(BrokerFailed, match="install mosquitto"):
        EmbeddedBroker("iotcore", keys=made)


@pytest.mark.mosquitto
@pytest.mark.parametrize(
    ("folder", "address"),
    [("nodes/kitchen", NodeMetricsOf("kitchen")), ("coordinator", ReceiptFor("doctor"))],
)
def test_what_a_preflight_tries_is_allowed_to_a_node_and_to_the_coordinator(
    keys: Path, secured: EmbeddedBroker, folder: str, address: Any
) -> None:
    settings = read_bundle(keys / folder).reaches(secured.settings.model_copy(update={"ca_file": None}))
    abilities = probe(settings, route("plant", address).topic)
    assert (abilities.retained_fault, abilities.session_fault) == (None, None)


@pytest.mark.mosquitto
def test_alignfed_broker_denies_a_revoked_node_by_itself(
    keys: Path, mosquitto: str, tmp_path: Path, expect: Callable[..., Any]
) -> None:
    port = free_port()
    command = [sys.executable, "-m", "alignfed", "broker", "--port", str(port), "--keys", str(keys)]
    command += ["--data-dir", str(tmp_path / "data")]
    own = Publication(route("plant", NodeStateOf("kitchen")).topic, b"x")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            settings = read_bundle(keys / "nodes" / "kitchen").reaches(BrokerSettings(port=port))
            with Client(settings, "kitchen", clean_start=True) as node:
                node.publish(own)
                assert expect(node, Published).reason is None
                revoke(keys, "kitchen")
                deadline = time.monotonic() + 30
                while True:
                    node.publish(own)
                    if expect(node, Published).reason == "Not authorized":
                        break
                    assert time.monotonic() < deadline
        finally:
            process.terminate()
