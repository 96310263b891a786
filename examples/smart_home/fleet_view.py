"""What a bystander at the broker knows of a federation: one value, folded from the messages that pass by.

Pure: no clock, no socket, no terminal. It believes topics and manifests for display only; who is right about a version
is the coordinator's journal.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from broker.events import Message
from schemas import topics
from schemas.messages import (
    CoordinatorState,
    GlobalManifest,
    GlobalPointer,
    InvalidMessage,
    NodeMetrics,
    NodeState,
    Receipt,
    UpdateManifest,
)
from schemas.reading import message_on

OBSERVED: tuple[type[topics.Address], ...] = (
    topics.CoordinatorStateOf,
    topics.GlobalHead,
    topics.GlobalRelease,
    topics.GlobalManifestOf,
    topics.NodeStateOf,
    topics.NodeMetricsOf,
    topics.UpdateManifestOf,
    topics.ReceiptFor,
)
_TAKEN = ("accepted", "aggregated")


@dataclass(frozen=True)
class NodeView:
    """One node as its messages show it; `slowdown` is how many times slower than full speed it was told to work."""

    slowdown: float
    online: bool = False
    held_version: int | None = None
    base_version: int | None = None  # of the training that runs now
    step: int = 0
    steps: int = 0
    loss: float | None = None
    sent: frozenset[str] = frozenset()
    accepted: tuple[str, ...] = ()  # update ids, oldest first


@dataclass(frozen=True)
class UpdateView:
    """One update as its manifest describes it; `seconds` is how long the node trained."""

    base_version: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class VersionView:
    """One published version, and what went into it as (node, base version) pairs."""

    version: int
    digest: str
    inputs: tuple[tuple[str, int], ...]
    created_at_ns: int


@dataclass(frozen=True)
class Refusal:
    """An update that was not taken, and the coordinator's reason."""

    node: str
    status: str
    reason: str


@dataclass(frozen=True)
class FleetView:
    """Everything the display shows. Nodes that it was not told of are counted, not shown: their number has no bound."""

    federation: str
    final_version: int
    nodes: Mapping[str, NodeView]
    versions: tuple[VersionView, ...] = ()
    served: Mapping[int, str] = field(default_factory=dict)  # head or average, by version that nodes serve or served
    judged: int | None = None  # the last version on which it was decided whether nodes serve it
    head: int | None = None
    head_epoch: int = 0
    epoch: int | None = None
    coordinator_online: bool = False
    refused: int = 0
    last_refusal: Refusal | None = None
    strangers: int = 0
    malformed: int = 0
    updates: Mapping[str, UpdateView] = field(default_factory=dict)  # by update id

    @property
    def is_final(self) -> bool:
        """Whether the head has reached the last version asked for, and it is decided whether nodes serve that."""
        reached = (self.head, self.judged)
        return all(version is not None and version >= self.final_version for version in reached)

    def staleness(self, node: str) -> int | None:
        """How many versions the head is ahead of what this node trains from; None while it does not train."""
        base_version = self.nodes[node].base_version
        return None if base_version is None or self.head is None else max(0, self.head - base_version)


def first_view(federation: str, final_version: int, slowdowns: Mapping[str, float]) -> FleetView:
    """The view before any message: the nodes that will come, none of them seen yet."""
    return FleetView(federation, final_version, MappingProxyType({n: NodeView(s) for n, s in slowdowns.items()}))


def observe(view: FleetView, message: Message) -> FleetView:
    """The view after one message. Anything that is not a message of this federation only raises a count."""
    address = topics.parse(view.federation, message.topic)
    if address is None:
        return replace(view, malformed=view.malformed + 1)
    if not message.payload:  # a retained message that was cleared
        return view
    node = getattr(address, "node", None)
    if node is not None and node not in view.nodes and not isinstance(address, topics.ReceiptFor):
        return replace(view, strangers=view.strangers + 1)
    try:
        fold = _FOLDS.get(type(address))
        return view if fold is None else fold(view, address, message_on(address, message.payload))
    except InvalidMessage:
        return replace(view, malformed=view.malformed + 1)


