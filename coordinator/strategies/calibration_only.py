"""The control: the coordinator trains on its calibration set alone, and takes nothing from what nodes send.

A method that does not beat this has learnt nothing from its nodes. Nodes' updates still set the pace.
"""

from typing import Literal

from pydantic import Field

from coordinator.questions import Ask
from coordinator.stages import AnchorStage, report_of
from coordinator.strategies.buffered import Buffered
from coordinator.updates import Aggregate, Flush


class CalibrationOnly(Buffered):
    """The anchor's steps, one for every K updates; their deltas are thrown away."""

    name: Literal["calibration_only"] = "calibration_only"
    anchor: AnchorStage | None = Field(default=AnchorStage(), description="it is all anchor: its votes mean nothing")

    def aggregate(self, flush: Flush, ask: Ask) -> Aggregate:
        """head + step * anchor, where one has been trained; every update weighs nothing."""
        head, nothing = flush.head.adapter, (0.0,) * len(flush.buffer.updates)
        if flush.anchor is None:
            return Aggregate(head, nothing)
        anchored = head + flush.anchor.delta * self.step
        return Aggregate(anchored, nothing, anchor=report_of(flush.anchor, self.step))
