"""`alignfed doctor` tells what works, what does not, and what to do about it."""

import fcntl
import json
import socket
import time
from datetime import UTC, datetime, timedelta

import pytest

from base_model.reference import resolve
from broker.bundle import read_bundle
from broker.federation_keys import enrol, init
from broker.preflight import BrokerAbilities
from broker.security import SecuritySettings
from broker.settings import BrokerSettings
from configuration import load
from coordinator.journal import open_journal
from coordinator.settings import CalibrationSettings
from doctor.broker import SMALLEST_PACKET, check_packet_limit
from doctor.folders import (
    check_disk,
    check_founding,
    check_journal,
    check_lock,
    check_outbox,
    check_secret,
    check_set_aside,
)
from doctor.keys import (
    check_bundle,
    check_certificate,
    check_federations_key,
    check_own_signing_key,
    check_without_keys,
)
from doctor.learning import check_calibration, check_examples
from doctor.machine import check_clock, check_memory, check_port
from doctor.retained import check_coordinator, check_node_name, check_same_model
from edge_node.outbox import Outbox
from edge_node.settings import EdgeSettings
from schemas.adapter import LoraConfig
from schemas.messages import CoordinatorState, GlobalPointer, NodeState


@pytest.fixture
def config(tmp_path, tiny_model_dir):
    file = tmp_path / "alignfed.toml"
    file.write_text(f'base_model = {{name = "{tiny_model_dir}", cache_dir = "cache"}}\n')
    return file


def test_a_good_machine_and_a_live_broker_pass(alignfed, config, broker):
    passed = alignfed("doctor", "--broker", broker.address, "--json")
    checks = {check["name"]: check["status"] for check in json.loads(passed.stdout)}
    assert passed.returncode == 0
    assert {checks[name] for name in ("broker", "packet limit", "retained messages", "sessions")} == {"ok"}
    assert {"clock", "memory", "base model", "training", "serving"} <= set(checks)


def test_a_dead_port_fails_and_says_what_to_do(alignfed, config):
    failed = alignfed("doctor", "--broker", "127.0.0.1:1")
    assert failed.returncode == 1
    assert "fail  broker: cannot reach a broker at 127.0.0.1:1" in failed.stdout
    assert "`alignfed broker`" in failed.stdout


def test_a_broker_with_small_packets_fails():
    small = BrokerAbilities(SMALLEST_PACKET - 1, 0.1, None, None)
    assert check_packet_limit(small).status == "fail"
    assert check_packet_limit(BrokerAbilities(SMALLEST_PACKET, 0.1, None, None)).status == "ok"


def test_a_clock_before_the_installation_or_far_ahead_is_wrong():
    a_century_s = 100 * 365 * 24 * 3600
    assert check_clock(0).status == "fail"
    assert check_clock(time.time() + a_century_s).status == "fail"
    assert check_clock(time.time()).status == "ok"


def test_a_folder_that_does_not_exist_yet_is_judged_by_what_it_will_be_in(tmp_path):
    assert check_disk(tmp_path / "not" / "yet").status == check_disk(tmp_path).status


def test_a_file_in_place_of_a_folder_fails(tmp_path):
    (tmp_path / "file").write_text("")
    assert check_disk(tmp_path / "file").status == "fail"


def test_little_memory_is_a_warning():
    assert check_memory(100).status == "warn"


def test_a_file_of_examples_that_is_not_there_fails_and_says_what_to_set(tmp_path):
    check = check_examples(EdgeSettings(node="home-1", data=tmp_path / "none.jsonl", data_dir=tmp_path))
    assert (check.status, "none.jsonl" in check.found) == ("fail", True)
    assert "[edge] data" in check.advice


def test_lines_that_are_no_examples_are_a_warning(tmp_path):
    (tmp_path / "examples.jsonl").write_text('{"prompt": "a", "completion": "b"}\nnonsense\n')
    check = check_examples(EdgeSettings(node="home-1", data=tmp_path / "examples.jsonl", data_dir=tmp_path))
    assert (check.status, check.found) == ("warn", "1 private examples; 1 lines are none")
    assert not (tmp_path / "examples.db").exists()


def test_a_federation_without_a_coordinator_is_a_warning_that_says_how_to_start_one(alignfed, config, broker):
    told = alignfed("doctor", "--broker", broker.address, "--federation", "nobody", "--json")
    [check] = [check for check in json.loads(told.stdout) if check["name"] == "coordinator"]
    assert check["status"] == "warn"
    assert "alignfed coordinator --federation nobody" in check["advice"]


@pytest.fixture
def birth():
    """What a coordinator says of itself."""
    return CoordinatorState(
        online=True,
        boot_id="b" * 32,
        epoch=2,
        base_model="a" * 64,
        base_model_name="large",
        lora=LoraConfig(rank=1),
        layout="c" * 64,
        strategy="alignfed",
        one_update_per_version=False,
        codecs=("kltp",),
    )


