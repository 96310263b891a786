"""`alignfed doctor` tells what works, what does not, and what to do about it."""

import json
import socket
import time

import pytest

from broker.preflight import BrokerAbilities
from coordinator.journal import open_journal
from coordinator.settings import CalibrationSettings
from doctor import (
    SMALLEST_PACKET,
    check_calibration,
    check_clock,
    check_coordinator,
    check_disk,
    check_examples,
    check_journal,
    check_memory,
    check_node_name,
    check_packet_limit,
    check_port,
    check_secret,
)
from edge_node.settings import EdgeSettings
from schemas.adapter import LoraConfig
from schemas.messages import CoordinatorState, NodeState


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


def test_a_coordinator_is_known_by_what_it_says_of_itself():
    said = {
        "online": True,
        "boot_id": "b" * 32,
        "epoch": 2,
        "base_model": "a" * 64,
        "base_model_name": "tiny",
        "lora": LoraConfig(rank=1),
        "layout": "c" * 64,
        "strategy": "alignfed",
        "one_update_per_version": False,
        "codecs": ("kltp",),
    }
    birth = CoordinatorState.model_validate(said)
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
