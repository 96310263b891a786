"""The figures of the report as SVG that lives inside the page: its text is text, its colours are the page's variables.

Every function takes a Report and returns one figure. What a figure leaves out (frames, grids, legends) is meant.
"""

import io
import logging
import math
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from examples.smart_home.answers import by_version, version_name
from examples.smart_home.outcome import Report
from simulation.comparison.drawing import for_the_page

# colours that matplotlib writes and the page replaces by its own, in light and in dark
INK, SOFT, FAINT, ACCENT, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {INK: "ink", SOFT: "soft", FAINT: "faint", ACCENT: "accent", PAPER: "paper"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "alignfed",  # equal reports give equal pages
    "font.size": 10.5,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib; only for measuring, the page sets its own
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.edgecolor": FAINT,
    "xtick.major.pad": 6,
    "ytick.major.pad": 7,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_HEAD: dict[str, Any] = {"color": SOFT, "linewidth": 1.3, "marker": "o", "markersize": 3.5, "clip_on": False}
_AVERAGE: dict[str, Any] = {"color": ACCENT, "linewidth": 2.2, "solid_capstyle": "round", "alpha": 0.45}
STAGE_LOOK = {"align": 0.2, "anchor": 1.0, "gate": 0.45}  # opacity; what a strategy asks for in other ways is opaque
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def loss_over_versions(report: Report) -> str:
    """Held-out loss of what nodes served, its first and last one labelled, and of what they trained from."""

    def draw(axes: Axes) -> None:
        versions = [point.version for point in report.losses]
        losses = [point.loss for point in report.losses]
        axes.plot(versions, [point.head_loss for point in report.losses], **_HEAD)
        axes.plot(versions, losses, color=ACCENT, linewidth=2.2, solid_capstyle="round", clip_on=False)
        ends = (versions[0], versions[-1]), (losses[0], losses[-1])
        axes.scatter(*ends, color=ACCENT, s=34, zorder=3, clip_on=False)
        axes.annotate(
            f"{losses[0]:.2f} base model", (versions[0], losses[0]), (2, 9), textcoords="offset points", ha="left"
        )
        axes.annotate(
            f"{losses[-1]:.2f}",
            (versions[-1], losses[-1]),
            (0, 9),
            textcoords="offset points",
            ha="center",
            color=ACCENT,
        )
        axes.set_ylim(0, max(losses + [point.head_loss for point in report.losses]) * 1.15)
        axes.set_xlim(versions[0], versions[-1] * 1.02)
        axes.set_xticks(_few_integers(versions[-1]))
        axes.set_xlabel("version")
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)

    return _svg(4.6, 3.0, draw)


def staleness_histogram(report: Report) -> str:
    """How many used updates were how many versions behind."""

    def draw(axes: Axes) -> None:
        counts = report.staleness
        most = max(counts, default=0)
        behind = list(range(most + 1))
        heights = [counts[b] for b in behind]
        for b, height in zip(behind, heights, strict=True):
            bar = axes.bar(b, height, width=0.72, color=ACCENT, alpha=_freshness(b))
            axes.bar_label(bar, labels=[str(height) if height else ""], padding=4, color=INK)
        axes.set_xticks(_few_integers(most))
        axes.set_xlim(-0.6, max(most, 3) + 0.6)
        axes.set_xlabel("versions behind when used")
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)

    return _svg(4.6, 3.0, draw)


def contribution(report: Report) -> str:
    """Each node's share of the weight that moved the adapter, against its share of the updates."""

    def draw(axes: Axes) -> None:
        rows = list(range(len(report.nodes)))
        for row, node in zip(rows, report.nodes, strict=True):
            update, weight = 100 * node.update_share, 100 * node.weight_share
            fresh = 100 * (node.fresh_share or 0.0)
            axes.plot([update, weight], [row, row], color=FAINT, linewidth=5, solid_capstyle="round", zorder=1)
            axes.scatter([update], [row], s=52, facecolor=PAPER, edgecolor=SOFT, linewidth=1.6, zorder=2)
            axes.scatter([weight], [row], s=52, color=ACCENT, zorder=3)
            if node.fresh_share is not None:
                axes.scatter([100 * node.fresh_share], [row], s=150, marker="|", color=INK, linewidth=1.6, zorder=4)
            axes.annotate(
                f"{weight:.0f} %", (max(weight, update, fresh), row), (11, 0), textcoords="offset points",
                va="center", color=ACCENT,
            )  # fmt: skip
        shares = [100 * share for node in report.nodes for share in (node.update_share, node.weight_share)]
        axes.set_yticks(rows, [node.node for node in report.nodes], color=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, max(shares) * 1.2 + 1)
        axes.set_xlabel("share, %")
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)

    return _svg(4.6, max(2.2, 1.1 + 0.44 * len(report.nodes)), draw)


