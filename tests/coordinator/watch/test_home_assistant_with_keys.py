"""Home Assistant in a federation with keys: it hears of nodes by its own certificate, and reads what is signed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.bundle import read_bundle
from broker.client import Client
from broker.embedded import EmbeddedBroker, find_mosquitto
from broker.events import Message
from broker.federation_keys import enrol, init, let_in_home_assistant
from coordinator.publisher import publication
from coordinator.watch.home_assistant import Discovery, discovery, object_id
from schemas.messages import NodeState
from schemas.signing import is_signed
from schemas.topics import CoordinatorStateOf, NodeFiguresOf, NodeStateOf, home_assistant_topic, parse, route

FEDERATION, BOOT = "test", "b" * 32
SETTINGS = """
home_assistant = {{prefix = "homeassistant", every_s = 1}}
[security]
keys = "{keys}/coordinator"
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The keys of a federation with the node a, which Home Assistant is told of."""
    folder = tmp_path_factory.mktemp("keys") / "keys"
    init(folder, FEDERATION, ("127.0.0.1",), days=100)
    enrol(folder, "a", days=100)
    let_in_home_assistant(folder, "homeassistant", days=100)
    return folder


@pytest.fixture
def broker(keys: Path) -> Iterator[EmbeddedBroker]:
    if find_mosquitto() is None:
        pytest.skip("MOSQUITTO IS NOT INSTALLED")
    with EmbeddedBroker("mosquitto", keys=keys) as running:
        yield running


def client_of(bundle: Path, broker: EmbeddedBroker, *filters: str) -> Client:
    settings = read_bundle(bundle).reaches(broker.settings.model_copy(update={"ca_file": None}))
    return Client(settings, f"hand-{bundle.name}", subscriptions=filters, clean_start=True)


@pytest.mark.mosquitto
def test_home_assistant_hears_of_a_node_by_its_own_certificate_and_knows_that_it_is_there(
    start_coordinator: Callable[..., Any],
    node_of: Callable[..., Any],
    base_model: Path,
    broker: EmbeddedBroker,
    keys: Path,
    rendered: Callable[[str, bytes], str],
    discovery_faults: Callable[[str, Any], list[str]],
) -> None:
    start_coordinator(base_model, SETTINGS.format(keys=keys))
    home = node_of(base_model)  # it remembers every message
    with (
        client_of(keys / "nodes" / "a", broker) as node,
        client_of(keys / "home-assistant", broker, "homeassistant/#", "alignfed/#") as home.client,
    ):
        said = NodeState(online=True, boot_id=BOOT, base_model=home.base_model, version=0)
        birth = publication(FEDERATION, NodeStateOf("a"), said.to_bytes())
        node.publish(read_bundle(keys / "nodes" / "a").signed(birth))
        topic = home_assistant_topic("homeassistant", object_id(FEDERATION, "a"))
        shown = [
            route(FEDERATION, address).topic for address in (NodeStateOf("a"), CoordinatorStateOf(), NodeFiguresOf("a"))
        ]
        home.until(lambda: {topic, *shown} <= home.messages.keys())
    told = Discovery.model_validate_json(home.messages[topic].payload)
    assert discovery_faults(topic, json.loads(home.messages[topic].payload)) == []
    assert {told.state_topic, *(one.topic for one in told.availability)} == set(shown)
    assert home.messages.keys() == {topic, *shown}  # of all that is said it hears what it is told of
    for one in told.availability:
        message: Message = home.messages[one.topic]
        assert is_signed(message.payload) and rendered(one.value_template, message.payload) == "online"


@pytest.mark.mosquitto
def test_without_access_rules_for_it_the_coordinator_says_that_home_assistant_is_not_told(
    start_coordinator: Callable[..., Any],
    node_of: Callable[..., Any],
    base_model: Path,
    broker: EmbeddedBroker,
    keys: Path,
) -> None:
    running = start_coordinator(base_model, SETTINGS.format(keys=keys).replace("homeassistant", "elsewhere"))
    node = node_of(base_model)
    said = NodeState(online=True, boot_id=BOOT, base_model=node.base_model, version=0)
    with client_of(keys / "nodes" / "a", broker, "alignfed/#") as node.client:
        birth = publication(FEDERATION, NodeStateOf("a"), said.to_bytes())
        node.client.publish(read_bundle(keys / "nodes" / "a").signed(birth))
        refused = home_assistant_topic("elsewhere", object_id(FEDERATION, "a"))
        node.until(lambda: refused in running.log.read_text())
    assert "`alignfed keys home-assistant` makes the access rules" in running.log.read_text()


def test_only_templates_that_look_behind_a_signature_are_for_topics_that_are_signed() -> None:
    told = discovery("home", "attic")
    assert {parse("home", one.topic) for one in told.availability} == {NodeStateOf("attic"), CoordinatorStateOf()}
    assert not any("value_json" in one.value_template for one in told.availability)
    others = {
        told.state_topic,
        *(getattr(c, "json_attributes_topic", told.state_topic) for c in told.components.values()),
    }
    assert others == {route("home", NodeFiguresOf("attic")).topic} and NodeFiguresOf.spec.signer is None
