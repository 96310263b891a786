"""FLoRA (Wang et al., arXiv 2409.05976): all factors stacked, so that the sum of the products is exact.

FLoRA sends the stack and merges it into the weights. Here weights stay frozen and the adapter keeps its rank, so the
head is the best approximation of the stack at that rank, by singular values. Its factors are new ones in every version:
they cannot be averaged with those of another, so there is no anchor, no server step and no running average.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from coordinator.equations import freshness
from coordinator.questions import Ask
from coordinator.updates import Aggregate, Buffer, Flush
from schemas.adapter import Adapter
from schemas.messages import MAX_INPUTS, Factors
from schemas.products import stack, truncate


class FLoRA(BaseModel):
    """Stack the head and K weighted changes, then cut the stack to the head's rank."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["flora"] = "flora"
    buffer_size: int = Field(default=4, ge=1, le=MAX_INPUTS, description="updates per version: K")
    staleness_exponent: float = Field(default=0.5, ge=0, le=4, description="weight (1 + staleness)^-exponent")
    max_staleness: int = Field(default=100, ge=0, le=100_000, description="staler updates are refused")
    timeout_s: float | None = Field(default=600, gt=0, description="aggregate fewer once one has waited this long")

    one_update_per_version: ClassVar[bool] = False
    needs_base_adapters: ClassVar[bool] = True
    trained_factors: ClassVar[Factors] = "both"
    shared_factors: ClassVar[Factors] = "both"

    def is_ready(self, buffer: Buffer) -> bool:
        """Whether K updates wait."""
        return len(buffer.updates) >= self.buffer_size

    def aggregate(self, flush: Flush, ask: Ask) -> Aggregate:
        """The best adapter of the head's rank for B_t A_t + sum_i w_i (B_i A_i - B_v A_v)."""
        updates = flush.buffer.updates
        weights = tuple(freshness(flush.staleness(u), self.staleness_exponent) / len(updates) for u in updates)
        parts: list[tuple[Adapter, float]] = [(flush.head.adapter, 1.0)]
        for update, weight in zip(updates, weights, strict=True):
            base = flush.bases[update.base_version]
            parts += [(base + update.delta, weight), (base, -weight)]
        return Aggregate(truncate(stack(parts), flush.head.adapter.layout), weights)
