"""What all strategies share that make a version of every K updates: their settings, and when they are ready."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from coordinator.equations import freshness
from coordinator.updates import Buffer, Flush
from schemas.messages import MAX_INPUTS, Factors


class BufferOfK(BaseModel):
    """Wait for K updates and weigh each by its freshness; what becomes of them is the strategy's own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    buffer_size: int = Field(default=4, ge=1, le=MAX_INPUTS, description="updates per version: K")
    staleness_exponent: float = Field(default=0.5, ge=0, le=4, description="weight (1 + staleness)^-exponent")
    max_staleness: int = Field(default=100, ge=0, le=100_000, description="staler updates are refused")
    timeout_s: float | None = Field(
        default=600, gt=0, description="aggregate fewer than K updates once one has waited this long"
    )

    one_update_per_version: ClassVar[bool] = False
    needs_base_adapters: ClassVar[bool] = False
    kept_anchors: ClassVar[int] = 0
    trained_factors: ClassVar[Factors] = "both"
    shared_factors: ClassVar[Factors] = "both"

    def is_ready(self, buffer: Buffer) -> bool:
        """Whether K updates wait."""
        return len(buffer.updates) >= self.buffer_size

    def fresh_weights(self, flush: Flush) -> list[float]:
        """freshness(tau_i) / n for each of n updates: absolute, not normalised to one."""
        updates = flush.buffer.updates
        return [freshness(flush.staleness(u), self.staleness_exponent) / len(updates) for u in updates]
