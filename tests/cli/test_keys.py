"""`alignfed keys` as an operator types it, and a process that is closed by default."""

import json

import pytest


@pytest.fixture
def keys(alignfed):
    """The keys of a federation, made in ./alignfed-keys."""
    made = alignfed("keys", "init", "--federation", "plant", "--host", "gateway.local", "--json")
    assert made.returncode == 0, made.stderr
    return made


def test_init_says_loudly_what_the_offline_key_is(keys):
    assert "WHOEVER HAS IT CAN MAKE EVERY NODE TAKE ANY ADAPTER" in keys.stderr
    said = json.loads(keys.stdout)
    assert said["hosts"] == ["localhost", "127.0.0.1", "gateway.local"]
    assert said["root_is_here"] and said["nodes"] == []


def test_a_node_is_enrolled_listed_and_revoked(alignfed, keys, tmp_path):
    enrolled = json.loads(alignfed("keys", "enrol", "kitchen", "--json").stdout)
    assert (tmp_path / enrolled["bundle"] / "signing.key").exists()
    assert alignfed("keys", "revoke", "kitchen").returncode == 0
    listed = json.loads(alignfed("keys", "list", "--json").stdout)
    assert [(node["name"], node["revoked"]) for node in listed["nodes"]] == [("kitchen", True)]
    assert listed["ring_number"] == 2


def test_home_assistant_is_let_in_below_the_prefix_of_the_settings_and_revoked(alignfed, keys, tmp_path):
    (tmp_path / "alignfed.toml").write_text('federation = "plant"\ncoordinator.home_assistant.prefix = "hass"\n')
    made = json.loads(alignfed("keys", "home-assistant", "--json").stdout)
    assert made["discovery_prefix"] == "hass" and (tmp_path / made["bundle"] / "client.crt").exists()
    assert json.loads(alignfed("keys", "list", "--json").stdout)["discovery_prefix"] == "hass"
    assert "below hass/" in alignfed("keys", "list").stdout
    assert alignfed("keys", "revoke", "home-assistant").returncode == 0
    assert json.loads(alignfed("keys", "list", "--json").stdout)["discovery_prefix"] is None


def test_a_new_key_of_the_coordinator_has_a_higher_number(alignfed, keys):
    before, after = json.loads(keys.stdout), json.loads(alignfed("keys", "rotate", "--json").stdout)
    assert after["certificate_number"] == before["certificate_number"] + 1
    assert after["coordinator_key_id"] != before["coordinator_key_id"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("enrol", "a/b"), 2, "is no name for a node"),
        (("enrol", "coordinator"), 1, "no node may be called coordinator"),
        (("revoke", "cellar"), 1, "no node cellar is enrolled"),
        (("revoke", "home-assistant"), 1, "Home Assistant was never let in"),
        (("list", "--dir", "elsewhere"), 1, "`alignfed keys` makes it"),
        (("init", "--federation", "other"), 1, "has the keys of federation plant"),
    ],
)
def test_what_cannot_be_done_ends_with_a_sentence(alignfed, keys, words, code, said):
    refused = alignfed("keys", *words)
    assert refused.returncode == code
    assert said in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize("process", [("coordinator",), ("edge", "--node", "kitchen", "--data", "kitchen.jsonl")])
def test_a_process_without_keys_refuses_a_broker_on_another_machine(alignfed, process):
    refused = alignfed(*process, "--broker", "gateway.local:1883")
    assert refused.returncode == 1
    assert "set security.keys to a bundle" in refused.stderr and "security.open = true" in refused.stderr


def test_the_bundle_of_another_node_is_refused(alignfed, keys, tmp_path):
    alignfed("keys", "enrol", "kitchen")
    (tmp_path / "alignfed.toml").write_text('federation = "plant"\nsecurity.keys = "alignfed-keys/nodes/kitchen"\n')
    refused = alignfed("edge", "--node", "office", "--data", "office.jsonl")
    assert refused.returncode == 1
    assert "is the bundle of kitchen, not of office" in refused.stderr
