"""The control: the coordinator trains on its calibration set alone, and takes nothing from what nodes send.

A method that does not beat this has learnt nothing from its nodes. Nodes' updates still set the pace.
"""

from typing import Literal

from coordinator.questions import Ask, TrainAnchor
from coordinator.strategies.buffered import Buffered
from coordinator.updates import Aggregate, Flush


class CalibrationOnly(Buffered):
    """One anchor step for every K updates; their deltas are thrown away."""

    name: Literal["calibration_only"] = "calibration_only"

    def aggregate(self, flush: Flush, ask: Ask) -> Aggregate:
        """head + step * anchor; every update weighs nothing."""
        if not flush.folds.get("anchor"):
            raise ValueError("calibration_only needs a calibration set with an anchor fold")
        trained = ask(TrainAnchor(flush.head.adapter, seed=flush.head.version))
        alone = self.model_copy(update={"anchor": None})  # it is all anchor as it is
        return alone.conclude(flush, trained.delta, [0.0] * len(flush.buffer.updates), ask)
