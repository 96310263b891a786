"""Home Assistant's discovery: messages that it takes, as it says of itself, and templates that give what it expects."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from coordinator.publisher import publication
from coordinator.watch.home_assistant import Discovery, discovery, object_id
from schemas.messages import NodeFigures, NodeMetrics, NodeState
from schemas.topics import NAME_PATTERN, NodeFiguresOf, NodeMetricsOf, NodeStateOf, home_assistant_topic

FEDERATION, BOOT = "test", "b" * 32
Rendered = Callable[[str, bytes], str]
Faults = Callable[[str, Any], list[str]]


def message(federation: str = "home", node: str = "attic") -> Any:
    """A node's discovery message, as it goes out."""
    return json.loads(discovery(federation, node).model_dump_json(exclude_none=True))


def test_a_node_appears_as_a_device_with_its_figures(
    start_coordinator: Callable[..., Any],
    base_model: Path,
    node_of: Callable[..., Any],
    rendered: Rendered,
    discovery_faults: Faults,
) -> None:
    settings = 'strategy = {name = "fedbuff", buffer_size = 2}\nhome_assistant = {prefix = "alignfed", every_s = 1}'
    start_coordinator(base_model, settings)  # below this prefix the hand-played node hears it
    node = node_of(base_model)
    node.until_version(0)
    for name in ("a.b", "b"):
        node.send(name, 0, node.head, 0.1)
    node.until_version(1)
    said = NodeState(online=True, boot_id=BOOT, base_model=node.base_model, version=0)
    node.client.publish(publication(FEDERATION, NodeStateOf("a.b"), said.to_bytes()))
    measured = NodeMetrics(boot_id=BOOT, held_out_loss=1.5, held_out_version=0)
    node.client.publish(publication(FEDERATION, NodeMetricsOf("a.b"), measured.to_bytes()))
    topic = home_assistant_topic("alignfed", object_id(FEDERATION, "a.b"))
    node.until(lambda: topic in node.messages and is_measured(node.retained(NodeFiguresOf("a.b"))))
    assert node.messages[topic].retain
    assert discovery_faults(topic, json.loads(node.messages[topic].payload)) == []
    told = Discovery.model_validate_json(node.messages[topic].payload)
    report = node.retained(NodeFiguresOf("a.b"))
    assert told.state_topic == report.topic
    values = {name: rendered(component.value_template, report.payload) for name, component in told.components.items()}
    assert json.loads(values.pop("adapter")) == {"installed_version": "0", "latest_version": "1"}
    assert values["held_out_loss"] == "1.5"
    assert (values["behind"], values["contribution"], values["participation"]) == ("1", "50.0", "1")
    assert (values["problem"], values["loss"]) == ("OFF", "None")  # None is "unknown" there
    availability = told.availability[0]
    assert rendered(availability.value_template, said.to_bytes()) == "online"
    away = said.model_copy(update={"online": False, "version": None})
    assert rendered(availability.value_template, away.to_bytes()) == "offline"


def is_measured(figures: Any) -> bool:
    return figures is not None and NodeFigures.from_bytes(figures.payload).held_out_loss is not None


def test_every_entity_has_an_id_of_its_own_and_a_platform() -> None:
    devices = [message(node=node) for node in ("a.b", "a_b")]
    ids = [component["unique_id"] for device in devices for component in device["components"].values()]
    assert len(ids) == len(set(ids)) > 15
    assert {c["platform"] for device in devices for c in device["components"].values()} == {
        "sensor",
        "binary_sensor",
        "update",
    }
    assert all(device["device"]["identifiers"] and device["origin"]["name"] for device in devices)


@pytest.mark.parametrize("required", ["device", "origin", "components", "availability"])
def test_a_message_without_a_required_part_is_no_discovery(required: str) -> None:
    told = message()
    del told[required]
    with pytest.raises(ValidationError, match=required):
        Discovery.model_validate(told)


name = st.from_regex(NAME_PATTERN, fullmatch=True)


@given(federation=name, node=name, prefix=name)
def test_home_assistant_takes_the_message_of_every_node_of_every_federation(
    federation: str, node: str, prefix: str, discovery_faults: Faults
) -> None:
    topic = home_assistant_topic(prefix, object_id(federation, node))
    assert discovery_faults(topic, message(federation, node)) == []


