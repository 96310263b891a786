"""What is kept of a run while it goes on, and the figures made of it at its end."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean

from schemas.adapter import Adapter
from simulation.federation import Released, Version
from simulation.result import ByStage, NodeShare, Point, Staleness
from simulation.schedule import Presence

HARM = 1.01  # a release is harmful that makes the loss so many times larger


@dataclass
class Record:
    """Listens to a federation; after every `every`-th decision what nodes serve, that and the head are measured."""

    measure: Callable[[Adapter], float]  # held-out loss, nats per answer token
    every: int
    points: list[Point] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)  # by node, of all versions
    stale: Counter[int] = field(default_factory=Counter)  # updates by staleness
    releases: Counter[str] = field(default_factory=Counter)
    server_time: list[Mapping[str, float]] = field(default_factory=list)  # of each version but the first
    server_seconds: list[Mapping[str, float]] = field(default_factory=list)
    decisions: int = 0
    newest: Version | None = None
    released: Released | None = None
    measured: Released | None = None  # the decision of the last point

    def hear(self, news: Version | Released) -> None:
        """Take note of a version, or of a decision."""
        if isinstance(news, Version):
            self._hear_version(news)
        else:
            self._hear_release(news)

    def _hear_version(self, version: Version) -> None:
        manifest = version.manifest
        for given in manifest.inputs:
            self.weights[given.node] = self.weights.get(given.node, 0.0) + abs(given.weight)
            self.stale[manifest.version - 1 - given.base_version] += 1
        if manifest.version > 0:
            self.server_time.append(version.server_time)
            self.server_seconds.append(version.server_seconds)
        self.newest = version

    def _hear_release(self, released: Released) -> None:
        if released.report.judged > 0:
            self.releases[released.report.variant if released.report.is_taken else "before"] += 1
        self.released = released
        if self.decisions % self.every == 0:
            self.measure_newest()
        self.decisions += 1

    @property
    def served(self) -> Adapter:
        """What nodes serve."""
        assert self.released is not None
        return self.released.served

    def measure_newest(self) -> None:
        """Add the point of the newest decision, unless it is there."""
        assert self.newest is not None and self.released is not None
        version, released = self.newest, self.released
        if self.measured is released:
            return
        self.measured = released
        self.points.append(
            Point(
                time=released.time,
                updates=released.updates,
                bytes=released.sent,
                fetched=released.fetched,
                version=version.manifest.version,
                loss=self.measure(released.served),
                head_loss=self.measure(version.head),
            )
        )


def harmful(points: Sequence[Point], factor: float) -> float:
    """The share of measured releases whose loss is more than `factor` times that of the one before."""
    pairs = list(pairwise(points))
    return sum(after.loss > factor * before.loss for before, after in pairs) / len(pairs) if pairs else 0.0


def shares(
    uploads: Mapping[str, int], weights: Mapping[str, float], presences: Mapping[str, Presence]
) -> dict[str, NodeShare]:
    """Every node's part in updates and in weight."""
    sent, weight = sum(uploads.values()), sum(weights.values())
    return {
        node: NodeShare(
            uploads=uploads.get(node, 0) / sent if sent else 0.0,
            weight=weights.get(node, 0.0) / weight if weight else 0.0,
            speed=presence.speed,
        )
        for node, presence in presences.items()
    }


def staleness(counts: Mapping[int, int]) -> Staleness:
    """The figures of a histogram of staleness."""
    values = sorted(Counter(counts).elements())
    if not values:
        return Staleness(mean=None, p90=None, max=None, histogram=())
    return Staleness(
        mean=fmean(values),
        p90=values[int(0.9 * (len(values) - 1))],
        max=values[-1],
        histogram=tuple(counts.get(value, 0) for value in range(values[-1] + 1)),
    )


def by_stage(costs: Sequence[Mapping[str, float]]) -> ByStage:
    """Means over the versions: not every one pays for an anchor and a judgement."""
    stages = {stage: [cost.get(stage, 0.0) for cost in costs] for stage in ByStage.model_fields}
    return ByStage(**{stage: fmean(values) if values else 0.0 for stage, values in stages.items()})
