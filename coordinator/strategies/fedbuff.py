"""FedBuff (Nguyen et al., arXiv 2106.06639): asynchronous, a version for every K updates."""

from typing import Literal

from coordinator.questions import Ask
from coordinator.strategies.buffered import Buffered
from coordinator.updates import Aggregate, Flush
from schemas.adapter import weighted_sum


class FedBuff(Buffered):
    """Buffer K updates, then take a step along the mean of their deltas, each discounted by its staleness."""

    name: Literal["fedbuff"] = "fedbuff"

    def aggregate(self, flush: Flush, ask: Ask) -> Aggregate:
        """head + step / n * sum_i freshness(tau_i) * delta_i."""
        weights = self.fresh_weights(flush)
        mean = weighted_sum([update.delta for update in flush.buffer.updates], weights)
        return self.conclude(flush, mean, weights)
