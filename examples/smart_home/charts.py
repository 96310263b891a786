"""The figures of the report as SVG that lives inside the page: its text is text, its colours are the page's variables.

Every function takes a Report and returns one figure. What a figure leaves out (frames, grids, legends) is meant.
"""

import io
import logging
import re
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from examples.smart_home.outcome import Report

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
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def loss_over_versions(report: Report) -> str:
    """Held-out loss of every version that was measured, the first and the last one labelled."""

    def draw(axes: Axes) -> None:
        versions = [point.version for point in report.losses]
        losses = [point.loss for point in report.losses]
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
        axes.set_ylim(0, max(losses) * 1.15)
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
            axes.plot([update, weight], [row, row], color=FAINT, linewidth=5, solid_capstyle="round", zorder=1)
            axes.scatter([update], [row], s=52, facecolor=PAPER, edgecolor=SOFT, linewidth=1.6, zorder=2)
            axes.scatter([weight], [row], s=52, color=ACCENT, zorder=3)
            axes.annotate(
                f"{weight:.0f} %", (max(weight, update), row), (11, 0), textcoords="offset points",
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
    return _for_the_page(out.getvalue())


def _for_the_page(svg: str) -> str:
    """Only the element itself: no document type, metadata or namespaces, and the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"<g id=\"[^\"]*\">", "<g>", svg)
    svg = re.sub(r"(font(?:-family)?: [^;\"']*?)'DejaVu Sans'[^;\"]*", r"\1inherit", svg)
    for color, name in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg


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