def gate_losses(report: Report) -> str:
    """Gate loss of what each version had to offer and of what was served before, and a mark on the one served then."""

    def draw(axes: Axes) -> None:
        decisions = [version.decision for version in report.judged if version.decision]
        numbers = [decision.judged for decision in decisions]
        before = [_known(decision.before) for decision in decisions]
        candidates = [_known(decision.candidate) for decision in decisions]
        axes.plot(numbers, before, **_HEAD)
        axes.plot(numbers, candidates, **_AVERAGE)
        chosen = [new if d.is_taken else old for d, new, old in zip(decisions, candidates, before, strict=True)]
        faces = [ACCENT if decision.is_taken else PAPER for decision in decisions]
        axes.scatter(numbers, chosen, s=46, facecolor=faces, edgecolor=ACCENT, linewidth=1.6, zorder=3, clip_on=False)
        _logarithmic(axes, [loss for loss in (*before, *candidates) if loss == loss])
        axes.set_xlim(numbers[0] - 0.3, numbers[-1] + 0.3)
        axes.set_xticks([tick for tick in _few_integers(numbers[-1]) if tick >= numbers[0]])
        axes.set_xlabel("version")
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)

    return _svg(4.6, 3.0, draw)


def model_time(report: Report) -> str:
    """Processor seconds that the coordinator's base model took for each version, by stage."""

    def draw(axes: Axes) -> None:
        made = report.versions[1:]
        numbers, below = [version.version for version in made], [0.0] * len(made)
        for stage in report.stages:
            heights = [version.model_seconds.get(stage, 0.0) for version in made]
            axes.bar(numbers, heights, bottom=below, width=0.66, color=ACCENT, alpha=STAGE_LOOK.get(stage, 1.0))
            below = [low + height for low, height in zip(below, heights, strict=True)]
        axes.set_xlim(0.4, numbers[-1] + 0.6)
        axes.set_xticks([tick for tick in _few_integers(numbers[-1]) if tick])
        axes.set_xlabel("version")
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter("{x:g} s")
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)

    return _svg(4.6, 3.0, draw)


def answers_by_version(report: Report) -> str:
    """Share of the answers given during the run that were right, for each version that gave some."""

    def draw(axes: Axes) -> None:
        rows = by_version(report.interview.answers)
        places = list(range(len(rows)))
        axes.bar(places, [100 * row.right_intent for row in rows], width=0.72, color=ACCENT, alpha=0.3)
        exact = axes.bar(places, [100 * row.exact for row in rows], width=0.72, color=ACCENT)
        axes.bar_label(
            exact, labels=[f"{100 * row.exact:.0f}" if row.exact else "" for row in rows], padding=3, color=INK
        )
        axes.set_xticks(places, [version_name(row.version) for row in rows])
        axes.set_xlim(-0.6, max(len(rows), 4) - 0.4)
        axes.set_ylim(0, 108)
        axes.set_yticks([0, 50, 100], ["0", "50", "100 %"])
        axes.set_xlabel("version that answered")
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)

    return _svg(4.6, 3.0, draw)


def timeline(report: Report) -> str:
    """Who trained when, and when versions came out: the picture of nobody waiting for anybody."""

    def draw(axes: Axes) -> None:
        rows = {node.node: row for row, node in enumerate(report.nodes)}
        end = max([version.seconds for version in report.versions] + [update.received for update in report.updates])
        for version in report.versions:
            axes.axvline(version.seconds, color=FAINT, linewidth=1, zorder=0)
        for update in report.updates:
            width = max(update.received - update.started - 0.004 * end, 0.002 * end)
            look: dict[str, Any] = {"color": PAPER, "edgecolor": FAINT}
            if update.version is not None:
                look = {"color": ACCENT, "alpha": _freshness(update.version - 1 - update.base_version)}
            axes.barh(rows[update.node], width, left=update.started, height=0.5, zorder=2, **look)
        for seconds, label in _spread([(v.seconds, str(v.version)) for v in report.versions], end / 42):
            axes.annotate(
                label, (seconds, -0.62), (0, 3), textcoords="offset points", ha="center", va="bottom",
                color=SOFT,
            )  # fmt: skip
        axes.set_yticks(list(rows.values()), list(rows), color=INK)
        axes.set_ylim(len(rows) - 0.4, -0.62)
        axes.set_xlim(0, end * 1.01)
        axes.set_xlabel("seconds since the first version")
        axes.spines["left"].set_visible(False)

    return _svg(9.6, 1.2 + 0.42 * len(report.nodes), draw)


def _svg(width: float, height: float, draw: Callable[[Axes], None]) -> str:
    """Draw on axes of this size in inches and return an svg element without any reference to the outside."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return for_the_page(out.getvalue(), _VARIABLES)


def _known(loss: float | None) -> float:
    """A loss to draw; what was infinite leaves a gap."""
    return math.nan if loss is None else loss


def _logarithmic(axes: Axes, losses: list[float]) -> None:
    """A loss axis on which halving looks the same everywhere, with round numbers at a few places."""
    low, high = 0.85 * min(losses), 1.15 * max(losses)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if low <= t <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _freshness(staleness: int) -> float:
    """Opacity: full when fresh, paler the further behind, never invisible."""
    return max(0.15, 0.55**staleness)


def _few_integers(last: int) -> list[int]:
    """Tick positions from 0 to `last`: every one, or every second, fifth, tenth ..."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if last / s <= 10 or s == 1000)
    return list(range(0, last + 1, step))


def _spread(labels: list[tuple[float, str]], gap: float) -> list[tuple[float, str]]:
    """Labels that are at least `gap` apart, the first ones winning."""
    kept: list[tuple[float, str]] = []
    for position, text in labels:
        if not kept or position - kept[-1][0] >= gap:
            kept.append((position, text))
    return kept
