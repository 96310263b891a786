"""AlignFed (arXiv 2606.08197) read literally, equations (5) to (8). It cannot learn, and is here to show so.

Centring inside a version group takes out what its nodes agree on, which is what they have learnt: a group of one
becomes zero, and equally weighted deltas cancel. docs/paper.md has the algebra; `alignfed` is what we make of its
purposes.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from coordinator.equations import centre, literal_weights
from coordinator.questions import AlignDeltas, Ask
from coordinator.strategies.buffered import Buffered
from coordinator.updates import Aggregate, Flush
from schemas.adapter import Adapter, weighted_sum


class AlignFedLiteral(Buffered):
    """Centre, align with linear maps, weigh within the buffer, add."""

    name: Literal["alignfed_literal"] = "alignfed_literal"
    gamma: float = Field(default=0.2, ge=0, le=10, description="freshness falls as exp(-gamma * staleness)")

    needs_base_adapters: ClassVar[bool] = True

    def aggregate(self, flush: Flush, ask: Ask) -> Aggregate:
        """theta + sum_i w_i T_v(d_i - mean of its group), with w normalised over the buffer; norms from before T."""
        centred = [centre([update.delta for update in group.updates]) for group in flush.buffer.groups]
        updates = flush.buffer.updates
        weights = literal_weights(
            [flush.staleness(update) for update in updates],
            [delta.norm for group in centred for delta in group],
            [flush.participation.get(update.node, 1) for update in updates],
            self.gamma,
        )
        weights = tuple(self.within_share(flush, weights))
        aligned = list(self._aligned(flush, centred, ask))
        return self.conclude(flush, weighted_sum(aligned, weights), weights)

    def _aligned(self, flush: Flush, centred: list[tuple[Adapter, ...]], ask: Ask) -> Iterator[Adapter]:
        for group, deltas in zip(flush.buffer.groups, centred, strict=True):
            base = flush.bases[group.base_version]
            if group.base_version == flush.head.version or not flush.folds.get("anchor"):
                yield from deltas
            else:
                yield from ask(AlignDeltas("literal", base, flush.head.adapter, deltas)).deltas
