"""What a handful of seeds can say: medians, bootstrap intervals, and differences paired by seed.

Infinity stands for a target that was never reached; medians and intervals carry it along. It knows numbers alone.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

LEVEL = 0.95
RESAMPLES = 10_000

# JSON has no infinity
Number = Annotated[
    float,
    BeforeValidator(lambda value: math.inf if value is None else value),
    PlainSerializer(lambda value: value if math.isfinite(value) else None, when_used="json"),
]


class Interval(BaseModel):
    """A median over seeds, the interval that a bootstrap gives it, and the value of every seed.

    In JSON null is infinity: a time to a target that was not reached, or a loss that diverged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    median: Number
    low: Number
    high: Number
    values: dict[int, Number]


def interval(values: Mapping[int, float], **more: Any) -> Interval:
    """The median of one value per seed with its 95 % percentile bootstrap interval. Raises ValueError without seeds.

    With five seeds or fewer the interval is the range of the values; `range_coverage` says what that is worth.
    """
    if not values:
        raise ValueError("there is no interval without at least one seed")
    ordered = {seed: float(values[seed]) for seed in sorted(values)}
    drawn = np.array(list(ordered.values()), dtype=np.float64)
    low, high = _bootstrap(drawn)
    return Interval(median=_median(drawn), low=low, high=high, values=ordered)


def paired(
    ours: Mapping[int, float], theirs: Mapping[int, float], combine: Callable[[float, float], float]
) -> Interval | None:
    """The interval of combine(ours, theirs) over the seeds that both have; None when there is no such seed.

    A seed of which nothing can be said (infinity against infinity) is left out.
    """
    both = {seed: combine(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())}
    said = {seed: value for seed, value in both.items() if not math.isnan(value)}
    return interval(said) if said else None


def difference(ours: float, theirs: float) -> float:
    """ours - theirs; nan for infinity against infinity."""
    return math.nan if math.isinf(ours) and math.isinf(theirs) else ours - theirs


def times_less(ours: float, theirs: float) -> float:
    """How many times less ours is than theirs: infinite when only ours was reached, 0 when only theirs was."""
    if math.isinf(ours):
        return math.nan if math.isinf(theirs) else 0.0
    return theirs / ours if ours > 0 else (math.nan if theirs == 0 else math.inf)


def range_coverage(seeds: int) -> float:
    """The chance that the range of so many independent draws holds the true median: 1 - 2^(1 - n)."""
    if seeds < 1:
        raise ValueError(f"there is no range of {seeds} draws")
    return 1 - 2.0 ** (1 - seeds)


def _bootstrap(values: NDArray[np.float64]) -> tuple[float, float]:
    """The percentiles of the medians of resampled values; always values that a median can take."""
    if len(values) == 1:
        return float(values[0]), float(values[0])
    generator = np.random.default_rng(0)
    medians = np.median(values[generator.integers(0, len(values), (RESAMPLES, len(values)))], axis=1)
    tail = (1 - LEVEL) / 2
    low = np.percentile(medians, 100 * tail, method="lower")
    high = np.percentile(medians, 100 * (1 - tail), method="higher")
    return float(low), float(high)


def _median(values: NDArray[np.float64]) -> float:
    return float(np.median(values))
