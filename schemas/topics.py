"""Every MQTT topic: built here, parsed here, with its QoS, retain flag and expiry. Nothing else spells a topic.

An address says what a topic means (`UpdateChunk(node, update_id, index)`); `route` turns it into the topic string and
the flags to publish with, `parse` turns a received topic back into an address or, for anything else, None.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

ROOT = "alignfed/v1"
DAY_S = 24 * 3600
MAX_ANSWER_TOPIC = 256

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$", description="letters, digits, '_', '.', '-'; at most 64")]

_FIELD_PATTERNS = {
    "federation": NAME_PATTERN,
    "node": NAME_PATTERN,
    "device": NAME_PATTERN,
    "update_id": r"[0-9a-f]{32}",
    "version": r"0|[1-9][0-9]{0,8}",
    "index": r"0|[1-9][0-9]{0,4}",
}


class Route(NamedTuple):
    """Where and how to publish; the field names are those of a publication."""

    topic: str
    qos: int
    retain: bool
    expiry_s: int | None


class TopicSpec(NamedTuple):
    """One row of the topic table. `signer` is whose signature a federation with keys asks for."""

    pattern: str
    sender: str
    content: str
    qos: int = 1
    retain: bool = False
    expiry_s: int | None = None
    signer: Literal["root", "coordinator", "node"] | None = None


@dataclass(frozen=True)
class GlobalKeys:
    """Which key the coordinator signs with, by the word of the federation's root."""

    spec: ClassVar = TopicSpec("global/keys", "coordinator", "KeyCertificate", retain=True, signer="root")


@dataclass(frozen=True)
class GlobalHead:
    """The retained pointer to the version that nodes train from."""

    spec: ClassVar = TopicSpec("global/head", "coordinator", "GlobalPointer", retain=True, signer="coordinator")


@dataclass(frozen=True)
class GlobalRelease:
    """The retained pointer to the version that nodes serve."""

    spec: ClassVar = TopicSpec("global/release", "coordinator", "GlobalPointer", retain=True, signer="coordinator")


@dataclass(frozen=True)
class GlobalManifestOf:
    """The immutable manifest of one global version."""

    version: int
    spec: ClassVar = TopicSpec(
        "global/v/{version}/manifest", "coordinator", "GlobalManifest", retain=True, signer="coordinator"
    )


@dataclass(frozen=True)
class GlobalChunk:
    """One chunk of a global version's body."""

    version: int
    index: int
    spec: ClassVar = TopicSpec("global/v/{version}/chunk/{index}", "coordinator", "bytes of the body", retain=True)


@dataclass(frozen=True)
class GlobalAverageChunk:
    """One chunk of the running average that a version is served as, where that is not its head."""

    version: int
    index: int
    spec: ClassVar = TopicSpec(
        "global/v/{version}/average/chunk/{index}", "coordinator", "bytes of the body", retain=True
    )


@dataclass(frozen=True)
class UpdateManifestOf:
    """The manifest of a node's update, with the body behind it when it fits into one packet."""

    node: str
    update_id: str
    spec: ClassVar = TopicSpec(
        "update/{node}/{update_id}/manifest", "node", "UpdateManifest", expiry_s=DAY_S, signer="node"
    )


@dataclass(frozen=True)
class UpdateChunk:
    """One chunk of a node's update."""

    node: str
    update_id: str
    index: int
    spec: ClassVar = TopicSpec("update/{node}/{update_id}/chunk/{index}", "node", "bytes of the body", expiry_s=DAY_S)


@dataclass(frozen=True)
class ReceiptFor:
    """The coordinator's answers to one node."""

    node: str
    spec: ClassVar = TopicSpec("receipt/{node}", "coordinator", "Receipt", expiry_s=DAY_S, signer="coordinator")


@dataclass(frozen=True)
class NodeStateOf:
    """A node's birth and, as its will, its death."""

    node: str
    spec: ClassVar = TopicSpec("node/{node}/state", "node", "NodeState", retain=True, signer="node")


@dataclass(frozen=True)
class NodeMetricsOf:
    """A node's counters and training progress; lost ones don't matter."""

    node: str
    spec: ClassVar = TopicSpec("node/{node}/metrics", "node", "NodeMetrics", qos=0, expiry_s=60)


@dataclass(frozen=True)
class NodeFiguresOf:
    """What the coordinator has counted of a node, where its operator wants that published."""

    node: str
    spec: ClassVar = TopicSpec("figures/{node}", "coordinator", "NodeFigures", retain=True)


@dataclass(frozen=True)
class CoordinatorStateOf:
    """The coordinator's birth, with the terms of the federation, and its will."""

    spec: ClassVar = TopicSpec(
        "coordinator/state", "coordinator", "CoordinatorState", retain=True, signer="coordinator"
    )


@dataclass(frozen=True)
class InferenceRequestTo:
    """What devices ask a node that serves; the answers go to the request's response topic."""

    node: str
    spec: ClassVar = TopicSpec("infer/{node}", "device", "InferenceRequest", expiry_s=60)


