"""The files that a stack of containers starts from are settings that the programs take, and an owner's changes stay."""

from pathlib import Path

import pytest

from base_model.examples import load_examples
from broker.bundle import read_bundle
from configuration import Configuration, load
from examples.smart_home.recipe import RECIPE
from examples.smart_home.stack import SETTINGS, make_stack


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    make_stack(tmp_path, "fleet", 2, 7)
    return tmp_path


def test_every_node_has_settings_and_commands_of_its_own(stack: Path) -> None:
    files = [load(stack / "nodes" / name / SETTINGS, {}) for name in ("node-1", "node-2")]
    assert all(file.edge for file in files)
    nodes = [file.edge for file in files if file.edge]
    assert [node.node for node in nodes] == ["node-1", "node-2"]
    assert nodes[0].training == RECIPE.training
    first, second = (load_examples(node.data) for node in nodes)
    assert len(first) == len(second) == RECIPE.private_examples
    assert first != second


def test_the_coordinator_works_by_the_recipe_and_on_commands_that_no_node_has(stack: Path) -> None:
    settings = load(stack / "coordinator" / SETTINGS, {}).coordinator
    assert (settings.strategy, settings.lora, settings.final_version) == (RECIPE.strategy, RECIPE.lora, None)
    assert settings.calibration
    own = {example.prompt for example in load_examples(settings.calibration.data)}
    homes = [load_examples(stack / "nodes" / name / "data.jsonl") for name in ("node-1", "node-2")]
    assert not own & {example.prompt for home in homes for example in home}


def test_what_an_owner_changed_stays_and_more_nodes_come_beside_it(stack: Path) -> None:
    data, settings = stack / "nodes" / "node-1" / "data.jsonl", stack / "coordinator" / SETTINGS
    data.write_text('{"prompt": "mine", "completion": "own"}\n')
    settings.write_text('federation = "mine"\n')
    make_stack(stack, "fleet", 3, 7)
    assert [example.prompt for example in load_examples(data)] == ["mine"]
    assert load(settings, {}).federation == "mine"
    assert (stack / "nodes" / "node-3" / SETTINGS).exists()


def test_everybody_has_keys_of_one_federation_and_the_broker_what_it_needs(stack: Path) -> None:
    make_stack(stack, "fleet", 2, 7)  # again: nothing is made twice
    files = [stack / "nodes" / name / SETTINGS for name in ("node-1", "node-2")] + [stack / "coordinator" / SETTINGS]
    bundles = [read_bundle(keys) for file in files if (keys := load(file, {}).security.keys)]
    assert [bundle.name for bundle in bundles] == ["node-1", "node-2", "coordinator"]
    assert {(bundle.federation, bundle.root) for bundle in bundles} == {("fleet", bundles[0].root)}
    assert "listener 8883" in (stack / "keys" / "broker" / "mosquitto.conf").read_text()
    assert (stack / "keys" / "broker" / "observer" / "client.key").exists()


def test_the_environment_of_the_containers_says_where_the_broker_is(
    stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNFED_BROKER__HOST", "broker")
    settings: Configuration = load(stack / "nodes" / "node-1" / SETTINGS, {})
    assert (settings.federation, settings.broker.host) == ("fleet", "broker")
