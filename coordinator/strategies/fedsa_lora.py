"""FedSA-LoRA (Guo et al., arXiv 2410.01463): nodes train both factors and share A; each keeps a B of its own.

What is served by a node is the shared A with its own B, so the global adapter alone answers like the base model: its B
is zero. Here in FedBuff's buffer, asynchronously.
"""

from typing import ClassVar, Literal

from coordinator.questions import Ask
from coordinator.strategies.buffered import Buffered
from coordinator.updates import Aggregate, Flush
from schemas.adapter import weighted_sum
from schemas.messages import Factors


class FedSALora(Buffered):
    """FedBuff over A alone."""

    name: Literal["fedsa_lora"] = "fedsa_lora"

    shared_factors: ClassVar[Factors] = "A"

    def aggregate(self, flush: Flush, ask: Ask) -> Aggregate:
        """head + step / n * sum_i freshness(tau_i) * delta_i, of A alone."""
        weights = self.fresh_weights(flush)
        mean = weighted_sum([update.delta.only("A") for update in flush.buffer.updates], weights)
        return self.conclude(flush, mean, weights)
