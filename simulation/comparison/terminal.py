"""A comparison in the terminal: the plan before it starts, and the verdicts at the end."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulation.comparison.document import Comparison
from simulation.comparison.forecast import Expected, Forecast, Like
from simulation.comparison.matrix import PlannedRun
from simulation.comparison.presets import PRESETS
from simulation.comparison.wording import MET, duration, with_range


def show_plan(preset: str, runs: Sequence[PlannedRun], workers: int, console: Console) -> None:
    """Which runs there are, and how long those that have to be computed should take, if none is there yet."""
    console.print(Text.assemble((f" alignfed compare, {preset}", "bold"), f"  {PRESETS[preset].about}"), soft_wrap=True)
    table = _table("regime", "methods", "seeds", "runs", "one core")
    for regime in dict.fromkeys(run.config.regime for run in runs):
        table.add_row(*_row([run for run in runs if run.config.regime == regime]))
    console.print(table)
    computed = {run.computation: run for run in runs}.values()
    expected = [Expected(Like(run.config.regime, run.config.method), run.estimate) for run in computed]
    left, alone = Forecast().left(expected, workers), sum(run.estimate for run in computed)
    console.print(
        f" {len(runs)} runs; {len(computed)} are to be computed, the others compute the same. About {duration(alone)} "
        f"of one core, {duration(left)} with {workers} workers.\n",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def show_verdicts(comparison: Comparison, console: Console) -> None:
    """Every bar that was measured: what was asked, what was found, and whether it holds."""
    table = _table("bar", "asked", "measured", "")
    measured = [verdict for verdict in comparison.verdicts if verdict.measured is not None]
    for verdict in measured:
        word, style = MET[verdict.met], {True: "green", False: "red", None: "dim"}[verdict.met]
        table.add_row(verdict.bar, verdict.asked, with_range(verdict.measured, verdict.unit), Text(word, style))
    console.print(table)
    if missing := len(comparison.verdicts) - len(measured):
        console.print(f" {missing} more bars are not measured by these runs\n", style="dim", highlight=False)


def _row(runs: Sequence[PlannedRun]) -> list[str]:
    methods = dict.fromkeys(run.config.method for run in runs)
    seeds = dict.fromkeys(str(run.config.seed) for run in runs)
    seconds = sum(run.estimate for run in runs)
    return [runs[0].config.regime, ", ".join(methods), ", ".join(seeds), str(len(runs)), duration(seconds)]


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in names:
        table.add_column(name, justify="right" if name in ("runs", "one core") else "left")
    return table
