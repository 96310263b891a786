"""The stages of a run as a person sees them: a bar while one lasts, a line when it is done; elsewhere only the line."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

LABEL_WIDTH = 14

Advance = Callable[[int, int | None], None]
"""Called as advance(done, total or None)."""


class Stage:
    """A stage that goes on: `advance` moves its bar, `rename` says what it does now, `result` is its closing line."""

    def __init__(self, advance: Advance, rename: Callable[[str], None]) -> None:
        self.advance = advance
        self.rename = rename
        self.result = "done"


@contextmanager
def stage(console: Console, name: str, amount: Callable[[Task], str]) -> Iterator[Stage]:
    """Show one stage while the block runs, then leave a line with its result and its duration.

    `amount` words how much is done, beside the bar.
    """
    started = time.monotonic()
    if console.is_terminal:
        with Progress(
            TextColumn(" {task.description:<" + str(LABEL_WIDTH) + "}"),
            BarColumn(30, complete_style="cyan", finished_style="cyan", pulse_style="cyan"),
            _Amount(amount),
            SpinnerColumn("dots", style="dim"),
            console=console,
            transient=True,
        ) as progress:
            task = progress.add_task(name, total=None)
            shown = Stage(
                lambda done, total: progress.update(task, completed=done, total=total),
                lambda text: progress.update(task, description=text),
            )
            yield shown
    else:
        shown = Stage(lambda done, total: None, lambda text: None)
        yield shown
    line(console, name, shown.result, time.monotonic() - started)


def line(console: Console, name: str, text: str, seconds: float | None = None) -> None:
    """One closing line: the name of the stage, what came of it, how long it took."""
    took = "" if seconds is None or seconds < 1 else f"  {seconds:.0f} s"
    console.print(Text.assemble((f" {name:<{LABEL_WIDTH}} ", "dim"), text, (took, "dim")), soft_wrap=True)


def of_bytes(task: Task) -> str:
    """How many bytes are done."""
    return "" if not task.completed else decimal(int(task.completed)) + _of(task, lambda total: decimal(int(total)))


def of_count(task: Task) -> str:
    """How many are done, as a count."""
    return "" if task.total is None else f"{task.completed:.0f}" + _of(task, lambda total: f"{total:.0f}")


def _of(task: Task, word: Callable[[float], str]) -> str:
    return "" if task.total is None else f" of {word(task.total)}"


class _Amount(ProgressColumn):
    def __init__(self, amount: Callable[[Task], str]) -> None:
        super().__init__()
        self._amount = amount

    def render(self, task: Task) -> Text:
        return Text(self._amount(task), style="dim")
