"""Published ways to combine deltas that may be lies, each as small as it is, in alignfed's own pipeline.

All share buffer, weights by freshness and participation, anchor, server step and averaged release with `alignfed`; what
differs is how the deltas of one buffer become one. Nothing here is part of the product.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from coordinator.questions import Ask
from coordinator.stages import ReleaseStage
from coordinator.strategies import AlignFed
from coordinator.updates import Aggregate, Flush
from schemas.adapter import Adapter, weighted_sum

UNPROTECTED: dict[str, Any] = {
    "norm_limit": None,
    "largest_share": None,
    "trust": None,
    "release": ReleaseStage(choose="average"),
}


class Krum(AlignFed):
    """The delta that is nearest to its neighbours (Blanchard et al., arXiv 1703.02757)."""

    def aggregate(self, flush: Flush, ask: Ask) -> Aggregate:
        """One update has all the weight of the buffer."""
        deltas, total = [u.delta for u in flush.buffer.updates], sum(self.fresh_weights(flush))
        chosen = krum(deltas, liars=max(1, len(deltas) // 4))
        weights = [total if place == chosen else 0.0 for place in range(len(deltas))]
        return self.conclude(flush, weighted_sum(deltas, weights), weights)


class TrimmedMean(AlignFed):
    """Each coordinate's mean without the largest and the smallest quarter (Yin et al., arXiv 1803.01498)."""

    def aggregate(self, flush: Flush, ask: Ask) -> Aggregate:
        """The trimmed mean, as long as the buffer's weights sum up to."""
        weights = self.fresh_weights(flush)
        mean = trimmed_mean([u.delta for u in flush.buffer.updates], len(weights) // 4)
        return self.conclude(flush, mean * sum(weights), weights)


class FLTrust(AlignFed):
    """Deltas as long as the anchor, weighted by their cosine to it where that is positive (arXiv 2012.13995)."""

    def aggregate(self, flush: Flush, ask: Ask) -> Aggregate:
        """Without an anchor there is nothing to trust, and nothing is taken."""
        updates, anchor = flush.buffer.updates, flush.anchor
        trust = [max(0.0, u.delta.cosine(anchor.delta)) if anchor else 0.0 for u in updates]
        total = sum(trust)
        weights = [
            share / total * anchor.delta.norm / u.delta.norm if anchor and total and u.delta.norm else 0.0
            for u, share in zip(updates, trust, strict=True)
        ]
        return self.conclude(flush, weighted_sum([u.delta for u in updates], weights), weights)


def krum(deltas: Sequence[Adapter], liars: int) -> int:
    """The place of the delta with the smallest sum of squared distances to its n - liars - 2 nearest, at least one."""
    near = max(1, len(deltas) - liars - 2)
    apart = [[(one - other).norm ** 2 for other in deltas] for one in deltas]
    scores = [sum(sorted(row)[1 : near + 1]) for row in apart]
    return scores.index(min(scores))


def trimmed_mean(deltas: Sequence[Adapter], trimmed: int) -> Adapter:
    """The mean of each coordinate without its `trimmed` largest and smallest values."""
    ordered = np.sort(np.stack([delta.values for delta in deltas]).astype(np.float64), axis=0)
    kept = ordered[trimmed : len(deltas) - trimmed]
    return Adapter(deltas[0].layout, kept.mean(axis=0).astype(np.float32))


def rules(**settings: Any) -> dict[str, AlignFed]:
    """Every rule by name, with these settings for all; `ours` is the product as it comes."""
    plain = UNPROTECTED | settings
    return {
        "mean": AlignFed(**plain),
        "clipping": AlignFed(**plain | {"norm_limit": 1.0}),
        "krum": Krum(**plain),
        "trimmed mean": TrimmedMean(**plain),
        "fltrust": FLTrust(**plain),
        "ours": AlignFed(**settings),
    }
