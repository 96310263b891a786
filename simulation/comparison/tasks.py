"""The tasks of a comparison as folders, so that they can be looked at, and are the same however often runs resume."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from simulation.comparison.matrix import PlannedRun
from simulation.comparison.regimes import TaskSpec
from simulation.comparison.runner import Wanted
from simulation.task import Task, read_task, write_task

MakeTask = Callable[[TaskSpec], Task]


def folders(runs: Iterable[PlannedRun], out: Path) -> dict[TaskSpec | Path, Path]:
    """Where the task of each run is, or will be."""
    return {run.task: out / "data" / run.task.folder if isinstance(run.task, TaskSpec) else run.task for run in runs}


def write_missing(places: Mapping[TaskSpec | Path, Path], make_task: MakeTask) -> None:
    """Make and write every generated task that is not there yet; a folder is there whole or not at all."""
    for spec, folder in places.items():
        if isinstance(spec, TaskSpec) and not folder.exists():
            unfinished = folder.with_name(f".{folder.name}")
            shutil.rmtree(unfinished, ignore_errors=True)
            write_task(make_task(spec), unfinished)
            unfinished.replace(folder)


def wanted(runs: Iterable[PlannedRun], places: Mapping[TaskSpec | Path, Path]) -> list[Wanted]:
    """The runs with the folders and digests of their tasks, which must be there."""
    from simulation.run import digest_of  # imports PyTorch

    digests = {folder: digest_of(read_task(folder)) for folder in places.values()}
    return [Wanted(run, places[run.task], digests[places[run.task]]) for run in runs]
