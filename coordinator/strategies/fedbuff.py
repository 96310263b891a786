"""FedBuff (Nguyen et al., arXiv 2106.06639): asynchronous, a version for every K updates."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from coordinator.equations import freshness, staleness
from coordinator.updates import Aggregate, Buffer, GlobalAdapter
from schemas.adapter import Adapter, weighted_sum
from schemas.messages import MAX_INPUTS


class FedBuff(BaseModel):
    """Buffer K updates, then take a step along the mean of their deltas, each discounted by its staleness."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["fedbuff"] = "fedbuff"
    buffer_size: int = Field(default=4, ge=1, le=MAX_INPUTS, description="updates per version: K")
    step: float = Field(default=1.0, gt=0, le=10, description="server step along the mean delta")
    staleness_exponent: float = Field(default=0.5, ge=0, le=4, description="weight (1 + staleness)^-exponent")
    max_staleness: int = Field(default=100, ge=0, le=100_000, description="staler updates are refused")
    timeout_s: float | None = Field(
        default=600, gt=0, description="aggregate fewer than K updates once one has waited this long"
    )

    one_update_per_version: ClassVar[bool] = False
    needs_base_adapters: ClassVar[bool] = False

    def is_ready(self, buffer: Buffer) -> bool:
        """Whether K updates wait."""
        return len(buffer.updates) >= self.buffer_size

    def aggregate(self, head: GlobalAdapter, buffer: Buffer, bases: Mapping[int, Adapter]) -> Aggregate:
        """head + step / n * sum_i freshness(tau_i) * delta_i; the weights are absolute, not normalised to one."""
        scale = self.step / len(buffer.updates)
        weights = tuple(
            scale * freshness(staleness(head.version, update.base_version), self.staleness_exponent)
            for update in buffer.updates
        )
        step = weighted_sum([update.delta for update in buffer.updates], weights)
        return Aggregate(head.adapter + step, weights)
