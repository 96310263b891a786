"""The base model in a process of its own: the MQTT loop never waits for it, and its death is told in a sentence.

Questions and answers cross a pipe, one at a time. The child ends when the pipe does, so it never outlives its parent,
however that dies. What is in the child is coordinator/calibrator.py; this file loads no PyTorch.
"""

import multiprocessing
import signal
from collections import deque
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import logs
from base_model.reference import ResolvedModel
from coordinator.calibration import CalibrationSet
from coordinator.questions import Question, answer_to_bytes
from coordinator.settings import CalibrationSettings
from coordinator.state import QuestionId

STOP_S = 2.0
LISTENING = "listening"  # what the child says once the model is loaded


class ModelProcessDied(RuntimeError):
    """The process that runs the base model has ended by itself."""


@dataclass(frozen=True)
class ModelJob:
    """What the child needs to begin: the model, the calibration set, and how to use both."""

    resolved: ResolvedModel
    calibration: CalibrationSet
    settings: CalibrationSettings


class ModelProcess:
    """Asks a child process, which loads the model at once."""

    def __init__(self, job: ModelJob) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would take the network thread's locks along
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, job), name="base model", daemon=True)
        # Ctrl-C reaches the whole group, and a service manager's SIGTERM too: this process decides what they mean. The
        # child is born with them blocked, and keeps them so; what comes for us meanwhile is delivered afterwards
        resource_tracker.ensure_running()  # which every spawn does first, and which unblocks them
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # else the pipe would not end when the child does
        self._questions: deque[tuple[QuestionId, Question[Any]]] = deque()  # the first is being answered
        self._is_listening = False

    def ask(self, question_id: QuestionId, question: Question[Any]) -> None:
        """Put a question; its answer comes out of `answer`, after those of the questions before it."""
        self._questions.append((question_id, question))
        if len(self._questions) == 1 and self._is_listening:
            self._send()

    @property
    def waiting(self) -> int:
        """Questions without an answer, the one in work included."""
        return len(self._questions)

    def answer(self) -> tuple[QuestionId, bytes] | None:
        """An answer if there is one by now; raises ModelProcessDied when there will never be one."""
        try:
            if not self._pipe.poll():
                return None
            answered = self._pipe.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if self._is_listening:
            self._questions.popleft()
        self._is_listening = True
        if self._questions:
            self._send()
        return None if answered == LISTENING else answered

    def stop(self) -> None:
        """End the child; a question in work is abandoned, and asked again by the next coordinator."""
        self._pipe.close()
        self._process.kill()
        self._process.join()

    def _send(self) -> None:
        """Hand over the first question to a child that listens: an adapter is more than a pipe holds."""
        try:
            self._pipe.send(self._questions[0])
        except OSError:
            raise self._died() from None

    def _died(self) -> ModelProcessDied:
        self._process.join(STOP_S)
        return ModelProcessDied(
            f"the base model's process ended with code {self._process.exitcode}; its own last lines say why. After a "
            "kill for lack of memory, lower calibration.memory_mb"
        )


def _serve(pipe: Connection, job: ModelJob) -> None:
    """The child: answer until the parent hangs up."""
    logs.set_up("info")
    from coordinator.calibrator import Calibrator  # imports PyTorch

    calibrator = Calibrator.load(job.resolved, job.calibration, job.settings)
    try:
        pipe.send(LISTENING)
        while True:
            question_id, question = pipe.recv()
            pipe.send((question_id, answer_to_bytes(calibrator.answer(question))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
