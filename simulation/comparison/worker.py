"""A process that computes runs, one after the other: it keeps the base model and the tasks that it has loaded.

It speaks JSON over a pipe, and ends when the pipe does, so it never outlives the process that started it.
"""

import json
import multiprocessing
import os
import signal
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulation.task import Task

STOP_S = 2.0
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


@dataclass(frozen=True)
class Progress:
    """A share of the run is done."""

    share: float


@dataclass(frozen=True)
class Finished:
    """The run is done; its record as JSON."""

    record: str


@dataclass(frozen=True)
class Failed:
    """The run came to nothing: why, in a line, and where in the code, if it was there."""

    reason: str
    traceback: str = ""


News = Progress | Finished | Failed
KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Progress, Finished, Failed)}


class Worker:
    """One process, from outside: give it a run, hear the news."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process: SpawnProcess = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()  # else the pipe would not end when the child does

    def begin(self, config: str, task: Path) -> None:
        """Let it compute a run, whose configuration is JSON, on the task in a folder."""
        with suppress(OSError):  # it has died meanwhile; `news` says so
            self.pipe.send_bytes(json.dumps([config, str(task)]).encode())

    def news(self) -> News:
        """Wait for the next news; Failed when the process has died."""
        try:
            kind, values = json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self._process.join(STOP_S)
            return Failed(f"its process ended with code {self._process.exitcode}; -9 is often a lack of memory")
        news: News = KINDS[kind](**values)
        return news

    @property
    def is_alive(self) -> bool:
        """Whether it can be given another run."""
        return self._process.is_alive()

    def stop(self) -> None:
        """End the process; what it computes is lost."""
        self.pipe.close()
        self._process.terminate()
        self._process.join(STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe: Connection) -> None:
    """The child: compute until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    os.environ.update(dict.fromkeys(THREADS, "1"))  # before PyTorch is imported
    try:
        while True:
            config, task = json.loads(pipe.recv_bytes())
            _tell(pipe, _computed(pipe, config, Path(task)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _computed(pipe: Connection, config: str, task: Path) -> News:
    """The record of a run, or what went wrong with it."""
    from simulation.run import simulate  # imports PyTorch
    from simulation.settings import SimulationConfig

    try:
        wanted = SimulationConfig.model_validate_json(config)
        result = simulate(wanted, _task(task), lambda share: _tell(pipe, Progress(share)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise  # nobody listens any more
    except Exception as error:
        return Failed(f"{type(error).__name__}: {error}", traceback.format_exc())
    return Finished(result.model_dump_json())


@cache
def _task(folder: Path) -> "Task":
    from simulation.task import read_task

    return read_task(folder)


def _tell(pipe: Connection, news: News) -> None:
    pipe.send_bytes(json.dumps([type(news).__name__, asdict(news)]).encode())
