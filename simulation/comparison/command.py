"""`alignfed compare`: plan, compute what is missing, and write what came of it."""

import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.text import Text

from simulation.comparison.display import Display
from simulation.comparison.document import NAME, Comparison, compare_runs
from simulation.comparison.forecast import Forecast
from simulation.comparison.matrix import Choice, Data, plan
from simulation.comparison.runner import Failure, Wanted, compute, finished, like
from simulation.comparison.tasks import MakeTask, folders, wanted, write_missing
from simulation.comparison.terminal import show_plan, show_verdicts
from simulation.result import RunResult
from simulation.task import read_task

DONE, FAILED, INTERRUPTED = 0, 1, 130
HANDLED = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class CompareOptions:
    """What a person can change; None leaves it to the preset. `settings` change the configuration of every run."""

    out: Path
    preset: str = "ci"
    methods: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    regimes: tuple[str, ...] | None = None
    targets: tuple[float, ...] | None = None
    data: Path | None = None
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    command: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


def show(options: CompareOptions, console: Console) -> None:
    """Print what would be computed and how long it should take. Raises ImpossibleComparison."""
    show_plan(options.preset, plan(_choice(options)), options.workers, console)


def compare(options: CompareOptions, make_task: MakeTask, console: Console) -> int:
    """Compute what is missing and write summary, figures and page to the folder; returns the exit code.

    0 when every run is there, 1 when one failed, 130 when it was interrupted. Call it from the main thread: it takes
    over the signals. Raises ImpossibleComparison, InvalidExamples, and OSError where files cannot be written.
    """
    show(options, console)
    try:
        with _interruptible():
            return _compare(options, make_task, console)
    except KeyboardInterrupt:
        console.print("\n stopped; every finished run is kept: the same command goes on from here", style="yellow")
        return INTERRUPTED


def _compare(options: CompareOptions, make_task: MakeTask, console: Console) -> int:
    runs = plan(_choice(options))
    places = folders(runs, options.out)
    write_missing(places, make_task)
    everything = wanted(runs, places)
    failures = _compute_missing(everything, options, console)
    results = [result for one in everything if (result := finished(one, options.out)) is not None]
    if results:
        reasons = {failure.name: failure.reason for failure in failures}
        _write(compare_runs(results, options.command, options.targets, reasons), results, options.out, console)
    for failure in failures:
        path = options.out / "failures" / f"{failure.name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(failure.traceback or failure.reason, encoding="utf-8")
        console.print(Text.assemble((f" {failure.name}", "red"), f" failed: {failure.reason}; see {path}"))
    return FAILED if failures else DONE


def _compute_missing(everything: Sequence[Wanted], options: CompareOptions, console: Console) -> list[Failure]:
    forecast = Forecast()
    missing = []
    for one in everything:
        result = finished(one, options.out)
        if result is None:
            missing.append(one)
        else:
            forecast.learn(like(one.run), one.run.estimate, result.seconds)
    if there := len(everything) - len(missing):
        console.print(f" {there} of {len(everything)} runs are there from before.\n", highlight=False)
    if not missing:
        return []
    with Display(console, done=there, total=len(everything)) as display:
        return compute(missing, options.out, options.workers, forecast, display)


def _write(comparison: Comparison, results: Sequence[RunResult], out: Path, console: Console) -> None:
    from simulation.comparison.figures import drawings  # imports matplotlib
    from simulation.comparison.page import write_page

    figures = drawings(comparison, results)
    captioned = comparison.model_copy(update={"figures": {name: drawing.caption for name, drawing in figures.items()}})
    (out / NAME).write_text(captioned.model_dump_json(indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(out / "figures", ignore_errors=True)  # of other runs
    for drawing in figures.values():
        drawing.write_png(out / "figures")
    write_page(captioned, figures, out / "report.html")
    show_verdicts(captioned, console)
    console.print(f" report   {out / 'report.html'}\n summary  {out / NAME}", highlight=False, soft_wrap=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM alike end the block with KeyboardInterrupt."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in HANDLED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _choice(options: CompareOptions) -> Choice:
    data = None
    if options.data is not None:
        data = Data(options.data, nodes=len(read_task(options.data).nodes))
    return Choice(options.preset, options.methods, options.seeds, options.regimes, data, options.settings)
