"""FedEx-LoRA's aim (Singhal et al., arXiv 2410.09432): the mean of the products B·A instead of the mean of the factors.

FedEx-LoRA adds what averaging the factors misses to the frozen weights. Here those stay frozen on every node, so the
head becomes the adapter of its own rank whose products are nearest to the exact sum, and near the factors' mean.
"""

from typing import ClassVar, Literal

from pydantic import Field

from coordinator.questions import Ask
from coordinator.strategies.buffered import Buffered
from coordinator.updates import Aggregate, Flush
from schemas.products import mean_product


class FedEx(Buffered):
    """FedBuff on products."""

    name: Literal["fedex"] = "fedex"
    ridge: float = Field(default=0.01, gt=0, le=10, description="pull towards the factors' own mean")

    needs_base_adapters: ClassVar[bool] = True

    def aggregate(self, flush: Flush, ask: Ask) -> Aggregate:
        """The head whose products are nearest to B_t A_t + sum_i w_i (B_i A_i - B_v A_v)."""
        weights = self.fresh_weights(flush)
        parts = [
            (flush.bases[update.base_version], update.delta, weight)
            for update, weight in zip(flush.buffer.updates, weights, strict=True)
        ]
        head, _ = mean_product(flush.head.adapter, parts, self.ridge)
        return self.conclude(flush, head - flush.head.adapter, weights)
