"""Any message of any federation in words: what kind it is, whom it concerns, and what it says. Pure, and never raises.

A signature is passed over, not verified: that takes the federation's keys.

A manifest is read from its topic and its bytes alone, so what is said of a body is its size and hash: what its numbers
mean is known only with the adapter layout.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

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


def read(topic: str, payload: bytes) -> Reading:
    """Read any message, whatever its bytes."""
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
    payload = unsigned(payload) if address.spec.signer else payload
    text, body = split_body(payload)
    try:
        message = MODELS[type(address)].from_bytes(text if isinstance(address, UpdateManifestOf) else payload)
    except InvalidMessage as error:
        return summary(payload), str(error)
    content: dict[str, Any] = json.loads(message.model_dump_json())
    if isinstance(message, UpdateManifest) and isinstance(address, UpdateManifestOf):
        content |= {"inline_body": summary(body)} if body else {}
        return content, _fault(address, message, text, body)
    return content, None


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
