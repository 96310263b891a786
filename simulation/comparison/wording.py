"""Figures in words, the same on the page, in the document and in the terminal. They are rounded here and only here."""

import math

from simulation.comparison.statistics import Interval, range_coverage
from simulation.comparison.summary import TimeTo

SMALL = 5  # seeds: up to here the bootstrap gives the range
TERMS = (
    "Equal time is when the first run of a seed ended: until then every method has a loss. A time to a target is that "
    "of the first measured release at or below it; not reached counts as infinite. Harmful is a release that raised "
    "the held-out loss by more than 1 %. The slow quarter are the slowest nodes: their share of all weights, and of "
    "all uploads. Server is the coordinator's CPU time per version, in jobs of a node."
)
NEVER = "not reached"
NOTHING = "-"
MET = {True: "met", False: "not met", None: ""}


def duration(seconds: float) -> str:
    """Seconds for people: two units at most."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def number(value: float, unit: str) -> str:
    """One figure in its unit; a share and points of it are in percent."""
    if math.isinf(value):
        return {"times": "never", "time": NEVER}.get(unit, "infinite")
    match unit:
        case "times":
            return f"{value:.2f}x" if value < 10 else f"{value:.1f}x"
        case "share":
            return f"{100 * value:.1f} %"
        case "points":
            return f"{100 * value:+.1f}"
        case "difference":
            return f"{value:+.3f}"
        case "nats":
            return f"{value:.3f}"
        case "time":
            return f"{value:.1f}"
        case "bytes":
            return f"{value / 1e6:.2f} MB"
        case "seconds":
            return f"{value:.2f} s" if value < 10 else duration(value)
        case "jobs" | "number":
            return f"{value:.2f}"
    return f"{value:g}"


def span(low: float, high: float, unit: str) -> str:
    """The two ends of an interval, `36.7 to 46.7 %`."""
    first, last = number(low, unit), number(high, unit)
    for ending in (" %", " MB", "x"):
        if first.endswith(ending) and last.endswith(ending):
            first = first.removesuffix(ending)
    return f"{first} to {last}"


def with_range(measured: Interval | TimeTo | None, unit: str) -> str:
    """A median and its interval, `0.66 [0.63, 0.70]`; a dash where there is none."""
    if measured is None:
        return NOTHING
    middle = number(measured.median, unit)
    if measured.low == measured.high:
        return middle
    return f"{middle} [{number(measured.low, unit)}, {number(measured.high, unit)}]"


def meaning_of_intervals(seeds: int) -> str:
    """What an interval over so many seeds is, and is not."""
    if seeds == 1:
        return "There is one seed only: nothing here says how much another one would differ."
    covered = 100 * range_coverage(seeds)
    text = (
        "Intervals are 95 % percentile bootstrap intervals of the median over seeds; differences and ratios are paired "
        "by seed first. A bar is met by the median unless it speaks of the interval. "
    )
    if seeds > SMALL:
        return text
    return text + (
        f"Of {seeds} seeds such an interval is simply the range from the least to the greatest: it holds the true "
        f"median with a chance of {covered:.0f} %, and says nothing of the task and the model that all seeds share."
    )
