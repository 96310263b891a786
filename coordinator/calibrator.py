"""The base model's answers to a strategy's questions, from the calibration set. With calibration.py it is all that the
coordinator knows of models; it runs in a process of its own (model_process.py) and in simulations.

The same question gets the same answer on one machine: training is seeded, batches are cut in one order.
"""

import math
import time
from typing import Self

import torch

from base_model.evaluation import losses
from base_model.examples import Example
from base_model.language_model import LanguageModel
from base_model.reference import ResolvedModel
from base_model.settings import TrainingConfig
from base_model.training import train
from coordinator.alignment import align_literally, align_semantically
from coordinator.calibration import CalibrationSet
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
from coordinator.settings import CalibrationSettings
from schemas.adapter import Adapter

REMEMBERED_LOSSES = 256


class Calibrator:
    """A loaded model and the folds that questions are about."""

    def __init__(self, model: LanguageModel, calibration: CalibrationSet, training: TrainingConfig) -> None:
        self._model, self._training = model, training
        self._folds: dict[Fold, tuple[Example, ...]] = {"anchor": calibration.anchor, "gate": calibration.gate}
        self._known: dict[tuple[Fold, str], float] = {}  # what is served is asked about again and again

    @classmethod
    def load(cls, resolved: ResolvedModel, calibration: CalibrationSet, settings: CalibrationSettings) -> Self:
        """Load the model as the settings say."""
        on_gpu = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
        model = LanguageModel.load(
            resolved,
            threads=settings.threads,
            device="cuda" if on_gpu else "cpu",
            frozen_cache_mb=settings.memory_mb // 2,
            batch_mb=settings.memory_mb // 2,
        )
        return cls(model, calibration, settings.training)

    def answer(self, question: TrainAnchor | MeasureLosses | AlignDeltas) -> Answer:
        """The answer, with the processor time it took."""
        begun = time.process_time()
        match question:
            case TrainAnchor():
                delta, before, after = self._train(question)
                return TrainedAnchor(delta, before, after, time.process_time() - begun)
            case MeasureLosses(fold, adapters):
                measured = tuple(self._loss(fold, adapter) for adapter in adapters)
                return MeasuredLosses(measured, time.process_time() - begun)
            case AlignDeltas():
                deltas, before, after = self._align(question)
                return AlignedDeltas(deltas, before, after, time.process_time() - begun)

    def _train(self, question: TrainAnchor) -> tuple[Adapter, float, float]:
        heard: list[float] = []
        config = self._training.model_copy(update={"seed": question.seed})
        result = train(self._model, question.start, self._folds["anchor"], config, lambda _, loss: heard.append(loss))
        delta = result.adapter - question.start
        if not delta.is_finite:  # as a node does, drop what diverged
            return Adapter.zeros(delta.layout), heard[0], math.inf
        return delta, heard[0], heard[-1]

    def _loss(self, fold: Fold, adapter: Adapter) -> float:
        key = (fold, adapter.digest)
        if key not in self._known:
            self._known[key] = losses(self._model, adapter, self._folds[fold])
            while len(self._known) > REMEMBERED_LOSSES:
                self._known.pop(next(iter(self._known)))
        return self._known[key]

    def _align(self, question: AlignDeltas) -> tuple[tuple[Adapter, ...], float, float]:
        align = align_literally if question.method == "literal" else align_semantically
        return align(self._model, self._folds["anchor"], question.base, question.head, question.deltas)
