"""Home Assistant's discovery: messages that its documentation allows, and templates that give what it expects."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
from pydantic import ValidationError

from coordinator.publisher import publication
from coordinator.watch.home_assistant import Discovery, discovery, object_id
from schemas.messages import NodeFigures, NodeMetrics, NodeState
from schemas.topics import NodeFiguresOf, NodeMetricsOf, NodeStateOf, home_assistant_topic

FEDERATION, BOOT = "test", "b" * 32


def rendered(template: str, payload: bytes) -> str:
    """A template as Home Assistant renders it for an MQTT payload."""
    environment = jinja2.Environment(autoescape=False)
    environment.filters |= {"to_json": json.dumps, "from_json": json.loads}
    return environment.from_string(template).render(value=payload.decode(), value_json=json.loads(payload))


def test_a_node_appears_as_a_device_with_its_figures(
    start_coordinator: Callable[..., Any], base_model: Path, node_of: Callable[..., Any]
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
    devices = [json.loads(discovery("home", node).model_dump_json(exclude_none=True)) for node in ("a.b", "a_b")]
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
    told = json.loads(discovery("home", "attic").model_dump_json(exclude_none=True))
    del told[required]
    with pytest.raises(ValidationError, match=required):
        Discovery.model_validate(told)


def test_a_report_of_a_node_that_has_no_version_yet_names_only_the_latest() -> None:
    fields = {"node": "a", "participation": 0, "contribution": 0.0, "refused": 0, "adapter": {"latest_version": "3"}}
    unknown = dict.fromkeys(("version", "behind", "loss", "staleness", "outbox", "problem"))
    told = NodeFigures.from_bytes(NodeFigures.model_validate(fields | unknown).to_bytes())
    template = discovery("home", "a").components["adapter"].value_template
    assert json.loads(rendered(template, told.to_bytes())) == {"latest_version": "3"}
