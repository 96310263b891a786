"""Every node as a device in Home Assistant, by its MQTT discovery: one retained message for each node says what it has.

The models below are what Home Assistant's documentation asks of such a message, as far as it is used here; the tests
hold what comes out against all that it says of them. Pure: `teller.py` publishes it. The figures themselves are
NodeFigures on a topic of our own.
"""

import hashlib
import re
from collections.abc import Iterator
from importlib.metadata import version as version_of
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from broker.events import Publication
from coordinator.publisher import publication
from coordinator.watch.status import USES, NodeStatus, Status
from schemas.messages import MAX_SENTENCE, NodeFigures
from schemas.topics import CoordinatorStateOf, NodeFiguresOf, NodeStateOf, home_assistant_topic, route

Text = Annotated[str, Field(min_length=1, max_length=255)]
Topic = Annotated[str, Field(pattern=r"^[^+#\x00]+$", max_length=65535)]
Template = Annotated[str, Field(pattern=r"^\{\{.*\}\}$")]
ObjectId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]

# a federation with keys has a line with the signature before the message
ONLINE = r"{{ 'online' if (value.split('\n') | last | from_json).online else 'offline' }}"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Availability(_Model):
    """A topic that says whether the figures can be trusted; the template must give `online` or `offline`."""

    topic: Topic
    value_template: Template


class Device(_Model):
    """What the entities belong to; one identifier at least."""

    identifiers: tuple[Text, ...] = Field(min_length=1)
    name: Text
    manufacturer: Text
    model: Text
    sw_version: Text


class Origin(_Model):
    """Who sends the message; its name is required."""

    name: Text
    sw_version: Text


class Sensor(_Model):
    """One figure."""

    platform: Literal["sensor"] = "sensor"
    unique_id: Text
    name: Text
    value_template: Template
    icon: Annotated[str, Field(pattern=r"^mdi:[a-z0-9-]+$")]
    unit_of_measurement: Text | None = None
    state_class: Literal["measurement", "total_increasing"] | None = None
    suggested_display_precision: Annotated[int, Field(ge=0)] | None = None
    entity_category: Literal["diagnostic"] | None = None


class Problem(_Model):
    """On when a person should look."""

    platform: Literal["binary_sensor"] = "binary_sensor"
    unique_id: Text
    name: Text
    device_class: Literal["problem"] = "problem"
    value_template: Template
    payload_on: Literal["ON"] = "ON"
    payload_off: Literal["OFF"] = "OFF"
    json_attributes_topic: Topic
    json_attributes_template: Template


class Update(_Model):
    """The adapter's version there, and the newest; nodes install by themselves, so there is no command."""

    platform: Literal["update"] = "update"
    unique_id: Text
    name: Text
    title: Text
    value_template: Template = Field(description="gives JSON of installed_version and latest_version")
    icon: Annotated[str, Field(pattern=r"^mdi:[a-z0-9-]+$")] = "mdi:brain"


Component = Annotated[Sensor | Problem | Update, Field(discriminator="platform")]


class Discovery(_Model):
    """A device and all it has; `device`, `origin` and `components` are required, every component has its platform."""

    device: Device
    origin: Origin
    components: dict[ObjectId, Component] = Field(min_length=1)
    state_topic: Topic
    availability: tuple[Availability, ...] = Field(min_length=1)
    availability_mode: Literal["all", "any", "latest"] = "all"
    qos: Literal[0, 1, 2] = 1


def publications(status: Status, prefix: str) -> Iterator[Publication]:
    """For every node that has said what it is: its discovery message, then its figures; all retained."""
    for node in status.nodes:
        if node.liveness != "unknown":
            topic = home_assistant_topic(prefix, object_id(status.federation, node.node))
            said = discovery(status.federation, node.node).model_dump_json(exclude_none=True)
            yield Publication(topic, said.encode(), retain=True)
            yield publication(status.federation, NodeFiguresOf(node.node), report(status, node).to_bytes())