FALSE: list[tuple[str, Callable[[Any], object], str]] = [
    ("a key of no meaning", lambda m: m.update(state_topics="x"), "state_topics"),
    ("none in the device", lambda m: m["device"].update(vendor="x"), "$.device"),
    ("none in the origin", lambda m: m["origin"].update(url="x"), "$.origin"),
    ("none in the availability", lambda m: m["availability"][0].update(template="x"), "$.availability"),
    ("none in a component", lambda m: m["components"]["loss"].update(unit="x"), "$.components.loss"),
    ("no device", lambda m: m.pop("device"), "'device' is a required property"),
    ("no origin", lambda m: m.pop("origin"), "'origin' is a required property"),
    ("no name of the origin", lambda m: m["origin"].pop("name"), "$.origin: 'name' is a required property"),
    ("no components", lambda m: m.pop("components"), "'components' is a required property"),
    ("nothing to know the device by", lambda m: m["device"].update(identifiers=[]), "$.device"),
    ("no platform", lambda m: m["components"]["loss"].pop("platform"), "'platform' is a required property"),
    ("a platform of no name", lambda m: m["components"]["loss"].update(platform="metre"), "$.components.loss.platform"),
    ("no id", lambda m: m["components"]["adapter"].pop("unique_id"), "'unique_id' is a required property"),
    ("no topic of a state", lambda m: m.pop("state_topic"), "'state_topic' is a required property"),
    ("no topic of an availability", lambda m: m["availability"][0].pop("topic"), "$.availability"),
    ("availability said twice", lambda m: m.update(availability_topic="x"), "should not be valid"),
    ("availability by another rule", lambda m: m.update(availability_mode="most"), "$.availability_mode"),
    ("a quality of service", lambda m: m.update(qos=3), "$.qos"),
    ("a class of states", lambda m: m["components"]["loss"].update(state_class="total_rising"), "loss.state_class"),
    ("a sensor to configure", lambda m: m["components"]["loss"].update(entity_category="config"), "loss.entity_cat"),
    ("digits below none", lambda m: m["components"]["loss"].update(suggested_display_precision=-1), "loss.suggested"),
    (
        "a class of problems",
        lambda m: m["components"]["problem"].update(device_class="trouble"),
        "problem.device_class",
    ),
    ("a class of updates", lambda m: m["components"]["adapter"].update(device_class="adapter"), "adapter.device_class"),
    ("an icon of no set", lambda m: m["components"]["adapter"].update(icon="brain"), "adapter.icon"),
    ("a template without an end", lambda m: m["components"]["loss"].update(value_template="{{ x"), "value_template"),
    ("a filter of no name", lambda m: m["availability"][0].update(value_template="{{ value | sum_up }}"), "sum_up"),
]


@pytest.mark.parametrize(("change", "said"), [case[1:] for case in FALSE], ids=[case[0] for case in FALSE])
def test_what_home_assistant_would_refuse_is_found_in_a_message(
    change: Callable[[Any], object], said: str, discovery_faults: Faults
) -> None:
    told = message()
    change(told)
    faults = discovery_faults("homeassistant/device/attic/config", told)
    assert any(said in fault for fault in faults), faults


def test_a_topic_below_which_home_assistant_looks_for_nothing_is_found(discovery_faults: Faults) -> None:
    assert discovery_faults("homeassistant/device/a.b/config", message()) == [
        "homeassistant/device/a.b/config is no discovery topic"
    ]


def test_the_schema_of_discovery_messages_is_one() -> None:
    path = Path(__file__).parent / "home_assistant_discovery.json"
    jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text(encoding="utf-8")))


def test_a_report_of_a_node_that_has_no_version_yet_names_only_the_latest(rendered: Rendered) -> None:
    fields = {"node": "a", "participation": 0, "contribution": 0.0, "refused": 0, "adapter": {"latest_version": "3"}}
    unknown = dict.fromkeys(("version", "behind", "loss", "staleness", "outbox", "problem"))
    told = NodeFigures.from_bytes(NodeFigures.model_validate(fields | unknown).to_bytes())
    template = discovery("home", "a").components["adapter"].value_template
    assert json.loads(rendered(template, told.to_bytes())) == {"latest_version": "3"}
