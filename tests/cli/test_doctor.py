"""`alignfed doctor` tells what works, what does not, and what to do about it."""

import json
import time

import pytest

from broker.preflight import BrokerAbilities
from doctor import SMALLEST_PACKET, check_clock, check_disk, check_examples, check_memory, check_packet_limit
from edge_node.settings import EdgeSettings


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