@dataclass(frozen=True)
class InferenceAnswerFor:
    """A node's answers to one device, for devices that have no topic of their own."""

    node: str
    device: str
    spec: ClassVar = TopicSpec("answer/{node}/{device}", "node", "InferenceAnswer", expiry_s=60)


Address = (
    GlobalKeys
    | GlobalHead
    | GlobalRelease
    | GlobalManifestOf
    | GlobalChunk
    | GlobalAverageChunk
    | UpdateManifestOf
    | UpdateChunk
    | ReceiptFor
    | NodeStateOf
    | NodeMetricsOf
    | NodeFiguresOf
    | CoordinatorStateOf
    | InferenceRequestTo
    | InferenceAnswerFor
)
ADDRESSES: tuple[type[Address], ...] = (
    GlobalKeys,
    GlobalHead,
    GlobalRelease,
    GlobalManifestOf,
    GlobalChunk,
    GlobalAverageChunk,
    UpdateManifestOf,
    UpdateChunk,
    ReceiptFor,
    NodeStateOf,
    NodeMetricsOf,
    NodeFiguresOf,
    CoordinatorStateOf,
    InferenceRequestTo,
    InferenceAnswerFor,
)


def route(federation: str, address: Address) -> Route:
    """The topic string of `address` and the flags to publish it with; a malformed field raises ValueError."""
    spec = address.spec
    values = _checked({"federation": federation} | {f.name: getattr(address, f.name) for f in fields(address)})
    topic = f"{ROOT}/{federation}/{spec.pattern.format(**values)}"
    return Route(topic, spec.qos, spec.retain, spec.expiry_s)


def topic_filter(federation: str, kind: type[Address], **fixed: str | int) -> str:
    """The subscription filter for `kind`, with '+' for every field that is not in `fixed`.

    A field that is malformed or not of this kind raises ValueError.
    """
    names = [f.name for f in fields(kind)]
    if unknown := fixed.keys() - names:
        raise ValueError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}; it has {', '.join(names)}")
    given = _checked({"federation": federation, **fixed})
    return f"{ROOT}/{federation}/{kind.spec.pattern.format(**(dict.fromkeys(names, '+') | given))}"


def decision_name(federation: str, version: int) -> str:
    """What a decision on a version is signed for. No topic: it lies beside the adapters and is never published."""
    return f"{ROOT}/{_checked({'federation': federation})['federation']}/decision/{version}"


def home_assistant_topic(prefix: str, object_id: str) -> str:
    """Where Home Assistant looks for a device's discovery message; ValueError for an id that it would not take."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", object_id) or not re.fullmatch(NAME_PATTERN, prefix):
        raise ValueError(f"{prefix!r} and {object_id!r} make no discovery topic")
    return f"{prefix}/device/{object_id}/config"


def home_assistant_filter(prefix: str) -> str:
    """The filter for every discovery message of a device; ValueError for a prefix that is no level of a topic."""
    return home_assistant_topic(prefix, "any").replace("/any/", "/+/")


def parse(federation: str, topic: str) -> Address | None:
    """What `topic` means in this federation; None for any other topic. Every field of the answer is well-formed."""
    if len(topic) > 512:
        return None
    for kind, pattern in _patterns(federation):
        if found := pattern.fullmatch(topic):
            return kind(**{name: _typed(name, text) for name, text in found.groupdict().items()})
    return None


def may_answer_on(federation: str, node: str, topic: str) -> bool:
    """Whether a node may answer a stranger's request on this topic.

    A node publishes with its own rights, and whoever asks it must not borrow them: below our root it answers on its own
    answer topics only, and never on a broker's own topics. What lies outside is the broker's to allow.
    """
    if topic.partition("/")[0] == ROOT.partition("/")[0]:
        address = parse(federation, topic)
        return isinstance(address, InferenceAnswerFor) and address.node == node
    return 0 < len(topic) <= MAX_ANSWER_TOPIC and topic.isprintable() and not re.search(r"^\$|[+#]", topic)


def _checked(values: Mapping[str, str | int]) -> dict[str, str]:
    """The fields of a topic as text, each well-formed; ValueError names the first that is not."""
    texts = {name: str(value) for name, value in values.items()}
    for name, text in texts.items():
        if not re.fullmatch(_FIELD_PATTERNS[name], text):
            raise ValueError(f"{text!r} is not a valid {name} for a topic")
    return texts


@cache
def _patterns(federation: str) -> tuple[tuple[type[Address], re.Pattern[str]], ...]:
    return tuple((kind, _pattern(federation, kind)) for kind in ADDRESSES)


def _pattern(federation: str, kind: type[Address]) -> re.Pattern[str]:
    groups = {f.name: f"(?P<{f.name}>{_FIELD_PATTERNS[f.name]})" for f in fields(kind)}
    return re.compile(re.escape(f"{ROOT}/{federation}/") + kind.spec.pattern.format(**groups))


def _typed(name: str, text: str) -> Any:
    return int(text) if name in ("version", "index") else text
