"""Computes what is missing of a comparison, several runs at a time, and writes a file for every run that is done.

A file whose configuration and task are those that are wanted is kept. Whatever ends this process, at most the runs in
progress are lost.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from simulation.comparison.display import Display
from simulation.comparison.forecast import Expected, Forecast, Like
from simulation.comparison.matrix import PlannedRun, deciding
from simulation.comparison.worker import Failed, Finished, News, Progress, Worker
from simulation.result import RunResult

WAIT_S = 0.5


@dataclass(frozen=True)
class Wanted:
    """A planned run, the folder of its task, and the digest of that."""

    run: PlannedRun
    task: Path
    digest: str


@dataclass(frozen=True)
class Failure:
    """A run that came to nothing."""

    name: str
    reason: str
    traceback: str


def finished(wanted: Wanted, folder: Path) -> RunResult | None:
    """The run as it was computed before; None if it was not, or was another one under the same name."""
    path = file_of(wanted.run, folder)
    if not path.exists():
        return None
    try:
        result = RunResult.read(path)
    except ValueError:  # written by another version
        return None
    return _labelled(result, wanted.run) if _is(result, wanted) else None


def file_of(run: PlannedRun, folder: Path) -> Path:
    """Where a run is written."""
    return folder / "runs" / f"{run.name}.json"


def compute(
    missing: Sequence[Wanted], folder: Path, workers: int, forecast: Forecast, display: Display
) -> list[Failure]:
    """Compute runs and write their files; those that would compute the same are computed once. Returns the failures."""
    groups = _together(missing)
    with _Crew(min(workers, len(groups))) as crew:
        return list(_work_through(groups, crew, folder, forecast, display))


def _is(result: RunResult, wanted: Wanted) -> bool:
    config = wanted.run.config.model_dump(mode="json")
    return deciding(result.config) == deciding(config) and result.task == wanted.digest


def _together(missing: Iterable[Wanted]) -> list[list[Wanted]]:
    """Runs that compute the same; the longest ones first, so that none is left for the end."""
    groups: dict[str, list[Wanted]] = {}
    for wanted in missing:
        groups.setdefault(wanted.run.computation, []).append(wanted)
    return sorted(groups.values(), key=lambda group: -group[0].run.estimate)


class _Crew:
    """Workers and what each of them computes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._at_work: dict[Connection, tuple[Worker, list[Wanted]]] = {}
        self._idle: list[Worker] = []
        self._in_hand: dict[Connection, Path] = {}  # the task of each worker's last run

    def __enter__(self) -> "_Crew":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in (*self._idle, *(worker for worker, _ in self._at_work.values())):
            worker.stop()

    @property
    def has_room(self) -> bool:
        return len(self._at_work) < self.size

    @property
    def at_work(self) -> list[list[Wanted]]:
        return [group for _, group in self._at_work.values()]

    def begin_one(self, waiting: list[list[Wanted]]) -> list[Wanted]:
        """Take a run from those that wait and let an idle worker, or a new one, compute it.

        It is one on the task that the worker has in hand, whose examples it need not prepare again; else one on a task
        that nobody has in hand; else the first.
        """
        worker = self._idle.pop() if self._idle else Worker()
        mine, taken = self._in_hand.get(worker.pipe), set(self._in_hand.values())
        group = next((group for group in waiting if group[0].task == mine), None)
        group = group or next((group for group in waiting if group[0].task not in taken), waiting[0])
        waiting.remove(group)
        worker.begin(group[0].run.config.model_dump_json(), group[0].task)
        self._at_work[worker.pipe] = (worker, group)
        self._in_hand[worker.pipe] = group[0].task
        return group

    def news(self) -> Iterator[tuple[list[Wanted], News]]:
        """What is new, after a short wait."""
        for pipe in wait(list(self._at_work), WAIT_S):
            assert isinstance(pipe, Connection)
            worker, group = self._at_work[pipe]
            news = worker.news()
            if not isinstance(news, Progress):
                del self._at_work[pipe]
                if worker.is_alive:
                    self._idle.append(worker)
                else:
                    del self._in_hand[pipe]
                    worker.stop()
            yield group, news


def _work_through(
    groups: list[list[Wanted]], crew: _Crew, folder: Path, forecast: Forecast, display: Display
) -> Iterator[Failure]:
    waiting, left = list(groups), {}
    while waiting or crew.at_work:
        while waiting and crew.has_room:
            group = crew.begin_one(waiting)
            left[group[0].run.name] = 1.0
            display.begun(group[0].run.name)
        for group, news in crew.news():
            match news:
                case Progress(share):
                    left[group[0].run.name] = 1 - share
                    display.advanced(group[0].run.name, share)
                case Finished(record):
                    result = RunResult.model_validate_json(record)
                    forecast.learn(like(group[0].run), group[0].run.estimate, result.seconds)
                    for wanted in group:
                        _labelled(result, wanted.run).write(file_of(wanted.run, folder))
                    display.ended(group[0].run.name, len(group), result.seconds)
                case Failed(reason, traceback):
                    display.failed(group[0].run.name, len(group), reason)
                    yield from (Failure(wanted.run.name, reason, traceback) for wanted in group)
        expected = [Expected(like(group[0].run), group[0].run.estimate) for group in waiting]
        expected += [
            Expected(like(group[0].run), group[0].run.estimate, left[group[0].run.name]) for group in crew.at_work
        ]
        display.time_left(forecast.left(expected, crew.size))


def _labelled(result: RunResult, run: PlannedRun) -> RunResult:
    """The same run under the labels of another one that computes the same."""
    labels = {"preset": run.config.preset, "regime": run.config.regime, "method": run.config.method}
    config = {**result.config, **labels, "targets": list(run.config.targets)}
    return result.model_copy(update={**labels, "config": config})


def like(run: PlannedRun) -> Like:
    """What runs take about as long."""
    return Like(run.config.regime, run.config.method)
