"""FLoRA (Wang et al., arXiv 2409.05976): all factors stacked, so that the sum of the products is exact.

FLoRA sends the stack and merges it into the weights. Here weights stay frozen and the adapter keeps its rank, so the
head is the best approximation of the stack at that rank, by singular values. Its factors are new ones in every version:
they cannot be averaged with those of another, so there is no anchor, no server step and no running average.
"""

from typing import ClassVar, Literal

from coordinator.questions import Ask
from coordinator.stages import AnchorStage, ReleaseStage
from coordinator.strategies.buffer_of_k import BufferOfK
from coordinator.updates import Aggregate, Flush
from schemas.adapter import Adapter
from schemas.products import stack, truncate


class FLoRA(BufferOfK):
    """Stack the head and K weighted changes, then cut the stack to the head's rank."""

    name: Literal["flora"] = "flora"

    needs_base_adapters: ClassVar[bool] = True
    anchor: ClassVar[AnchorStage | None] = None
    release: ClassVar[ReleaseStage] = ReleaseStage()

    def aggregate(self, flush: Flush, ask: Ask) -> Aggregate:
        """The best adapter of the head's rank for B_t A_t + sum_i w_i (B_i A_i - B_v A_v)."""
        weights = self.fresh_weights(flush)
        parts: list[tuple[Adapter, float]] = [(flush.head.adapter, 1.0)]
        for update, weight in zip(flush.buffer.updates, weights, strict=True):
            base = flush.bases[update.base_version]
            parts += [(base + update.delta, weight), (base, -weight)]
        return Aggregate(truncate(stack(parts), flush.head.adapter.layout), tuple(weights))
