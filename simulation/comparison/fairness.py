"""Figures of who has what part in a federation: shares by speed, losses node by node, staleness."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simulation.comparison.colors import color_of
from simulation.comparison.drawing import FAINT, INK, PAPER, SOFT, TEAL, WIDTH, Drawing, spread
from simulation.comparison.presets import OURS
from simulation.result import RunResult

Runs = Mapping[str, Sequence[RunResult]]  # by method


def shares(regime: str, runs: Runs) -> Drawing:
    """Each quarter of the nodes by speed: its share of the weight against its share of the uploads."""
    quarters = ("fastest quarter", "second", "third", "slowest quarter")

    def draw(figure: Figure) -> None:
        panels = np.atleast_1d(figure.subplots(1, len(runs), sharey=True, sharex=True))
        for axes, (method, its) in zip(panels, runs.items(), strict=True):
            for place in range(len(quarters)):
                upload = 100 * fmean(_quarter(run, place, "uploads") for run in its)
                weight = 100 * fmean(_quarter(run, place, "weight") for run in its)
                axes.plot([upload, weight], [place, place], color=FAINT, linewidth=5, zorder=1)
                axes.scatter([upload], [place], s=52, facecolor=PAPER, edgecolor=SOFT, linewidth=1.6, zorder=2)
                axes.scatter([weight], [place], s=52, color=color_of(method), zorder=3)
                axes.annotate(
                    f"{weight:.0f} %", (max(weight, upload), place), (9, 0), textcoords="offset points", va="center",
                    color=color_of(method),
                )  # fmt: skip
            axes.set_yticks(range(len(quarters)), quarters, color=INK)
            axes.set_ylim(len(quarters) - 0.5, -0.5)
            axes.set_title(method, color=color_of(method))
            axes.set_xlabel("share, %")
            axes.spines["left"].set_visible(False)
            axes.grid(axis="y")
        low, high = panels[0].get_xlim()
        panels[0].set_xlim(min(0.0, low), high * 1.08)

    caption = "Nodes by speed: a dot is their share of the weight, a ring their share of the uploads. Means over seeds."
    return Drawing("shares", f"{caption} Regime {regime}.", WIDTH, 2.6, draw)


def _quarter(run: RunResult, place: int, what: str) -> float:
    """The share of one quarter of the nodes; the fastest is quarter 0."""
    nodes = sorted(run.shares, key=lambda node: run.shares[node].speed)
    return math.fsum(getattr(run.shares[node], what) for node in np.array_split(nodes, 4)[place])


def node_losses(regime: str, runs: Runs) -> Drawing:
    """Every node's loss on its own test, from the best served to the worst."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        ends = []
        for method, its in runs.items():
            ordered = [sorted(run.final.nodes.values()) for run in its]
            places = range(1, len(ordered[0]) + 1)
            for losses in ordered:
                axes.plot(places, losses, color=color_of(method), linewidth=0.7, alpha=0.35)
            middle = [median(losses) for losses in zip(*ordered, strict=True)]
            axes.plot(places, middle, color=color_of(method), linewidth=2.2)
            ends.append((middle[-1], method))
        low, high = axes.get_ylim()
        for method, height in spread(ends, 0.07 * (high - low)).items():
            axes.annotate(
                method, (1.0, height), (8, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                va="center", color=color_of(method), annotation_clip=False,
            )  # fmt: skip
        count = len(next(iter(runs.values()))[0].final.nodes)
        axes.axvspan(count - max(1, count // 4) + 0.5, count, color=FAINT, alpha=0.45, linewidth=0, zorder=0)
        axes.set_xlim(1, count)
        axes.set_xlabel("nodes, from the best served to the worst")
        axes.set_ylabel("loss on its own test")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.grid(axis="y")

    caption = "Every node's loss at the end, in order: medians over seeds, every seed thin. Shaded: the worst quarter."
    return Drawing("node-losses", f"{caption} Regime {regime}.", WIDTH * 0.8, 3.3, draw)


def staleness(runs: Runs) -> Drawing:
    """How old updates were when they were used, in every regime."""
    there = {regime: its for regime, its in runs.items() if any(run.staleness.histogram for run in its)}
    columns = min(4, max(1, len(there)))
    rows = max(1, math.ceil(len(there) / columns))

    def draw(figure: Figure) -> None:
        panels = np.atleast_1d(figure.subplots(rows, columns)).flatten()
        for axes in panels[len(there) :]:
            axes.set_visible(False)
        for axes, (regime, its) in zip(panels, there.items(), strict=False):
            counts = np.zeros(max(len(run.staleness.histogram) for run in its))
            for run in its:
                counts[: len(run.staleness.histogram)] += run.staleness.histogram
            share = counts / counts.sum()
            shown = int(np.searchsorted(np.cumsum(share), 0.98)) + 1
            axes.bar(range(shown), share[:shown], width=0.82, color=TEAL)
            mean = fmean(run.staleness.mean or 0.0 for run in its)
            most = max(run.staleness.max or 0 for run in its)
            axes.set_title(regime, pad=16)
            axes.annotate(
                f"mean {mean:.1f}, most {most}", (0, 1), (0, 3), xycoords="axes fraction", textcoords="offset points",
                color=SOFT, fontsize=9,
            )  # fmt: skip
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))

    caption = f"Staleness of the updates in {OURS}'s versions, in versions; the last 2 % of the tail are left out."
    return Drawing("staleness", caption, WIDTH, 0.2 + 1.75 * rows, draw)
