"""FedAsync (Xie et al., arXiv 1903.03934): asynchronous, a version for every single update."""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from coordinator.equations import freshness
from coordinator.questions import Ask
from coordinator.stages import AnchorStage, ReleaseStage
from coordinator.updates import Aggregate, Buffer, Flush
from schemas.adapter import weighted_sum
from schemas.messages import Factors


class FedAsync(BaseModel):
    """Mix each node's whole adapter into the global one, less the staler it is."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["fedasync"] = "fedasync"
    mixing: float = Field(default=0.6, gt=0, le=1, description="share of a fresh node's adapter: alpha")
    staleness_exponent: float = Field(default=0.5, ge=0, le=4, description="share falls as (1 + staleness)^-exponent")
    max_staleness: int = Field(default=20, ge=0, le=1000, description="staler updates are refused; that many are kept")
    release: ReleaseStage = Field(default=ReleaseStage(), description="what nodes serve")

    anchor: ClassVar[AnchorStage | None] = None
    timeout_s: ClassVar[float | None] = None
    one_update_per_version: ClassVar[bool] = False
    needs_base_adapters: ClassVar[bool] = True
    kept_anchors: ClassVar[int] = 0
    trained_factors: ClassVar[Factors] = "both"
    shared_factors: ClassVar[Factors] = "both"

    def is_ready(self, buffer: Buffer) -> bool:
        """Whether any update waits."""
        return bool(buffer.updates)

    def aggregate(self, flush: Flush, ask: Ask) -> Aggregate:
        """(1 - a) * head + a * (base + delta) with a = mixing * freshness(tau), one update after the other."""
        adapter, weights = flush.head.adapter, []
        for update in flush.buffer.updates:
            share = self.mixing * freshness(flush.staleness(update), self.staleness_exponent)
            local = flush.bases[update.base_version] + update.delta
            adapter = weighted_sum([adapter, local], [1 - share, share])
            weights.append(share)
        return Aggregate(adapter, tuple(weights))