def test_a_coordinator_is_known_by_what_it_says_of_itself(birth):
    assert check_coordinator(birth.to_bytes(), "home").status == "ok"
    assert check_coordinator(birth.model_copy(update={"online": False}).to_bytes(), "home").status == "warn"
    assert check_coordinator(b"hello", "home").status == "fail"


def test_a_node_name_that_is_online_elsewhere_is_a_warning():
    birth = NodeState(online=True, boot_id="b" * 32, base_model="a" * 64)
    assert check_node_name(birth.to_bytes(), "attic").status == "warn"
    assert check_node_name(birth.model_copy(update={"online": False}).to_bytes(), "attic").status == "ok"
    assert check_node_name(None, "attic").status == "ok"


def test_a_port_that_is_taken_is_said():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        check = check_port("page", f"127.0.0.1:{taken.getsockname()[1]}")
    assert check.status == "warn"
    assert "another port" in check.advice


def test_an_address_that_others_reach_is_pointed_out():
    assert "no password" in check_port("page", "0.0.0.0:0").found
    assert "this machine only" in check_port("page", "127.0.0.1:0").found


def test_a_secret_that_others_can_read_is_a_warning_with_the_command(tmp_path):
    secret = tmp_path / "password"
    secret.write_text("x")
    secret.chmod(0o644)
    assert check_secret(secret).advice == f"chmod 600 {secret}"
    secret.chmod(0o600)
    assert check_secret(secret).status == "ok"
    assert check_secret(tmp_path / "none").status == "fail"


