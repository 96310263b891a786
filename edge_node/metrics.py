"""A node's figures as Prometheus reads them: what it learns, sends, serves and answers.

Others put in what happened; the state of the core is shown as it is when somebody asks. It decides nothing.
"""

import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from edge_node.learning import reason_to_wait
from edge_node.state import EdgeState, HeldOutLoss

CONTENT_TYPE = CONTENT_TYPE_LATEST
SWAP_BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
ANSWER_BUCKETS_S = (0.1, 0.3, 1, 3, 10, 30, 100)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series beside each counter that nobody asks for


class Metrics:
    """The figures of one node's process; every method may be called from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._node = _OfNode()
        self._registry.register(self._node)
        self.swap_seconds = Histogram(
            "alignfed_edge_swap_seconds",
            "From a verified adapter to its first answer being possible.",
            registry=self._registry,
            buckets=SWAP_BUCKETS_S,
        )
        self.first_token_seconds = Histogram(
            "alignfed_edge_first_token_seconds",
            "From a question to the first piece of its answer.",
            registry=self._registry,
            buckets=ANSWER_BUCKETS_S,
        )
        self.answer_seconds = Histogram(
            "alignfed_edge_answer_seconds",
            "From a question to the end of its answer.",
            registry=self._registry,
            buckets=ANSWER_BUCKETS_S,
        )
        self.tokens = Counter(
            "alignfed_edge_tokens", "Tokens read in prompts and written in answers.", ["kind"], registry=self._registry
        )
        self.answers = Counter(
            "alignfed_edge_answers", "Questions by how they ended.", ["outcome"], registry=self._registry
        )

    def show(self, state: EdgeState) -> None:
        """Take note of what the node knows now."""
        self._node.show(state, time.monotonic())

    def page(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)


class _OfNode(Collector):
    """The core's state, and since when each update has waited in the outbox, as far as this process has seen it."""

    def __init__(self) -> None:
        self._state: EdgeState | None = None
        self._waits_since: dict[str, float] = {}

    def show(self, state: EdgeState, now: float) -> None:
        self._state = state
        self._waits_since = {u.update_id: self._waits_since.get(u.update_id, now) for u in state.outbox}

    def collect(self) -> Iterator[Metric]:
        if (state := self._state) is None:
            return
        training, waiting, now = state.training, self._waits_since, time.monotonic()
        oldest_s = now - min(waiting.values()) if waiting else 0.0
        gauges: dict[str, tuple[str, float | None]] = {
            "connected": ("1 with a connection to the broker.", int(state.connected)),
            "head_version": ("Version that the node holds.", state.held.pointer.version if state.held else None),
            "serving_version": ("Version that it serves.", state.served.version if state.served else None),
            "outbox_updates": ("Updates that wait for their receipt.", len(state.outbox)),
            "outbox_bytes": ("Their size.", sum(update.size for update in state.outbox)),
            "outbox_oldest_seconds": ("How long the oldest of them has waited.", oldest_s),
            "training": ("1 while it trains.", int(training is not None)),
            "training_step": ("Step of the training under way.", training.step if training else None),
            "training_loss": ("Loss of the last training step.", state.last_loss),
            "training_failures": ("Trainings in a row that came to nothing.", state.failures),
        }
        for name, (text, value) in gauges.items():
            if value is not None:
                yield GaugeMetricFamily(f"alignfed_edge_{name}", text, value=value)
        yield from _held_out({"served": state.served_held_out, "head": state.held_out})
        settings = state.identity.settings
        facts = {"rank": str(settings.rank or ""), "codec": settings.codec, "limits": settings.policy.in_words or ""}
        yield _labelled("info", "What its owner wants of it.", facts)
        idle = reason_to_wait(state, now)
        yield _labelled("idle", "1 for the reason why it does not train now.", {"reason": idle} if idle else {})
        counters = {
            "updates_sent": ("Updates sent for the first time.", state.updates_sent),
            "updates_accepted": ("Updates accepted.", state.updates_accepted),
            "updates_refused": ("Updates refused.", state.updates_rejected),
            "messages_ignored": ("Messages that made no sense.", state.ignored),
        }
        for name, (text, count) in counters.items():
            yield CounterMetricFamily(f"alignfed_edge_{name}", text, value=count)


def _held_out(losses: Mapping[str, HeldOutLoss | None]) -> Iterator[Metric]:
    """Losses on held-out examples, by what the version is used for, and which version it was."""
    loss = GaugeMetricFamily("alignfed_edge_held_out_loss", "Loss on this node's held-out examples.", labels=["of"])
    version = GaugeMetricFamily("alignfed_edge_held_out_version", "Version that has this loss.", labels=["of"])
    for use, measured in losses.items():
        if measured is not None:
            loss.add_metric([use], measured.loss)
            version.add_metric([use], measured.version)
    yield loss
    yield version


def _labelled(name: str, text: str, labels: Mapping[str, str]) -> Metric:
    """A gauge that is 1 for what its labels say; one that says nothing has no samples."""
    family = GaugeMetricFamily(f"alignfed_edge_{name}", text, labels=list(labels))
    if labels:
        family.add_metric(list(labels.values()), 1)
    return family
