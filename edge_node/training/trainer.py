"""Local training, each job in a short-lived process: jobs in, progress and results out. It loads no PyTorch.

A process that is killed, or runs out of memory, is a job that failed: the node notes it and tries again later. It does
not know the broker or the outbox.
"""

import contextlib
import logging
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from base_model.digest import record_files
from base_model.examples import InvalidExamples
from base_model.reference import ResolvedModel, comes_from_gguf, gguf_of
from base_model.wheel import BaseModelError
from edge_node.data.local_data import LocalData
from edge_node.events import HeldOutMeasured, MeasuringEnded, StepTrained, TrainingFailed, TrainingFinished
from edge_node.settings import EdgeSettings
from edge_node.state import TrainingJob
from edge_node.training.pipe import (
    CutShort,
    JobExamples,
    Loaded,
    Measured,
    Order,
    Step,
    packed,
    read_report,
    write_job,
)

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 3.0
REASON_BYTES, REASON_LINES = 4000, 3
NOTHING = packed(())  # to train on: the start of the job is measured, and that is all


@dataclass(frozen=True)
class TrainerDied:
    """The thread met an error that nobody foresaw; no more jobs will be done."""

    error: BaseException


TrainerEvent = HeldOutMeasured | MeasuringEnded | StepTrained | TrainingFinished | TrainingFailed | TrainerDied
Work = Callable[[TrainingJob, threading.Event], TrainerEvent]


