"""Ask the base model again what it was asked, and measure how far its answers are from those that were recorded.

A replay takes the recorded answers, and is exact. This says what they would be on this machine, with its versions of
PyTorch and of the model's files: how much of a difference between two coordinators is arithmetic.
"""

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from base_model.reference import ResolvedModel
from broker.recording import Row
from coordinator.calibration import CalibrationSet
from coordinator.journal import event_of_row, fold_rows
from coordinator.model_process import ModelJob, ModelProcess
from coordinator.questions import AlignedDeltas, Answer, MeasuredLosses, TrainedAnchor, answer_from_bytes
from coordinator.settings import CalibrationSettings
from coordinator.state import Answered, Asked, CalibrationTerms, FederationConfig
from schemas.adapter import Adapter, Layout

POLL_S = 0.02


class AskedOtherwise(ValueError):
    """The base model or the calibration set at hand is not the one that was asked."""


@dataclass(frozen=True)
class Recomputed:
    """How far an answer is from the recorded one."""

    row: int
    version: int  # that was the newest when it was asked
    question: str
    largest_difference: float  # of a loss or residual; inf where only one of the two is a number
    relative_error: float | None  # of a delta, to the norm of the recorded one; None where the answer has none
    seconds: float  # processor time, now
    recorded_seconds: float


class _Recorded(NamedTuple):
    row: Row
    config: FederationConfig
    asked: Asked
    answer: Answer


def recompute(
    path: Path,
    resolved: ResolvedModel,
    calibration: CalibrationSet,
    settings: CalibrationSettings,
    until: int | None = None,
) -> Iterator[Recomputed]:
    """Each answer of a journal in order, up to version `until`, asked of the base model in a process of its own.

    Raises AskedOtherwise, RecordingError for a file that is no sound journal, and ModelProcessDied.
    """
    recorded = _recorded(path, until)
    first = next(recorded, None)
    if first is None:
        return
    terms = _terms(first.config, resolved, calibration)
    job = ModelJob(resolved, calibration, settings.model_copy(update={"training": terms.training}))
    with closing(Blocking(job)) as model:
        yield _compared(first, model.answer(first.asked, first.config.layout))
        for one in recorded:
            if _terms(one.config, resolved, calibration) != terms:
                raise AskedOtherwise(
                    f"row {one.row.seq}: the anchor's training was changed by then; recompute with --until before that"
                )
            yield _compared(one, model.answer(one.asked, one.config.layout))


def _recorded(path: Path, until: int | None) -> Iterator[_Recorded]:
    """Every recorded answer with the question it belongs to."""
    asked: tuple[Asked, ...] = ()
    for row, state, _ in fold_rows(path):
        event = event_of_row(row)
        if isinstance(event, Answered) and (one := next((one for one in asked if one.id == event.question_id), None)):
            yield _Recorded(row, state.config, one, answer_from_bytes(state.config.layout, event.payload))
        if until is not None and state.head.version >= until:
            return
        asked = state.open_questions


def _terms(config: FederationConfig, resolved: ResolvedModel, calibration: CalibrationSet) -> CalibrationTerms:
    """What was agreed on how to ask, if it is this model and these examples that were asked."""
    if config.base_model != resolved.digest:
        raise AskedOtherwise(
            f"the journal is of base model {config.base_model_name} ({config.base_model[:12]}), configured is "
            f"{resolved.name} ({resolved.digest[:12]}): give the coordinator's own settings with --config"
        )
    terms = config.calibration
    assert terms is not None  # nothing is asked without
    if terms.digest != calibration.digest:
        raise AskedOtherwise(
            f"the calibration set has digest {calibration.digest[:12]}, the one that was asked {terms.digest[:12]}: "
            "give the same examples, anchor_examples and gate_examples"
        )
    return terms


class Blocking:
    """The base model's process, asked one question after the other."""

    def __init__(self, job: ModelJob) -> None:
        self._process = ModelProcess(job)

    def answer(self, asked: Asked, layout: Layout) -> Answer:
        """The answer to a question, as it would have been recorded."""
        return answer_from_bytes(layout, self.payload(asked))

    def payload(self, asked: Asked) -> bytes:
        """The same as the bytes that would have been recorded."""
        self._process.ask(asked.id, asked.question)
        while (answered := self._process.answer()) is None:
            time.sleep(POLL_S)
        return answered[1]

    def close(self) -> None:
        """End the process."""
        self._process.stop()


def _compared(recorded: _Recorded, answer: Answer) -> Recomputed:
    before, now = _figures(recorded.answer), _figures(answer)
    errors = [_relative(old, new) for old, new in zip(_deltas(recorded.answer), _deltas(answer), strict=True)]
    return Recomputed(
        row=recorded.row.seq,
        version=recorded.asked.id[0],
        question=type(recorded.asked.question).__name__,
        largest_difference=max(map(_apart, before, now), default=0.0),
        relative_error=max(errors, default=None),
        seconds=answer.seconds,
        recorded_seconds=recorded.answer.seconds,
    )


def _figures(answer: Answer) -> tuple[float, ...]:
    match answer:
        case MeasuredLosses():
            return answer.losses
        case TrainedAnchor():
            return (answer.loss_before, answer.loss_after)
        case AlignedDeltas():
            return (answer.residual_before, answer.residual_after)


def _deltas(answer: Answer) -> tuple[Adapter, ...]:
    match answer:
        case MeasuredLosses():
            return ()
        case TrainedAnchor():
            return (answer.delta,)
        case AlignedDeltas():
            return answer.deltas


def _apart(before: float, now: float) -> float:
    return 0.0 if before == now else abs(now - before) if math.isfinite(before) and math.isfinite(now) else math.inf


def _relative(before: Adapter, now: Adapter) -> float:
    norm = before.norm
    return (now - before).norm / norm if norm else (0.0 if now.norm == 0 else math.inf)
