"""A status as Prometheus reads it. Names, units and types follow Prometheus' conventions; nothing is counted here.

Series exist for what there is now: a node that is forgotten takes its series along.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from coordinator.watch.alarms import stalled_after_ns
from coordinator.watch.status import NodeStatus, Status, VersionStatus

CONTENT_TYPE = CONTENT_TYPE_LATEST
STALENESS_BUCKETS = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89)
GROUP_BUCKETS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89)
NS = 1e9


def metrics_page(status: Status) -> bytes:
    """The status in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_OfStatus(status))
    return generate_latest(registry)


class _OfStatus(Collector):
    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        yield from _of_versions(self._status)
        yield from _of_updates(self._status)
        yield from _of_process(self._status)
        yield from _of_nodes(self._status.nodes)
        alarms = [(alarm.kind, alarm.node or "") for alarm in self._status.alarms]
        yield _gauge("alignfed_alarm", "1 for each alarm that is on.", ["kind", "node"], dict.fromkeys(alarms, 1))


def _of_versions(status: Status) -> Iterator[Metric]:
    newest = status.versions[-1]
    info = {(status.federation, status.strategy, status.base_model): 1}
    yield _gauge("alignfed_info", "What this federation is.", ["federation", "strategy", "base_model"], info)
    yield _gauge("alignfed_epoch", "Rises with every start of the coordinator.", [], {(): status.epoch})
    yield _gauge("alignfed_head_version", "Version that nodes train from.", [], {(): status.head})
    yield _gauge("alignfed_release_version", "Version that nodes serve.", [], {(): status.release.version})
    yield _gauge("alignfed_head_timestamp_seconds", "When the head was made.", [], {(): status.head_at_ns / NS})
    stalled = {(): stalled_after_ns(status) / NS}
    yield _gauge("alignfed_stalled_after_seconds", "Age at which the head is overdue.", [], stalled)
    yield _gauge("alignfed_finished", "1 when the last version is published.", [], {(): int(status.finished)})
    losses = {(moment,): loss for moment, loss in _losses(newest, status).items() if loss is not None}
    text = "Loss on the coordinator's calibration set, nats per answer token."
    yield _gauge("alignfed_calibration_loss", text, ["moment"], losses)
    if newest.node_loss is not None:
        text = "Mean training loss of the nodes in the head."
        yield _gauge("alignfed_head_training_loss", text, [], {(): newest.node_loss})
    decided = {(decision,): count for decision, count in status.gate.items()}
    yield _counter("alignfed_gate_decisions", "Versions that the gate has judged.", ["decision"], decided)
    seconds = {(stage,): spent for stage, spent in status.model_seconds.items()}
    yield _counter("alignfed_model_seconds", "Processor time of the base model, by stage.", ["stage"], seconds)


def _losses(newest: VersionStatus, status: Status) -> Mapping[str, float | None]:
    """The newest that was measured of each kind."""
    judged = next((version for version in reversed(status.versions) if version.gate_after is not None), newest)
    anchored = next((version for version in reversed(status.versions) if version.anchor_after is not None), newest)
    return {
        "gate_before": judged.gate_before,
        "gate_after": judged.gate_after,
        "anchor_before": anchored.anchor_before,
        "anchor_after": anchored.anchor_after,
    }


def _of_updates(status: Status) -> Iterator[Metric]:
    text = "Staleness of the updates that went into versions, in versions."
    yield _histogram("alignfed_update_staleness_versions", text, STALENESS_BUCKETS, status.staleness)
    text = "Updates of one base version in one version."
    yield _histogram("alignfed_group_updates", text, GROUP_BUCKETS, status.group_sizes)
    waiting = {(str(group.staleness),): group.updates for group in status.waiting}
    yield _gauge("alignfed_waiting_updates", "Updates that wait for the next version.", ["staleness"], waiting)
    text = "Updates of the version that is being made."
    yield _gauge("alignfed_updates_in_the_making", text, [], {(): status.in_the_making})
    text = "Memory held of updates of which parts are missing."
    yield _gauge("alignfed_incomplete_bytes", text, [], {(): status.incomplete_bytes})
    refusals = {(cause,): count for cause, count in status.refusals.items()}
    yield _counter("alignfed_updates_refused", "Updates that were refused.", ["reason"], refusals)
    dropped = {(reason,): count for reason, count in status.dropped.items()}
    yield _counter("alignfed_messages_dropped", "Messages that got no answer.", ["reason"], dropped)


