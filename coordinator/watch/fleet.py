"""Who is there: what nodes say of themselves on the broker, kept beside the state and never journalled.

No decision depends on it, so a lost or a false word costs nothing but a wrong line on a page. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from schemas.messages import InvalidMessage, NodeMetrics, NodeState
from schemas.reading import message_on
from schemas.topics import Address, NodeMetricsOf, NodeStateOf

Word = NodeStateOf | NodeMetricsOf


@dataclass(frozen=True)
class NodeHeard:
    """The last that one node said, and when; its state may be the broker's word for it, its will."""

    at_ns: int
    state: NodeState | None = None
    metrics: NodeMetrics | None = None


Fleet = Mapping[str, NodeHeard]


def is_of_nodes(address: Address | None) -> bool:
    """Whether a topic is one on which nodes speak of themselves."""
    return isinstance(address, Word)


def hear(fleet: Fleet, address: Address | None, payload: bytes, at_ns: int, most_nodes: int) -> Fleet:
    """The fleet after one message; what cannot be read, or is of one node too many, changes nothing."""
    if not isinstance(address, Word) or (address.node not in fleet and len(fleet) >= most_nodes):
        return fleet
    if isinstance(address, NodeStateOf) and not payload:  # somebody has deleted what was retained
        return {node: heard for node, heard in fleet.items() if node != address.node}
    known = fleet.get(address.node, NodeHeard(at_ns))
    try:
        match message_on(address, payload):
            case NodeState() as state:
                said = _state(known, state)
            case NodeMetrics() as metrics:
                said = replace(known, metrics=metrics)
    except InvalidMessage:
        return fleet
    return fleet if said is known else {**fleet, address.node: replace(said, at_ns=at_ns)}


def _state(known: NodeHeard, state: NodeState) -> NodeHeard:
    """A birth counts always, a will only for the birth that it belongs to: it may come after the node is back."""
    is_of_an_older_life = known.state is not None and known.state.boot_id != state.boot_id
    if not state.online and is_of_an_older_life:
        return known
    metrics = known.metrics if known.metrics and known.metrics.boot_id == state.boot_id else None
    return replace(known, state=state, metrics=metrics)
