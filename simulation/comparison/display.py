"""What a person sees while runs are computed: a bar for the whole with the time left, and one for each run at work.

Where there is no terminal, a line for every run that ends.
"""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from simulation.comparison.wording import duration

HIDDEN = ""


class Display:
    """Shows the runs of one comparison; use it in a `with` block."""

    def __init__(self, console: Console, done: int, total: int) -> None:
        self._console, self._done, self._total = console, done, total
        self._left = ""
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn(" {task.description:<46}", markup=False),
            BarColumn(28, complete_style="cyan", finished_style="cyan"),
            TextColumn("{task.fields[said]}", style="dim"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._whole = self._progress.add_task("runs", total=total, completed=done, said=self._said())

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begun(self, name: str) -> None:
        """A run is being computed."""
        self._bars[name] = self._progress.add_task(name, total=1.0, said=HIDDEN)

    def advanced(self, name: str, share: float) -> None:
        """This share of it is done."""
        self._progress.update(self._bars[name], completed=share)

    def ended(self, name: str, runs: int, seconds: float) -> None:
        """It is done, and with it so many runs that compute the same."""
        self._close(name, runs)
        more = f", and {runs - 1} more that compute the same" if runs > 1 else ""
        self._line(name, f"{duration(seconds)}{more}")

    def failed(self, name: str, runs: int, reason: str) -> None:
        """It came to nothing."""
        self._close(name, runs)
        self._line(name, f"failed: {reason}", "red")

    def time_left(self, seconds: float) -> None:
        """How long all that is left should take."""
        self._left = f", about {duration(seconds)} left" if seconds else ""
        self._progress.update(self._whole, said=self._said())

    def _close(self, name: str, runs: int) -> None:
        self._done += runs
        self._progress.remove_task(self._bars.pop(name))
        self._progress.update(self._whole, completed=self._done, said=self._said())

    def _said(self) -> str:
        return f"{self._done} of {self._total}{self._left}"

    def _line(self, name: str, said: str, style: str = "") -> None:
        count = f" {self._done:>{len(str(self._total))}}/{self._total}  "
        left = "" if self._console.is_terminal else self._left
        self._console.print(Text.assemble((count, "dim"), (name, style), (f"  {said}{left}", "dim")), soft_wrap=True)
