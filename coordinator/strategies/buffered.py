"""What strategies share that take a step along one mean of K deltas: the step and the anchor."""

from collections.abc import Sequence

from pydantic import Field

from coordinator.stages import AnchorStage, ReleaseStage, conclude
from coordinator.strategies.buffer_of_k import BufferOfK
from coordinator.updates import Aggregate, Flush
from schemas.adapter import Adapter


class Buffered(BufferOfK):
    """Take a step along one mean of the deltas; how they become one is the strategy's own."""

    step: float = Field(default=1.0, gt=0, le=10, description="server step along the mean delta")
    anchor: AnchorStage | None = Field(default=None, description="train on the calibration set as well")
    release: ReleaseStage = Field(default=ReleaseStage(), description="what nodes serve")

    def conclude(self, flush: Flush, mean: Adapter, weights: Sequence[float]) -> Aggregate:
        """Anchor and step, as configured, for a weighted mean of the deltas."""
        return conclude(flush, mean, weights, step=self.step, anchor=self.anchor)