def test_a_journal_that_was_cut_short_fails(tmp_path):
    open_journal(tmp_path / "journal.db").close()
    [whole] = check_journal(tmp_path / "journal.db")
    assert whole.status == "ok"
    content = (tmp_path / "journal.db").read_bytes()
    (tmp_path / "journal.db").write_bytes(content[: len(content) // 2 + 7])
    [cut] = check_journal(tmp_path / "journal.db")
    assert cut.status == "fail"
    assert list(check_journal(tmp_path / "none.db")) == []


def test_a_calibration_set_that_is_too_small_fails(tmp_path):
    (tmp_path / "calibration.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    settings = CalibrationSettings(data=tmp_path / "calibration.jsonl", anchor_examples=1, gate_examples=1)
    assert check_calibration(settings).status == "fail"
    assert check_calibration(settings.model_copy(update={"gate_examples": 0})).status == "ok"


# --- keys ---


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """The keys of the federation `plant`, good for a hundred days, with the node kitchen."""
    folder = tmp_path_factory.mktemp("keys")
    init(folder, "plant", ["gateway.local"], days=100)
    enrol(folder, "kitchen", days=100)
    return folder


def in_days(days):
    return datetime.now(UTC) + timedelta(days=days)


def test_a_broker_elsewhere_without_keys_fails_as_the_services_do():
    elsewhere, here = BrokerSettings(host="gateway.local"), BrokerSettings(host="127.0.0.1")
    refused = check_without_keys(SecuritySettings(), elsewhere)
    assert refused.status == "fail"
    assert refused.advice.startswith("set security.keys to a bundle made by `alignfed keys`, or")
    assert check_without_keys(SecuritySettings(open=True), elsewhere).status == "ok"
    assert check_without_keys(SecuritySettings(), here).status == "ok"


@pytest.mark.parametrize(
    ("member", "federation", "node", "status", "said"),
    [
        ("nodes/kitchen", "plant", "kitchen", "ok", "bundle of kitchen in federation plant"),
        ("nodes/kitchen", "plant", None, "ok", "bundle of kitchen"),
        ("coordinator", "plant", None, "ok", "bundle of coordinator"),
        ("observer", "plant", None, "ok", "bundle of observer"),
        ("nodes/kitchen", "plant", "office", "fail", "is the bundle of kitchen, not of office"),
        ("nodes/kitchen", "home", "kitchen", "fail", "is of federation plant, the settings say home"),
        ("coordinator", "home", None, "fail", "is of federation plant, the settings say home"),
        ("observer", "home", None, "fail", "is of federation plant, the settings say home"),
        ("coordinator", "plant", "kitchen", "warn", "the node kitchen would not start"),
        ("nodes/none", "plant", None, "fail", "cannot read"),
    ],
)
def test_a_bundle_is_judged_as_its_process_would(keys, member, federation, node, status, said):
    check, bundle = check_bundle(keys / member, federation, node)
    assert check.status == status
    assert said in check.found
    assert (bundle is None) == (said == "cannot read")


@pytest.mark.parametrize(("days", "status"), [(60, "ok"), (80, "warn"), (101, "fail")])
def test_what_runs_out_is_said_a_month_before(keys, days, status):
    node, coordinator = read_bundle(keys / "nodes" / "kitchen"), read_bundle(keys / "coordinator")
    certificate = check_certificate(node.folder / "client.crt", node, in_days(days))
    said = (keys / "coordinator" / "certificates" / "1.signed").read_bytes()
    of_federation = check_federations_key(said, node, in_days(days))
    own = check_own_signing_key(coordinator, in_days(days))
    assert [check.status for check in (certificate, of_federation, own)] == [status] * 3
    if status != "ok":
        assert "`alignfed keys enrol kitchen`" in certificate.advice
        assert "`alignfed keys rotate`" in of_federation.advice and "`alignfed keys rotate`" in own.advice


def test_a_coordinator_with_other_keys_than_the_bundles_is_found_out(keys, tmp_path):
    init(tmp_path, "plant", ["localhost"], days=2)
    said = (tmp_path / "coordinator" / "certificates" / "1.signed").read_bytes()
    other = check_federations_key(said, read_bundle(keys / "nodes" / "kitchen"), in_days(0))
    assert (other.status, "is not the root's" in other.found) == ("fail", True)
    assert check_federations_key(None, read_bundle(keys / "nodes" / "kitchen"), in_days(0)).status == "warn"


# --- what earlier processes have left ---


def test_another_base_model_than_the_federations_fails(birth, tiny_model_dir, tmp_path):
    ours = resolve(str(tiny_model_dir), tmp_path)
    check = check_same_model(ours, birth)
    assert (check.status, "trains large with digest aaaa" in check.found) == ("fail", True)
    assert check_same_model(ours, birth.model_copy(update={"base_model": ours.digest})).status == "ok"


def test_a_journal_of_another_federation_fails_with_what_the_coordinator_would_say(federated, tiny_model_dir, tmp_path):
    model, journal = resolve(str(tiny_model_dir), tmp_path), federated.data_dir / "journal.db"
    same = load(federated.config, {})
    assert check_founding(journal, same, model, None).status == "ok"
    other = check_founding(journal, same.model_copy(update={"federation": "other"}), model, None)
    assert (other.status, "whose federation is cli" in other.found) == ("fail", True)
    assert "data_dir of its own" in other.advice


@pytest.mark.parametrize("who", ["coordinator", "node"])
def test_a_folder_that_a_process_works_in_is_a_warning(who, tmp_path):
    assert list(check_lock(tmp_path, who)) == []
    with (tmp_path / "lock").open("w") as lock:
        assert [check.status for check in check_lock(tmp_path, who)] == ["ok"]
        fcntl.flock(lock, fcntl.LOCK_EX)
        [held] = check_lock(tmp_path, who)
    assert (held.status, held.found) == ("warn", f"a {who} works in {tmp_path} now")


def test_messages_that_are_set_aside_are_a_warning(tmp_path):
    assert list(check_set_aside(tmp_path)) == []
    (tmp_path / "poison.json").write_text(json.dumps({"tried/once": 1, "alignfed/v1/home/update/x": 3}))
    [check] = check_set_aside(tmp_path)
    assert check.status == "warn"
    assert "of each of 1 messages, such as alignfed/v1/home/update/x" in check.found
    assert str(tmp_path / "poison.json") in check.advice


def test_a_node_that_has_held_newer_versions_than_there_are_would_take_none(tmp_path):
    head = GlobalPointer(epoch=2, version=3, digest="d" * 64, parent=None, size=1, chunks=0)
    assert list(check_outbox(tmp_path, head)) == []
    with Outbox(tmp_path / "outbox.db") as outbox:
        outbox.raise_mark((2, 3))
        assert [check.status for check in check_outbox(tmp_path, head)] == ["ok"]
        outbox.raise_mark((5, 0))
    [older] = check_outbox(tmp_path, head)
    assert (older.status, "takes nothing older" in older.found) == ("fail", True)
    (tmp_path / "outbox.db").write_bytes(b"this is no database" * 100)
    assert [check.status for check in check_outbox(tmp_path, head)] == ["fail"]


# --- whatever is wrong, it is an answer ---


@pytest.mark.parametrize(
    ("settings", "words", "name", "said"),
    [
        ("broker.prot = 1\n", (), "settings", "did you mean port?"),
        ("broker = [\n", (), "settings", "is not valid TOML"),
        ("", ("--config", "none.toml"), "settings", "cannot read none.toml"),
        ("", ("--broker", "gateway:port"), "settings", "give HOST or HOST:PORT"),
        ('security.keys = "nowhere"\n', (), "keys", "cannot read nowhere/federation.json"),
    ],
)
def test_settings_and_keys_that_cannot_be_read_are_failed_checks(alignfed, config, settings, words, name, said):
    config.write_text(config.read_text() + settings)
    examined = alignfed("doctor", "--json", *words)
    answers = json.loads(examined.stdout)
    [failed] = [check for check in answers if check["status"] == "fail"]
    assert (examined.returncode, failed["name"]) == (1, name)
    assert said in failed["found"]
    assert failed["advice"]
    assert "broker" not in {check["name"] for check in answers}  # it would want the keys
