"""How long runs will still take: from how long like runs took, and until there are any, from estimates."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple


class Like(NamedTuple):
    """Runs of one regime and method take about as long as each other."""

    regime: str
    method: str


class Expected(NamedTuple):
    """A run that is not done: what it was estimated at, in seconds, and which share of it is left."""

    like: Like
    estimate: float
    left: float = 1.0


@dataclass
class Forecast:
    """Learns from every finished run."""

    seconds: dict[Like, list[float]] = field(default_factory=dict)
    ratios: list[float] = field(default_factory=list)  # of measured to estimated

    def learn(self, like: Like, estimate: float, seconds: float) -> None:
        """A run took so long."""
        self.seconds.setdefault(like, []).append(seconds)
        self.ratios.append(seconds / estimate)

    def of(self, like: Like, estimate: float) -> float:
        """Seconds that a run of this kind should take."""
        if known := self.seconds.get(like):
            return fmean(known)
        return estimate * (fmean(self.ratios) if self.ratios else 1.0)

    def left(self, runs: Iterable[Expected], workers: int) -> float:
        """Seconds until all are done: the work shared out evenly, but no run is faster than by itself."""
        each = [self.of(run.like, run.estimate) * run.left for run in runs]
        return max(sum(each) / workers, max(each)) if each else 0.0
