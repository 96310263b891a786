"""FedAvg (McMahan et al., arXiv 1602.05629): synchronous rounds. It waits for everybody and takes nothing stale."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from coordinator.updates import Aggregate, Buffer, GlobalAdapter
from schemas.adapter import Adapter, weighted_sum
from schemas.messages import MAX_INPUTS


class FedAvg(BaseModel):
    """Average the deltas of one round, weighted by examples."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["fedavg"] = "fedavg"
    nodes_per_round: int = Field(default=4, ge=1, le=MAX_INPUTS, description="distinct nodes that a round waits for")
    timeout_s: float | None = Field(default=None, gt=0, description="close a round with fewer nodes after this long")

    one_update_per_version: ClassVar[bool] = True
    needs_base_adapters: ClassVar[bool] = False
    max_staleness: ClassVar[int] = 0

    def is_ready(self, buffer: Buffer) -> bool:
        """Whether enough distinct nodes have answered."""
        return len({update.node for update in buffer.updates}) >= self.nodes_per_round

    def aggregate(self, head: GlobalAdapter, buffer: Buffer, bases: Mapping[int, Adapter]) -> Aggregate:
        """head + sum_i n_i / n * delta_i, n_i being the examples of update i."""
        total = sum(update.examples for update in buffer.updates)
        weights = tuple(update.examples / total for update in buffer.updates)
        step = weighted_sum([update.delta for update in buffer.updates], weights)
        return Aggregate(head.adapter + step, weights)
