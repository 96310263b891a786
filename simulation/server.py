"""The coordinator's base model in a simulation: true answers, at a time that follows from the work they mean.

The unit of work is a node's job, which is so many passes forward and backward over so many examples. What the answers
truly cost is measured beside it, and changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from base_model.settings import TrainingConfig
from coordinator.alignment import MAP_STEPS
from coordinator.calibrator import Calibrator
from coordinator.questions import (
    AlignDeltas,
    AlignedDeltas,
    Answer,
    Fold,
    MeasuredLosses,
    MeasureLosses,
    TrainAnchor,
    TrainedAnchor,
)
from schemas.adapter import Adapter

FORWARD = 1 / 2  # of both passes: over frozen weights there are no gradients of weights to compute backward

Asked = TrainAnchor | MeasureLosses | AlignDeltas
STAGES: Mapping[type[Answer], str] = {AlignedDeltas: "align", TrainedAnchor: "anchor", MeasuredLosses: "gate"}


@dataclass
class ModelServer:
    """Answers one question after the other, as they come."""

    calibrator: Calibrator
    folds: Mapping[Fold, int]  # examples in each
    job: TrainingConfig  # what a job of the fastest node is
    anchor: TrainingConfig
    speed: float  # 1: as fast as the fastest node
    free_at: float = 0.0  # when it is done with all questions so far
    charged: dict[str, float] = field(default_factory=dict)  # simulated time, by stage
    cpu_seconds: dict[str, float] = field(default_factory=dict)  # measured, by stage
    measured: set[tuple[Fold, str]] = field(
        default_factory=set
    )  # losses that are known already, as the calibrator does

    def answer(self, question: Asked, now: float) -> tuple[Answer, float]:
        """The answer, and when it is there. It says itself how long it took, in jobs of the fastest node."""
        duration = self._work(question) / self.speed
        self.free_at = max(now, self.free_at) + duration
        answer = self.calibrator.answer(question)
        stage = STAGES[type(answer)]
        self.cpu_seconds[stage] = self.cpu_seconds.get(stage, 0.0) + answer.seconds
        self.charged[stage] = self.charged.get(stage, 0.0) + duration
        # a measured time would make every run another one
        return replace(answer, seconds=duration), self.free_at

    def take_costs(self) -> tuple[dict[str, float], dict[str, float]]:
        """Simulated time and processor seconds by stage, since they were last taken."""
        costs = self.charged, self.cpu_seconds
        self.charged, self.cpu_seconds = {}, {}
        return costs

    def _work(self, question: Asked) -> float:
        """In jobs."""
        examples = self.job.steps * self.job.batch_size
        match question:
            case TrainAnchor():
                return self.anchor.steps * min(self.anchor.batch_size, self.folds["anchor"]) / examples
            case MeasureLosses(fold, adapters):
                return FORWARD * self.folds[fold] * self._news(fold, adapters) / examples
            case AlignDeltas():
                return FORWARD * self.folds["anchor"] * _passes(question) / examples

    def _news(self, fold: Fold, adapters: tuple[Adapter, ...]) -> int:
        """How many of them were never measured."""
        news = {(fold, adapter.digest) for adapter in adapters} - self.measured
        self.measured |= news
        return len(news)


def _passes(question: AlignDeltas) -> float:
    """Passes forward over the anchor fold, or what takes as long as one; see coordinator/alignment.py."""
    if question.method == "semantic":
        return 2  # the inputs of every module, at base and head
    deltas = len(question.deltas)
    return 1 + 2 * deltas + MAP_STEPS * deltas / FORWARD  # features of the head, gaps before and after, gradients
