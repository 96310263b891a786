"""`alignfed simulate`, without its options: a run with a progress bar, and what came of it in a few lines."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from simulation.result import RunResult
from simulation.run import OnProgress, simulate
from simulation.settings import SimulationConfig
from simulation.task import Task

INTERRUPTED = 130


def run_simulate(config: SimulationConfig, task: Task, out: Path | None, console: Console) -> int:
    """Do a run, show what came of it and write its record to `out`; the exit code."""
    try:
        with _progress(console, config.method) as on_progress:
            result = simulate(config, task, on_progress)
    except KeyboardInterrupt:
        console.print("interrupted: the run is lost, nothing was written")
        return INTERRUPTED
    console.print(summary(result))
    if out is not None:
        result.write(out)
        console.print(f"the whole record is in {out}", soft_wrap=True)
    return 0


def summary(result: RunResult) -> Table:
    """What a run came to, a row for each figure."""
    first, last, final = result.points[0], result.points[-1], result.final
    table = Table.grid(padding=(0, 2))
    intents = "" if final.intent_accuracy is None else f"{final.intent_accuracy:.1%} name the right intent, "
    rows = {
        "run": f"{result.method}, seed {result.seed}: {len(result.shares)} nodes, {last.updates} updates, "
        f"{last.version} versions",
        "simulated time": f"{last.time:.1f} jobs of the fastest node",
        "loss of what is served": f"{first.loss:.3f} -> {final.loss:.3f} nats per answer token, held out",
        "generated answers": f"{intents}{final.exact_match:.1%} are right to the letter",
        "nodes' own tests": f"worst quarter {final.worst_quarter:.3f}, slowest quarter {final.slowest_quarter:.3f}",
        "harmful releases": f"{result.harmful:.1%} raised the loss by more than 1 %",
        "computed": f"in {result.seconds:.0f} s; {result.ended}",
    }
    for name, text in rows.items():
        table.add_row(f"[dim]{name}[/]", text)
    return table


@contextmanager
def _progress(console: Console, method: str) -> Iterator[OnProgress]:
    """A bar with the time that is left; the last part, scoring what is served, is not in it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("loading the base model", total=None)

        def on_progress(share: float) -> None:
            description = method if share < 1 else f"{method}: scoring what is served"
            progress.update(bar, description=description, total=1.0, completed=share)

        yield on_progress
