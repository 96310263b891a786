"""FedAvg (McMahan et al., arXiv 1602.05629): synchronous rounds. It takes nothing stale.

A round waits for `nodes_per_round` nodes. With as many as there are nodes it waits for the slowest; with fewer, the
stragglers' work of the round is dropped, which is FedAvg with over-selection (Bonawitz et al., arXiv 1902.01046).
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from coordinator.questions import Ask
from coordinator.stages import AnchorStage, ReleaseStage, conclude
from coordinator.updates import Aggregate, Buffer, Flush
from schemas.adapter import weighted_sum
from schemas.messages import MAX_INPUTS, Factors


class FedAvg(BaseModel):
    """Average the deltas of one round, weighted by examples."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["fedavg"] = "fedavg"
    nodes_per_round: int = Field(default=4, ge=1, le=MAX_INPUTS, description="distinct nodes that a round waits for")
    step: float = Field(default=1.0, gt=0, le=10, description="server step along the mean delta")
    timeout_s: float | None = Field(default=None, gt=0, description="close a round with fewer nodes after this long")
    anchor: AnchorStage | None = Field(default=None, description="train on the calibration set as well")
    release: ReleaseStage = Field(default=ReleaseStage(), description="what nodes serve")

    one_update_per_version: ClassVar[bool] = True
    needs_base_adapters: ClassVar[bool] = False
    kept_anchors: ClassVar[int] = 0
    trained_factors: ClassVar[Factors] = "both"
    shared_factors: ClassVar[Factors] = "both"
    max_staleness: ClassVar[int] = 0

    def is_ready(self, buffer: Buffer) -> bool:
        """Whether enough distinct nodes have answered."""
        return len({update.node for update in buffer.updates}) >= self.nodes_per_round

    def aggregate(self, flush: Flush, ask: Ask) -> Aggregate:
        """head + step * sum_i n_i / n * delta_i, n_i being the examples of update i."""
        updates = flush.buffer.updates
        total = sum(update.examples for update in updates)
        weights = [update.examples / total for update in updates]
        mean = weighted_sum([update.delta for update in updates], weights)
        return conclude(flush, mean, weights, step=self.step, anchor=self.anchor)
