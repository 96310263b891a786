"""What all strategies share that make a version of every K updates: their settings, and when they are ready."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from coordinator.equations import cap_totals, freshness
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
    node_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        exclude_if=lambda share: share is None,  # journals of before read as they did
        description="the most of one node: of the K, and of a version's weight, however few have a part in it",
    )

    one_update_per_version: ClassVar[bool] = False
    needs_base_adapters: ClassVar[bool] = False
    kept_anchors: ClassVar[int] = 0
    trained_factors: ClassVar[Factors] = "both"
    shared_factors: ClassVar[Factors] = "both"

    def is_ready(self, buffer: Buffer) -> bool:
        """Whether K updates wait, of one node no more than its share counted."""
        share = 1.0 if self.node_share is None else self.node_share
        return buffer.counted(max(1, int(share * self.buffer_size + 1e-9))) >= self.buffer_size

    def fresh_weights(self, flush: Flush) -> list[float]:
        """freshness(tau_i) / n for each of n updates: absolute, not normalised to one, and no node over its share."""
        updates = flush.buffer.updates
        fresh = [freshness(flush.staleness(u), self.staleness_exponent) / len(updates) for u in updates]
        return self.within_share(flush, fresh)

    def within_share(self, flush: Flush, weights: Sequence[float]) -> list[float]:
        """The weights, where those of a full and fresh buffer are one, with no node's over its share of that."""
        nodes = [update.node for update in flush.buffer.updates]
        return list(weights if self.node_share is None else cap_totals(nodes, weights, self.node_share))
