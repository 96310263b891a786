"""FFA-LoRA (Sun et al., arXiv 2403.12313): A stays as it was drawn, nodes train and share B alone.

With one A for all, the mean of the B is exactly the mean of the products. Here in FedBuff's buffer, asynchronously.
"""

from typing import ClassVar, Literal

from coordinator.questions import Ask
from coordinator.strategies.buffered import Buffered
from coordinator.updates import Aggregate, Flush
from schemas.adapter import weighted_sum
from schemas.messages import Factors


class FFALora(Buffered):
    """FedBuff over B alone."""

    name: Literal["ffa_lora"] = "ffa_lora"

    trained_factors: ClassVar[Factors] = "B"
    shared_factors: ClassVar[Factors] = "B"

    def aggregate(self, flush: Flush, ask: Ask) -> Aggregate:
        """head + step / n * sum_i freshness(tau_i) * delta_i, of B alone, whatever a node says of A."""
        weights = self.fresh_weights(flush)
        mean = weighted_sum([update.delta.only("B") for update in flush.buffer.updates], weights)
        return self.conclude(flush, mean, weights)
