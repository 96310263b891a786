"""How figures are drawn and saved: one look, as PNG for documents and as SVG that takes the page's colours.

Colours differ in lightness too, so that they can be told apart without seeing hues. It knows nothing of runs.
"""

import io
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from simulation.comparison.statistics import Interval

# what a figure is drawn in; the page replaces them by its own, in light and in dark
INK, SOFT, FAINT, PAPER = "#1b1d1f", "#6b7075", "#dddeda", "#fcfcfa"
TEAL, ORANGE, BLUE, PURPLE, OCHRE, RED = "#0a7d74", "#d9730d", "#2f6db5", "#8d5a9e", "#a3861f", "#c23b34"
VARIABLES = {
    INK: "ink", SOFT: "soft", FAINT: "faint", PAPER: "paper", TEAL: "accent", ORANGE: "orange", BLUE: "blue",
    PURPLE: "purple", OCHRE: "ochre", RED: "red",
}  # fmt: skip
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "alignfed",  # equal runs give equal pages
    "font.size": 10.5,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.titlesize": 10.5,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.pad": 5,
    "ytick.major.pad": 6,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "lines.solid_capstyle": "round",
}
DPI = 160
WIDTH = 9.6  # inches of a figure as wide as the page
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

Draw = Callable[[Figure], None]


@dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn: its file's name, what it shows, its size in inches, and how."""

    name: str
    caption: str
    width: float
    height: float
    draw: Draw

    def as_svg(self) -> str:
        """An svg element that refers to nothing outside itself and takes the page's colours."""
        out = io.StringIO()
        with matplotlib.rc_context({**STYLE, "figure.facecolor": "none", "axes.facecolor": "none"}):
            figure = Figure(figsize=(self.width, self.height), layout="constrained")
            FigureCanvasSVG(figure)
            self.draw(figure)
            figure.savefig(out, format="svg", metadata={"Date": None})
        return for_the_page(out.getvalue(), VARIABLES)

    def write_png(self, folder: Path) -> Path:
        """Write `<name>.png`; returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.png"
        with matplotlib.rc_context({**STYLE, "figure.facecolor": PAPER, "axes.facecolor": PAPER}):
            figure = Figure(figsize=(self.width, self.height), layout="constrained")
            FigureCanvasAgg(figure)
            self.draw(figure)
            figure.savefig(path, dpi=DPI, metadata={"Software": None})
        return path


@dataclass(frozen=True)
class Row:
    """One line of a dot plot; no interval means that there is nothing to show but the note."""

    label: str
    measured: Interval | None
    color: str
    note: str = ""


def dot_rows(axes: Axes, rows: Sequence[Row], end: float) -> None:
    """Medians as dots, intervals as lines, every seed as a small ring; notes at the right, beyond `end`."""
    for place, row in enumerate(rows):
        if row.measured is not None:
            m = row.measured
            axes.plot([m.low, min(m.high, end)], [place, place], color=row.color, linewidth=2.4, alpha=0.55, zorder=2)
            seeds = [value for value in m.values.values() if value <= end]
            axes.scatter(seeds, [place] * len(seeds), s=16, facecolor=PAPER, edgecolor=row.color, linewidth=1, zorder=3)
            if m.median <= end:
                axes.scatter([m.median], [place], s=52, color=row.color, zorder=4)
        axes.annotate(
            row.note, (1.0, place), (8, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", color=row.color, annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.label for row in rows], color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y")


def spread(wanted: Iterable[tuple[float, str]], gap: float) -> dict[str, float]:
    """Heights for labels that want to be at these, at least `gap` apart, in the same order, moved as little as may be.

    A label that has neighbours on both sides stays between them.
    """
    ordered = sorted(wanted)
    heights: list[float] = []
    for height, _ in ordered:
        heights.append(max(height, heights[-1] + gap) if heights else height)
    # what was pushed up comes half of the way back, and pushes the others down
    shift = (sum(height for height, _ in ordered) - sum(heights)) / len(heights) if heights else 0.0
    return {name: height + shift for (_, name), height in zip(ordered, heights, strict=True)}


def doublings(first: float, last: float) -> list[float]:
    """Ticks of a logarithmic axis: 1, 2, 4, ... or every second or third of them."""
    powers = range(math.ceil(math.log2(first)), math.floor(math.log2(last)) + 1)
    return [2.0**power for power in powers[:: max(1, len(powers) // 5)]]


def for_the_page(svg: str, variables: Mapping[str, str]) -> str:
    """Only the element itself: no document type, metadata or namespaces, and the page's colours and font.

    `variables` are the page's names for the colours that the figure is drawn in.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"<g id=\"[^\"]*\">", "<g>", svg)
    svg = re.sub(r"(font(?:-family)?: [^;\"']*?)'DejaVu Sans'[^;\"]*", r"\1inherit", svg)
    for color, name in variables.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg
