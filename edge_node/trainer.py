"""Local training in a thread of its own: jobs in, progress and results out. The only file here that meets PyTorch.

`run_job` is a function of values, so that it can move to another process. It does not know the broker or the outbox.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from base_model.examples import Example, InvalidExamples
from base_model.reference import ResolvedModel
from edge_node.local_data import LocalData
from edge_node.settings import EdgeSettings
from edge_node.state import HeldOutMeasured, StepTrained, TrainingFailed, TrainingFinished, TrainingJob

if TYPE_CHECKING:  # importing PyTorch takes seconds and happens in the thread
    from base_model.language_model import LanguageModel

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class TrainerDied:
    """The thread met an error that nobody foresaw; no more jobs will be done."""

    error: BaseException


TrainerEvent = HeldOutMeasured | StepTrained | TrainingFinished | TrainingFailed | TrainerDied


class Aborted(Exception):
    """The job is no longer wanted."""


class Trainer:
    """One thread that loads the base model once and then does one job at a time; `emit` is called from that thread."""

    def __init__(
        self, resolved: ResolvedModel, data: LocalData, settings: EdgeSettings, emit: Callable[[TrainerEvent], None]
    ) -> None:
        self._resolved, self._data, self._settings, self._emit = resolved, data, settings, emit
        self._jobs: queue.SimpleQueue[tuple[TrainingJob, threading.Event] | None] = queue.SimpleQueue()
        self._abort = threading.Event()  # of the newest job
        self._thread = threading.Thread(target=self._work, name="trainer", daemon=True)
        self._thread.start()

    def train(self, job: TrainingJob) -> None:
        """Begin a job as soon as the one before is over."""
        self._abort = threading.Event()
        self._jobs.put((job, self._abort))

    def abort(self) -> None:
        """End the newest job after the step it is in; no result of it is emitted, though a step may still be."""
        self._abort.set()

    def stop(self) -> None:
        """End the thread. One that is deep in a step is left behind: it ends with the process."""
        self._abort.set()
        self._jobs.put(None)
        self._thread.join(STOP_TIMEOUT_S)

    def _work(self) -> None:
        try:
            model = _load(self._resolved, self._settings.threads)
            while (order := self._jobs.get()) is not None:
                self._do(model, *order)
        except Exception as error:  # carried to the main loop, which stops loudly
            self._emit(TrainerDied(error))

    def _do(self, model: "LanguageModel", job: TrainingJob, abort: threading.Event) -> None:
        def on_step(step: int, loss: float) -> None:
            self._emit(StepTrained(time.monotonic(), job.sequence, step, loss))

        try:
            examples = self._data.examples()
            if held_out := self._data.held_out(job.measured):
                self._emit(measure(model, job, held_out))
            self._emit(run_job(model, job, examples, self._settings, on_step, abort))
        except InvalidExamples as fault:
            self._emit(TrainingFailed(time.monotonic(), job.sequence, str(fault)))
        except Aborted:
            log.debug("job %d ended early", job.sequence)


def measure(model: "LanguageModel", job: TrainingJob, held_out: Sequence[Example]) -> HeldOutMeasured:
    """The loss of the version that the job starts from, on examples that are never trained on."""
    from base_model.evaluation import losses

    loss = losses(model, job.start.adapter, held_out)
    return HeldOutMeasured(time.monotonic(), job.sequence, len(held_out), loss)


def run_job(
    model: "LanguageModel",
    job: TrainingJob,
    examples: Sequence[Example],
    settings: EdgeSettings,
    on_step: Callable[[int, float], None],
    abort: threading.Event,
) -> TrainingFinished:
    """Train from the job's version on these examples. Raises Aborted soon after `abort` is set, between two steps.

    With a slowdown of s each step is followed by a pause of s - 1 times its duration, as if the hardware were slower.
    """
    from base_model.training import train

    begun = step_begun = time.monotonic()

    def after_step(step: int, loss: float) -> None:
        nonlocal step_begun
        on_step(step, loss)
        pause_s = (settings.slowdown - 1) * (time.monotonic() - step_begun)
        if abort.wait(pause_s):
            raise Aborted
        step_begun = time.monotonic()

    if abort.is_set():
        raise Aborted
    config = settings.training.model_copy(update={"seed": job.seed, "trained_factors": job.trained_factors})
    result = train(model, job.start.adapter, examples, config, after_step)
    return TrainingFinished(
        at=time.monotonic(),
        sequence=job.sequence,
        adapter=result.adapter,
        examples=min(len(examples), result.examples_seen),
        steps=result.steps,
        loss=result.mean_loss,
        seconds=time.monotonic() - begun,
    )


def _load(resolved: ResolvedModel, threads: int) -> "LanguageModel":
    begun = time.monotonic()
    from base_model.language_model import LanguageModel

    model = LanguageModel.load(resolved, threads=threads)
    log.info("base model loaded in %.1f s", time.monotonic() - begun)
    return model
