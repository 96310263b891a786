"""Any message of any federation, by its topic: a value (`message_on`) or, whatever its bytes, words (`read`). Pure.

A signature is passed over, not verified: that takes the federation's keys. So this is for who only looks.

A manifest is read from its topic and its bytes alone, so what is said of a body is its size and hash: what its numbers
mean is known only with the adapter layout.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, overload

from schemas.chunks import CorruptChunk, verify
from schemas.messages import (
    CoordinatorState,
    GlobalManifest,
    GlobalPointer,
    InferenceAnswer,
    InferenceRequest,
    InvalidMessage,
    KeyCertificate,
    Message,
    NodeFigures,
    NodeMetrics,
    NodeState,
    Receipt,
    UpdateManifest,
    split_body,
    update_id,
)
from schemas.signing import unsigned
from schemas.topics import (
    ROOT,
    Address,
    CoordinatorStateOf,
    GlobalAverageChunk,
    GlobalChunk,
    GlobalHead,
    GlobalKeys,
    GlobalManifestOf,
    GlobalRelease,
    InferenceAnswerFor,
    InferenceRequestTo,
    NodeFiguresOf,
    NodeMetricsOf,
    NodeStateOf,
    ReceiptFor,
    UpdateChunk,
    UpdateManifestOf,
    parse,
)

MODELS: dict[type[Address], type[Message]] = {
    GlobalKeys: KeyCertificate,
    GlobalHead: GlobalPointer,
    GlobalRelease: GlobalPointer,
    GlobalManifestOf: GlobalManifest,
    UpdateManifestOf: UpdateManifest,
    ReceiptFor: Receipt,
    NodeStateOf: NodeState,
    NodeMetricsOf: NodeMetrics,
    NodeFiguresOf: NodeFigures,
    CoordinatorStateOf: CoordinatorState,
    InferenceRequestTo: InferenceRequest,
    InferenceAnswerFor: InferenceAnswer,
}
OTHER = "other"  # the kind of what is on no topic of ours


@dataclass(frozen=True)
class Reading:
    """What a message is and says. `version` is the global version it is about or starts from."""

    kind: str
    federation: str | None = None
    node: str | None = None
    version: int | None = None
    update_id: str | None = None
    content: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None  # what is wrong with it, for one that is not what its topic says


def kind_of(address: type[Address]) -> str:
    """The kind of messages on such topics: the topic's words without its fields, such as `update/manifest`."""
    return re.sub(r"/\{\w+\}|/v(?=/)", "", address.spec.pattern)


def address_of(topic: str) -> tuple[str, Address] | None:
    """The federation that a topic belongs to and what it means there; None for any other topic."""
    if not topic.startswith(ROOT + "/"):
        return None
    federation = topic.removeprefix(ROOT + "/").partition("/")[0]
    address = parse(federation, topic)
    return None if address is None else (federation, address)


@overload
def message_on(address: GlobalHead | GlobalRelease, payload: bytes) -> GlobalPointer: ...
@overload
def message_on(address: GlobalManifestOf, payload: bytes) -> GlobalManifest: ...
@overload
def message_on(address: UpdateManifestOf, payload: bytes) -> UpdateManifest: ...
@overload
def message_on(address: ReceiptFor, payload: bytes) -> Receipt: ...
@overload
def message_on(address: NodeStateOf, payload: bytes) -> NodeState: ...
@overload
def message_on(address: NodeMetricsOf, payload: bytes) -> NodeMetrics: ...
@overload
def message_on(address: CoordinatorStateOf, payload: bytes) -> CoordinatorState: ...
@overload
def message_on(address: Address, payload: bytes) -> Message: ...


def message_on(address: Address, payload: bytes) -> Message:
    """The message of a topic that has one, signed or not, without the body behind it; InvalidMessage for any other."""
    message = _plain(address, payload)
    text = split_body(message)[0] if isinstance(address, UpdateManifestOf) else message
    return MODELS[type(address)].from_bytes(text)


def read(topic: str, payload: bytes) -> Reading:
    """Read any message, whatever its bytes; it never raises."""
    if (found := address_of(topic)) is None:
        return Reading(OTHER, content=summary(payload))
    federation, address = found
    fields = vars(address)
    content, fault = _content(address, payload)
    return Reading(
        kind=kind_of(type(address)),
        federation=federation,
        node=fields.get("node"),
        version=fields.get("version", content.get("version", content.get("base_version"))),
        update_id=fields.get("update_id", content.get("update_id")),
        content=content,
        fault=fault,
    )


def summary(payload: bytes) -> dict[str, Any]:
    """What is to be said of bytes: their number and hash."""
    return {"size": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}


def _content(address: Address, payload: bytes) -> tuple[dict[str, Any], str | None]:
    if isinstance(address, GlobalChunk | GlobalAverageChunk | UpdateChunk):
        return {"index": address.index, **summary(payload)}, None
    if not payload and address.spec.retain:
        return {"deleted": True}, None
    try:
        message = message_on(address, payload)
    except InvalidMessage as error:
        return summary(_plain(address, payload)), str(error)
    content: dict[str, Any] = json.loads(message.model_dump_json())
    if isinstance(message, UpdateManifest) and isinstance(address, UpdateManifestOf):
        text, body = split_body(_plain(address, payload))
        content |= {"inline_body": summary(body)} if body else {}
        return content, _fault(address, message, text, body)
    return content, None


def _plain(address: Address, payload: bytes) -> bytes:
    return unsigned(payload) if address.spec.signer else payload


def _fault(address: UpdateManifestOf, manifest: UpdateManifest, text: bytes, body: bytes) -> str | None:
    if update_id(text) != address.update_id:
        return "the manifest is not the one that the topic names: its hash is another"
    if manifest.node != address.node:
        return f"the manifest says it is from {manifest.node}"
    if manifest.body.chunks:
        return None
    try:
        verify(body, manifest.body)
    except CorruptChunk as error:
        return str(error)
    return None
