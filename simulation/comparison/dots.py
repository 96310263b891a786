"""Figures of medians with intervals: times to the targets, harm, what modules are worth, what a version costs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from simulation.comparison.colors import color_of
from simulation.comparison.drawing import BLUE, INK, ORANGE, RED, SOFT, TEAL, WIDTH, Drawing, Row, dot_rows, doublings
from simulation.comparison.presets import ABLATIONS
from simulation.comparison.statistics import Interval
from simulation.comparison.summary import MethodSummary, TimeTo
from simulation.comparison.verdicts import effect
from simulation.comparison.wording import number

Methods = Mapping[str, MethodSummary]
STAGES = {"aggregate": SOFT, "anchor": TEAL, "align": ORANGE, "gate": BLUE}
CHEAP = 0.2  # jobs per version: less is not worth a row


def times(regime: str, methods: Methods) -> Drawing:
    """When each method reached the targets, the fastest first."""
    targets = list(next(iter(methods.values())).time_to)
    names = sorted(methods, key=lambda name: [methods[name].time_to[target].median for target in reversed(targets)])
    reached = [time for method in methods.values() for to in method.time_to.values() for time in to.seeds.values()]
    reached = [time for time in reached if 0 < time < math.inf] or [1.0]

    def draw(figure: Figure) -> None:
        for axes, target in zip(np.atleast_1d(figure.subplots(1, len(targets), sharey=True)), targets, strict=True):
            axes.set_xscale("log")
            axes.set_xlim(min(reached) / 1.15, max(reached) * 1.1)
            axes.xaxis.set_major_locator(FixedLocator(doublings(*axes.get_xlim())))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            dot_rows(axes, [_time_row(name, methods[name].time_to[target]) for name in names], max(reached))
            axes.set_title(f"loss {target}")
            axes.set_xlabel("simulated time")

    caption = (
        "Simulated time until the served loss was first at or below a target: median, interval, every seed as a ring."
    )
    return Drawing("times", f"{caption} Regime {regime}.", WIDTH, 1.3 + 0.3 * len(names), draw)


def _time_row(method: str, time: TimeTo) -> Row:
    measured = Interval(median=time.median, low=time.low, high=time.high, values=time.seeds)
    if time.reached == len(time.seeds):
        return Row(method, measured, color_of(method), number(time.median, "time"))
    return Row(method, measured, color_of(method), f"{time.reached} of {len(time.seeds)}")


def harm(regime: str, methods: Methods) -> Drawing:
    """Which share of releases made the held-out loss more than 1 % worse."""
    names = sorted(methods, key=lambda name: methods[name].harmful.median)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        rows = [
            Row(name, methods[name].harmful, color_of(name), number(methods[name].harmful.median, "share"))
            for name in names
        ]
        dot_rows(axes, rows, 1.0)
        axes.axvline(0.02, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.set_xlim(-0.005, None)

    caption = "Harmful releases: the share that raised the held-out loss by more than 1 %. Dotted: 2 %."
    return Drawing("harm", f"{caption} Regime {regime}.", WIDTH * 0.72, 1.1 + 0.3 * len(names), draw)


@dataclass(frozen=True)
class Effect:
    """One thing that a module may change, and which way is good."""

    title: str
    unit: str
    of: Callable[[MethodSummary], Interval]
    lower_is_better: bool = True

    def color(self, measured: Interval) -> str:
        """Of a change: for better, for worse, or not told apart from none."""
        if measured.low <= 0 <= measured.high:
            return SOFT
        return TEAL if (measured.median < 0) == self.lower_is_better else RED


EFFECTS = (
    Effect("loss at equal time", "difference", lambda summary: summary.loss_at_equal_time),
    Effect("worst quarter", "difference", lambda summary: summary.worst_quarter),
    Effect("harmful, points", "points", lambda summary: summary.harmful),
    Effect("slow weight, points", "points", lambda summary: summary.slow_share, lower_is_better=False),
)


def ablations(regime: str, methods: Methods) -> Drawing:
    """What each module changes: with it less without it, paired by seed."""
    tried = [ablation for ablation in ABLATIONS if effect(methods, ablation)]

    def draw(figure: Figure) -> None:
        for axes, shown in zip(figure.subplots(1, len(EFFECTS), sharey=True), EFFECTS, strict=True):
            rows = []
            for ablation in tried:
                measured = effect(methods, ablation, shown.of)
                assert measured is not None
                label = f"{ablation.module}\n{'on' if ablation.is_default else 'off'} by default"
                rows.append(Row(label, measured, shown.color(measured), number(measured.median, shown.unit)))
            dot_rows(axes, rows, math.inf)
            axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
            axes.set_title(shown.title)
            axes.xaxis.set_major_locator(MaxNLocator(3))
            if shown.unit == "points":
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}"))

    caption = (
        "Each module: with it less without it, paired by seed. Green helps and red harms, with an interval that leaves "
        "zero out; grey is neither."
    )
    return Drawing("ablations", f"{caption} Regime {regime}.", WIDTH, 1.2 + 0.5 * len(tried), draw)


def cost(regime: str, methods: Methods) -> Drawing:
    """What a version costs the coordinator, by stage, in jobs of a node; one row for all that cost next to nothing."""
    names = sorted(methods, key=lambda name: -methods[name].server_in_jobs.median)
    dear = [name for name in names if methods[name].server_in_jobs.median >= CHEAP] or names[:1]
    rows = {name: methods[name] for name in dear}
    if others := names[len(dear) :]:
        rows["any other"] = methods[others[0]]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, summary in enumerate(rows.values()):
            _stacked(axes, place, summary)
        axes.axvline(4, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
        axes.set_yticks(range(len(rows)), rows, color=INK)
        axes.set_ylim(len(rows) - 0.4, -1.3)
        for (stage, color), x in zip(STAGES.items(), (0.0, 0.145, 0.25, 0.325), strict=True):
            axes.annotate(stage, (x, 1), xycoords="axes fraction", color=color, va="top")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("server time per version, in jobs of a node")
        axes.set_xlim(0, None)

    caption = "CPU time of the coordinator and its base model per version, by stage. Dotted: four jobs."
    return Drawing("cost", f"{caption} Regime {regime}.", WIDTH * 0.8, 1.5 + 0.3 * len(rows), draw)


def _stacked(axes: Axes, place: int, summary: MethodSummary) -> None:
    """The stages of one method one after the other, and their sum."""
    total, begun = summary.server_seconds.median, 0.0
    job = total / summary.server_in_jobs.median if summary.server_in_jobs.median else math.inf
    for stage, color in STAGES.items():
        width = summary.server_seconds.stages[stage].median / job
        axes.barh(place, width, left=begun, height=0.62, color=color)
        begun += width
    axes.annotate(number(begun, "jobs"), (begun, place), (7, 0), textcoords="offset points", va="center", color=INK)