def object_id(federation: str, node: str) -> str:
    """A name of the characters that Home Assistant takes; different nodes have different ones."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", f"alignfed_{federation}_{node}")
    digest = hashlib.sha256(f"{federation}/{node}".encode()).hexdigest()[:8]
    return f"{plain}_{digest}"


def discovery(federation: str, node: str) -> Discovery:
    """What Home Assistant is told of one node."""
    id_, ours = object_id(federation, node), version_of("alignfed")
    report_topic = route(federation, NodeFiguresOf(node)).topic
    present = [
        Availability(topic=route(federation, address).topic, value_template=ONLINE)
        for address in (NodeStateOf(node), CoordinatorStateOf())
    ]
    return Discovery(
        device=Device(
            identifiers=(id_,),
            name=f"{node} ({federation})",
            manufacturer="alignfed",
            model="edge node",
            sw_version=ours,
        ),
        origin=Origin(name="alignfed", sw_version=ours),
        components={name: component for name, component in _components(id_, report_topic)},
        state_topic=report_topic,
        availability=tuple(present),
    )


def _components(id_: str, report_topic: str) -> Iterator[tuple[str, Component]]:
    measured: dict[str, object] = {"state_class": "measurement"}
    diagnostic: dict[str, object] = {"entity_category": "diagnostic"}
    sensors: dict[str, tuple[str, str, dict[str, object]]] = {
        "version": ("Version held", "mdi:tag", {}),
        "behind": ("Versions behind", "mdi:tag-off", measured),
        "loss": ("Training loss", "mdi:chart-line", measured | {"suggested_display_precision": 3}),
        "held_out_loss": ("Held-out loss", "mdi:scale-balance", measured | {"suggested_display_precision": 3}),
        "contribution": ("Contribution", "mdi:chart-pie", measured | {"unit_of_measurement": "%"}),
        "staleness": ("Staleness", "mdi:timer-sand", measured | {"suggested_display_precision": 1}),
        "participation": ("Updates accepted", "mdi:check", {"state_class": "total_increasing"}),
        "refused": ("Updates refused", "mdi:close", {"state_class": "total_increasing"} | diagnostic),
        "outbox": ("Outbox", "mdi:tray-full", measured | diagnostic),
    }
    for field, (name, icon, more) in sensors.items():
        value = "(100 * value_json.contribution) | round(1)" if field == "contribution" else f"value_json.{field}"
        template = f"{{{{ {value} }}}}"
        settings = {"unique_id": f"{id_}_{field}", "name": name, "icon": icon, "value_template": template, **more}
        yield field, Sensor.model_validate(settings)
    yield (
        "problem",
        Problem(
            unique_id=f"{id_}_problem",
            name="Problem",
            value_template="{{ 'ON' if value_json.problem else 'OFF' }}",
            json_attributes_topic=report_topic,
            json_attributes_template="{{ {'reason': value_json.problem} | to_json }}",
        ),
    )
    adapter = "{{ value_json.adapter | to_json }}"
    yield "adapter", Update(unique_id=f"{id_}_adapter", name="Adapter", title="LoRA adapter", value_template=adapter)


def report(status: Status, node: NodeStatus) -> NodeFigures:
    """The node's figures as they are published."""
    installed, latest = node.serving, status.release.version
    if installed is None:  # a node that only trains
        installed, latest = node.version, status.head
    problems = [alarm.text for alarm in status.alarms if alarm.node == node.node]
    adapter = {"latest_version": str(latest)} | ({} if installed is None else {"installed_version": str(installed)})
    return NodeFigures.model_validate(
        {
            "node": node.node,
            "version": node.version,
            "behind": node.behind,
            "loss": node.loss,
            "held_out_loss": next((told.loss for use in USES if (told := node.held_out.get(use))), None),
            "participation": node.participation,
            "contribution": node.weight_share,
            "staleness": node.staleness,
            "refused": sum(node.refusals.values()),
            "outbox": node.outbox,
            "problem": "; ".join(problems)[:MAX_SENTENCE] or None,
            "adapter": adapter,
        }
    )