class Trainer:
    """One job at a time, each in a process of its own, from `start` to `stop`.

    `emit` is called from the thread that looks after it.
    """

    def __init__(
        self,
        resolved: ResolvedModel,
        cache: Path,
        data: LocalData,
        settings: EdgeSettings,
        emit: Callable[[TrainerEvent], None],
    ) -> None:
        self._resolved, self._cache, self._data, self._settings, self._emit = resolved, cache, data, settings, emit
        self._jobs: queue.SimpleQueue[tuple[TrainingJob, threading.Event, Work] | None] = queue.SimpleQueue()
        self._abort = threading.Event()  # of the newest job
        self._running: tuple[subprocess.Popen[bytes], threading.Event] | None = None
        self._lock = threading.Lock()  # of what is running, between this thread and the one that aborts
        self._words = ""  # what the last job was trained on
        self._thread = threading.Thread(target=self._work, name="trainer", daemon=True)

    def start(self) -> None:
        """Take jobs from now on; those that are waiting begin."""
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """The process of the job under way."""
        with self._lock:
            return self._running[0].pid if self._running is not None else None

    def train(self, job: TrainingJob) -> None:
        """Begin a job as soon as the one before is over."""
        self._begin(job, self._trained)

    def measure(self, job: TrainingJob) -> None:
        """Measure the start of a job, and no more, as soon as the one before is over."""
        self._begin(job, self._measured)

    def abort(self) -> None:
        """End the newest job at once; no result of it is emitted, though a step may still be."""
        with self._lock:
            self._abort.set()
            if self._running is not None and self._running[1].is_set():
                self._running[0].kill()

    def stop(self) -> None:
        """End the job and the thread."""
        self.abort()
        self._jobs.put(None)
        self._thread.join(STOP_TIMEOUT_S)

    def _begin(self, job: TrainingJob, work: Work) -> None:
        self._abort = threading.Event()
        self._jobs.put((job, self._abort, work))

    def _work(self) -> None:
        try:
            while self._do_next():
                pass
        except Exception as error:  # carried to the main loop, which stops loudly
            self._emit(TrainerDied(error))

    def _do_next(self) -> bool:
        """Wait for a job and do it; neither it nor its result is held while the next one is waited for."""
        if (order := self._jobs.get()) is None:
            return False
        job, abort, work = order
        event = self._outcome(job, abort, work)
        if not abort.is_set():
            self._emit(event)
        return True

    def _outcome(self, job: TrainingJob, abort: threading.Event, work: Work) -> TrainerEvent:
        """What becomes of a job; whatever goes wrong with its process is a reason."""
        try:
            return work(job, abort)
        except (InvalidExamples, BaseModelError) as fault:
            return TrainingFailed(time.monotonic(), job.sequence, str(fault))
        except OSError as fault:  # no memory for a process, or no more processes allowed
            reason = f"the training process could not be started: {fault.strerror}"
            return TrainingFailed(time.monotonic(), job.sequence, reason)

    def _trained(self, job: TrainingJob, abort: threading.Event) -> TrainerEvent:
        examples, held_out = packed(self._data.examples()), packed(self._data.held_out(job.measured))
        begun, order = time.monotonic(), self._order(job, examples, held_out)
        with tempfile.TemporaryFile() as complaints, self._process(abort, complaints) as process:
            try:
                assert process.stdin is not None and process.stdout is not None
                write_job(process.stdin, order, job.start.adapter, examples, held_out)
                while not isinstance(report := read_report(process.stdout, order.layout), tuple):
                    self._on_report(report, job)
            except (BrokenPipeError, CutShort):
                return TrainingFailed(time.monotonic(), job.sequence, _reason(process.wait(), complaints))
        finished, adapter = report
        log.debug("job %d: at most %.0f MiB", job.sequence, finished.peak_mb)
        return TrainingFinished(
            at=time.monotonic(),
            sequence=job.sequence,
            adapter=adapter,
            examples=finished.examples,
            steps=finished.steps,
            loss=finished.loss,
            seconds=time.monotonic() - begun,
        )

    def _measured(self, job: TrainingJob, abort: threading.Event) -> TrainerEvent:
        self._data.refresh()
        if not (held_out := packed(self._data.held_out(job.measured))):
            return MeasuringEnded(time.monotonic(), job.sequence)
        order = self._order(job, NOTHING, held_out)
        with tempfile.TemporaryFile() as complaints, self._process(abort, complaints) as process:
            try:
                assert process.stdin is not None and process.stdout is not None
                write_job(process.stdin, order, job.start.adapter, NOTHING, held_out)
                while isinstance(report := read_report(process.stdout, order.layout), Loaded):
                    self._on_report(report, job)
                if isinstance(report, Measured):
                    self._on_report(report, job)
            except (BrokenPipeError, CutShort):
                return TrainingFailed(time.monotonic(), job.sequence, _reason(process.wait(), complaints))
        return MeasuringEnded(time.monotonic(), job.sequence)

    @contextlib.contextmanager
    def _process(self, abort: threading.Event, complaints: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
        """A process that is gone afterwards; one whose job is aborted meanwhile, or was before, is killed."""
        command = [sys.executable, "-m", "edge_node.training.process"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints)
        with self._lock:
            self._running = (process, abort)
            if abort.is_set():
                process.kill()
        try:
            yield process
        finally:
            with self._lock:
                self._running = None
            process.kill()  # it has nothing more to say
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):  # of what was never read
                    assert pipe is not None
                    pipe.close()

    def _order(self, job: TrainingJob, examples: JobExamples, held_out: JobExamples) -> Order:
        settings = self._settings
        config = settings.training.model_copy(update={"seed": job.seed, "trained_factors": job.trained_factors})
        return Order(
            layout=job.start.adapter.layout,
            config=config,
            model=self._resolved.path,
            blocks=self._blocks(),
            activations=settings.activations,
            threads=settings.threads,
            slowdown=settings.slowdown,
            examples_bytes=len(examples),
            held_out_bytes=len(held_out),
        )

    def _blocks(self) -> Path | None:
        """The GGUF file whose blocks are the weights, if it is there and what it should be."""
        if not comes_from_gguf(self._resolved):
            return None
        path = gguf_of(self._resolved, self._cache)
        record = self._cache / "digests" / f"{self._resolved.digest}.gguf.json"
        if record_files([path], record).files[0].sha256 != self._resolved.digest:
            raise BaseModelError(f"{path} is not the file of this base model; remove it to fetch it again")
        return path

    def _on_report(self, report: Loaded | Measured | Step, job: TrainingJob) -> None:
        if isinstance(report, Step):
            self._emit(StepTrained(time.monotonic(), job.sequence, report.step, report.loss))
        elif isinstance(report, Measured):
            self._emit(HeldOutMeasured(time.monotonic(), job.sequence, report.examples, report.loss))
        elif report.weights != self._words:  # once, not for each job
            self._words = report.weights
            log.info("training on %s, loaded in %.1f s", report.weights, report.seconds)


def _reason(code: int, complaints: IO[bytes]) -> str:
    """Why a process ended without a result, as its owner can act on it."""
    if code == -signal.SIGKILL:
        return "the training process was killed; if nobody did that, this machine has too little memory for it"
    if code < 0:
        return f"the training process was ended by {signal.Signals(-code).name}"
    size = complaints.seek(0, 2)
    complaints.seek(max(0, size - REASON_BYTES))
    lines = complaints.read().decode("utf-8", "replace").strip().splitlines()
    return "the training process failed: " + ("\n".join(lines[-REASON_LINES:]) or f"it ended with code {code}")