def _coordinator_state(view: FleetView, _: topics.CoordinatorStateOf, state: CoordinatorState) -> FleetView:
    return replace(view, coordinator_online=state.online, epoch=state.epoch)


def _head(view: FleetView, _: topics.GlobalHead, pointer: GlobalPointer) -> FleetView:
    if pointer.version > view.final_version:
        raise InvalidMessage(f"version {pointer.version} is beyond the last one, {view.final_version}")
    if view.head is not None and (pointer.epoch, pointer.version) < (view.head_epoch, view.head):
        return view
    return replace(view, head=pointer.version, head_epoch=pointer.epoch)


def _release(view: FleetView, _: topics.GlobalRelease, pointer: GlobalPointer) -> FleetView:
    if max(pointer.version, pointer.judged or 0) > view.final_version:
        raise InvalidMessage(f"version {pointer.version} is beyond the last one, {view.final_version}")
    return replace(view, served={**view.served, pointer.version: pointer.variant}, judged=pointer.judged)


def _manifest(view: FleetView, address: topics.GlobalManifestOf, manifest: GlobalManifest) -> FleetView:
    if manifest.version != address.version:
        raise InvalidMessage(f"manifest of version {manifest.version} on the topic of {address.version}")
    inputs = tuple((entry.node, entry.base_version) for entry in manifest.inputs)
    version = VersionView(manifest.version, manifest.digest, inputs, manifest.created_at_ns)
    others = (v for v in view.versions if v.version != version.version)
    return replace(view, versions=tuple(sorted((*others, version), key=lambda v: v.version)))


def _node_state(view: FleetView, address: topics.NodeStateOf, state: NodeState) -> FleetView:
    if not state.online:
        return _with_node(view, address.node, online=False, base_version=None)
    return _with_node(view, address.node, online=True, held_version=state.version)


def _metrics(view: FleetView, address: topics.NodeMetricsOf, metrics: NodeMetrics) -> FleetView:
    loss = view.nodes[address.node].loss if metrics.loss is None else metrics.loss
    progress = {"base_version": metrics.base_version, "step": metrics.step, "steps": metrics.steps}
    return _with_node(view, address.node, loss=loss, **progress)


def _update(view: FleetView, address: topics.UpdateManifestOf, manifest: UpdateManifest) -> FleetView:
    view = _with_node(view, address.node, sent=view.nodes[address.node].sent | {address.update_id})
    update = UpdateView(manifest.base_version, manifest.loss, manifest.seconds)
    return replace(view, updates={**view.updates, address.update_id: update})


def _receipt(view: FleetView, address: topics.ReceiptFor, receipt: Receipt) -> FleetView:
    node = view.nodes.get(address.node)
    if receipt.status in _TAKEN and node is not None and receipt.update_id not in node.accepted:
        return _with_node(view, address.node, accepted=(*node.accepted, receipt.update_id))
    if receipt.status in ("stale", "rejected"):
        refusal = Refusal(address.node, receipt.status, receipt.reason or "no reason given")
        return replace(view, refused=view.refused + 1, last_refusal=refusal)
    return view


_FOLDS: Mapping[type[topics.Address], Callable[[FleetView, Any, Any], FleetView]] = {
    topics.CoordinatorStateOf: _coordinator_state,
    topics.GlobalHead: _head,
    topics.GlobalRelease: _release,
    topics.GlobalManifestOf: _manifest,
    topics.NodeStateOf: _node_state,
    topics.NodeMetricsOf: _metrics,
    topics.UpdateManifestOf: _update,
    topics.ReceiptFor: _receipt,
}


def _with_node(view: FleetView, node: str, **changes: Any) -> FleetView:
    changed = replace(view.nodes[node], **changes)
    return replace(view, nodes=MappingProxyType({**view.nodes, node: changed}))
