"""Learning curves: held-out loss of what nodes serve, over simulated time and over updates."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from simulation.comparison.colors import color_of
from simulation.comparison.drawing import SOFT, WIDTH, Drawing, doublings, spread
from simulation.comparison.wording import number
from simulation.result import Point, RunResult

TICKS = (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 6, 7, 8, 10, 15)
LABEL_GAP = 0.075  # of the height of a panel

X = Callable[[Point], float]
Runs = Mapping[str, Sequence[RunResult]]  # by method


def curves(regime: str, runs: Runs, targets: Sequence[float]) -> Drawing:
    """Held-out loss of what is served, over simulated time and over updates."""

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        _curves(left, runs, lambda point: point.time)
        _curves(right, runs, lambda point: float(point.updates))
        left.set_xlabel("simulated time, in jobs of the fastest node")
        right.set_xlabel("updates")
        for axes in (left, right):
            for target in targets:
                axes.axhline(target, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
        left.set_ylabel("held-out loss, nats per token")
        _label_ends(right, runs)

    caption = (
        "Held-out loss of what nodes serve: medians, and every seed thin. Both scales are logarithmic: equal distances "
        "are equal ratios. Dotted: the targets."
    )
    return Drawing(f"curves-{regime}", caption, WIDTH, 3.7, draw)


def _curves(axes: Axes, runs: Runs, x: X) -> None:
    """Medians over the seeds as steps, every seed thin."""
    for method, its in reversed(list(runs.items())):
        for run in its:
            axes.step(
                [x(p) for p in run.points], [p.loss for p in run.points], where="post",
                color=color_of(method), linewidth=0.7, alpha=0.35, zorder=2,
            )  # fmt: skip
        at, losses = _median_curve(its, x)
        axes.step(at, losses, where="post", color=color_of(method), linewidth=2.2, zorder=3)
    places = [x(point) for its in runs.values() for run in its for point in run.points if x(point) > 0]
    first, last = min(places, default=1.0), max(places, default=1.0)
    axes.set_xscale("log")
    axes.set_xlim(first, max(last, 2 * first))
    axes.xaxis.set_major_locator(FixedLocator(doublings(first, last)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="y")


def _median_curve(runs: Sequence[RunResult], x: X) -> tuple[list[float], list[float]]:
    """Median loss of the seeds at every place where one of them has a point, up to where the median one ends."""
    end = median(x(run.points[-1]) for run in runs)
    places = sorted({x(point) for run in runs for point in run.points if x(point) <= end})
    return places, [median(_at(run, place, x) for run in runs) for place in places]


def _at(run: RunResult, place: float, x: X) -> float:
    return [point.loss for point in run.points if x(point) <= place][-1]


def _label_ends(axes: Axes, runs: Runs) -> None:
    """Each method's name in the right margin, at the height where its curve ends."""
    ends = {method: median(run.points[-1].loss for run in its) for method, its in runs.items()}
    low, high = (math.log(limit) for limit in axes.get_ylim())
    wanted = [(min(math.log(end), high), method) for method, end in ends.items()]
    heights = spread(wanted, LABEL_GAP * (high - low))
    for method, height in heights.items():
        axes.annotate(
            f"{method}  {number(ends[method], 'nats')}", (1.0, math.exp(height)), (8, 0),
            xycoords=("axes fraction", "data"), textcoords="offset points", va="center", color=color_of(method),
            annotation_clip=False,
        )  # fmt: skip