def _of_process(status: Status) -> Iterator[Metric]:
    if (process := status.process) is None:
        return
    yield _gauge("alignfed_start_timestamp_seconds", "When the process began.", [], {(): process.started_at_ns / NS})
    yield _gauge("alignfed_broker_connected", "1 with a connection to the broker.", [], {(): int(process.connected)})
    text = "Payloads from and to the broker."
    moved = {("in",): process.bytes_in, ("out",): process.bytes_out}
    yield _counter("alignfed_mqtt_bytes", text, ["direction"], moved)
    moved = {("in",): process.messages_in, ("out",): process.messages_out}
    yield _counter("alignfed_mqtt_messages", "Messages from and to the broker.", ["direction"], moved)
    depths = {("publications",): process.publications_waiting, ("questions",): process.questions_waiting}
    yield _gauge("alignfed_queue_depth", "What waits for the broker and for the base model.", ["queue"], depths)
    yield _gauge("alignfed_journal_bytes", "Size of the journal.", [], {(): process.journal_bytes})


def _of_nodes(nodes: tuple[NodeStatus, ...]) -> Iterator[Metric]:
    gauges: dict[str, tuple[str, Mapping[str, float | None]]] = {
        "up": ("1 for a node that is online.", {n.node: int(n.liveness == "online") for n in nodes}),
        "version": ("Version that the node holds.", {n.node: n.version for n in nodes}),
        "serving_version": ("Version that the node serves.", {n.node: n.serving for n in nodes}),
        "versions_behind": ("Versions between the head and the node's.", {n.node: n.behind for n in nodes}),
        "loss": ("Loss of the node's last training step.", {n.node: n.loss for n in nodes}),
        "outbox_updates": ("Updates that wait at the node for a receipt.", {n.node: n.outbox for n in nodes}),
        "weight_share": ("Share of the weight in the newest versions.", {n.node: n.weight_share for n in nodes}),
        "contribution_share": (
            "Share of the updates in the newest versions.",
            {n.node: n.contribution_share for n in nodes},
        ),
        "staleness_versions": ("Mean staleness of those.", {n.node: n.staleness for n in nodes}),
        "waiting_updates": ("Accepted updates in no version yet.", {n.node: n.waiting for n in nodes}),
        "last_update_timestamp_seconds": (
            "When the node's newest update was whole.",
            {n.node: n.last_update.at_ns / NS if n.last_update else None for n in nodes},
        ),
    }
    for name, (text, values) in gauges.items():
        known = {(node,): value for node, value in values.items() if value is not None}
        yield _gauge(f"alignfed_node_{name}", text, ["node"], known)
    held_out = {(n.node, use): told for n in nodes for use, told in n.held_out.items()}
    text = "Loss on the node's own held-out examples, of what it serves and of the head that it trained from."
    losses = {about: told.loss for about, told in held_out.items()}
    yield _gauge("alignfed_node_held_out_loss", text, ["node", "of"], losses)
    text = "Version that has this loss."
    yield _gauge(
        "alignfed_node_held_out_version", text, ["node", "of"], {about: t.version for about, t in held_out.items()}
    )
    participation = {(n.node,): n.participation for n in nodes}
    yield _counter("alignfed_node_participation", "Accepted updates of the node.", ["node"], participation)
    refusals = {(n.node, cause): count for n in nodes for cause, count in n.refusals.items()}
    yield _counter("alignfed_node_refusals", "Refused updates of the node.", ["node", "reason"], refusals)


Values = Mapping[Any, float]  # by label values: a tuple of strings, as many as there are labels


def _gauge(name: str, text: str, labels: Iterable[str], values: Values) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    for label_values, value in values.items():
        family.add_metric(list(label_values), value)
    return family


def _counter(name: str, text: str, labels: Iterable[str], values: Values) -> Metric:
    """A counter; the library appends `_total` to the name of its samples."""
    family = CounterMetricFamily(name, text, labels=list(labels))
    for label_values, value in values.items():
        family.add_metric(list(label_values), value)
    return family


def _histogram(name: str, text: str, bounds: tuple[int, ...], counts: Mapping[int, int]) -> Metric:
    """A histogram of whole numbers, each counted."""
    family = HistogramMetricFamily(name, text)
    buckets = [(f"{bound:.1f}", float(sum(c for value, c in counts.items() if value <= bound))) for bound in bounds]
    total = float(sum(counts.values()))
    family.add_metric([], [*buckets, ("+Inf", total)], sum_value=float(sum(v * c for v, c in counts.items())))
    return family
