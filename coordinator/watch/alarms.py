"""When a person should look: what is wrong with a federation, by its status alone. Pure."""

from collections.abc import Iterator
from itertools import pairwise
from statistics import median

from coordinator.watch.status import Alarm, NodeStatus, Status

STARVED_AFTER = 20  # versions since a node's first update, before its share can be called too small
STARVED_SHARE = 0.1  # of the equal share
REFUSING = 5  # measured decisions in a row that turned a version down
REFUSED = 3  # updates of one node in a row
OUTBOX = 4  # updates that wait for a receipt: as many as a node has under way at once
STALLED_INTERVALS = 10  # usual times between versions
STALLED_LEAST_S = 600.0
SECOND_NS = 1_000_000_000


def with_alarms(status: Status) -> Status:
    """The status with its alarms, those of the whole federation first."""
    found = (*_of_federation(status), *(alarm for node in status.nodes for alarm in _of_node(status, node)))
    return status.model_copy(update={"alarms": found})


def _of_federation(status: Status) -> Iterator[Alarm]:
    if status.process is not None and not status.process.connected:
        yield Alarm(kind="broker_away", text="the coordinator has no connection to the broker: its log says why")
    if is_stalled(status):
        minutes = (status.at_ns - status.head_at_ns) / SECOND_NS / 60
        text = (
            f"version {status.head} is {minutes:.0f} minutes old and updates are expected: are nodes refused or away?"
        )
        yield Alarm(kind="version_stalled", text=text)
    if (row := refusals_of_gate(status)) >= REFUSING:
        text = f"the gate has turned down the last {row} versions: nodes still serve version {status.release.version}"
        yield Alarm(kind="gate_refusing", text=text)


def _of_node(status: Status, node: NodeStatus) -> Iterator[Alarm]:
    name = node.node
    if node.liveness == "offline" and node.participation:
        yield Alarm(kind="node_offline", node=name, text=f"{name} has lost its connection to the broker")
    if node.idle == "rank_not_taken" and node.liveness == "online":
        text = (
            f"{name} does not train: rank {node.rank} is not taken; set its edge.rank, or add to coordinator.node_ranks"
        )
        yield Alarm(kind="rank_not_taken", node=name, text=text)
    if is_starved(status, node):
        text = f"{name} has {node.weight_share:.1%} of the weight in recent versions: is it slow, stale or refused?"
        yield Alarm(kind="node_starved", node=name, text=text)
    if node.refused_in_a_row >= REFUSED:
        reason = node.last_update.reason if node.last_update and node.last_update.reason else "see its refusals"
        text = f"the last {node.refused_in_a_row} updates of {name} were refused: {reason}"
        yield Alarm(kind="node_refused", node=name, text=text)
    if node.outbox is not None and node.outbox >= OUTBOX:
        text = f"{node.outbox} updates of {name} wait for their receipt: is the coordinator too slow, or away?"
        yield Alarm(kind="outbox_growing", node=name, text=text)


def is_starved(status: Status, node: NodeStatus) -> bool:
    """Whether a node that takes part has far less than its share of the recent versions."""
    taking_part = [other for other in status.nodes if other.participation]
    if node.first_version is None or status.head - node.first_version < STARVED_AFTER or status.finished:
        return False
    return node.weight_share < STARVED_SHARE / len(taking_part)


def is_stalled(status: Status) -> bool:
    """Whether the next version is long overdue, while there are nodes to make it."""
    if status.finished or not any(node.liveness == "online" for node in status.nodes):
        return False
    return status.at_ns - status.head_at_ns > stalled_after_ns(status)


def stalled_after_ns(status: Status) -> int:
    """The age at which the head is overdue."""
    times = [version.created_at_ns for version in status.versions[1:]]  # the first has only been founded
    usual_ns = median(b - a for a, b in pairwise(times)) if len(times) > 1 else 0
    return max(int(STALLED_INTERVALS * usual_ns), int(STALLED_LEAST_S * SECOND_NS))


def refusals_of_gate(status: Status) -> int:
    """Measured decisions since the last one that took a version."""
    measured = [version.verdict for version in status.versions if version.verdict in ("served", "turned_down")]
    return next((count for count, verdict in enumerate(reversed(measured)) if verdict == "served"), len(measured))
