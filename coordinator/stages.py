"""What any strategy may add to its step: an anchor on calibration data, and a choice of what nodes serve. Pure.

Each stage is a configuration that is also the computation. Strategies compose them, so that a baseline with an anchor
or a release stage is that baseline's own line plus one field. No version waits for either: the anchor is trained and
what is served is judged while updates come in (background.py).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from coordinator.equations import anchor_share, anchored_step, ema_decay, freshness
from coordinator.fall_back import FallBack
from coordinator.questions import Fold, MeasuredLosses
from coordinator.trust.robust import HeadGuard
from coordinator.updates import Aggregate, AnchorUpdate, Flush
from schemas.adapter import Adapter, weighted_sum
from schemas.messages import AnchorReport, Variant


class AnchorStage(BaseModel):
    """The coordinator trains on the calibration set's anchor fold like a node, and counts as `votes` updates."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    votes: float = Field(default=1.0, gt=0, le=100, description="the anchor weighs as much as so many fresh updates")
    staleness_exponent: float = Field(default=0.5, ge=0, le=4, description="its weight is (1 + staleness)^-exponent")

    def step(self, flush: Flush, mean: Adapter) -> tuple[Adapter, AnchorReport | None]:
        """B / (B + a) * mean + a / (B + a) * anchor, with B updates and the anchor counting as a.

        `mean` is the weighted mean of the B deltas. Without an anchor it is returned as it is.
        """
        anchor = flush.anchor
        if anchor is None:
            return mean, None
        fresh = freshness(flush.head.version - anchor.base_version, self.staleness_exponent)
        share = anchor_share(len(flush.buffer.updates), self.votes * fresh)
        return anchored_step(mean, anchor.delta, share), report_of(anchor, share)


class ReleaseStage(BaseModel):
    """What nodes serve: the head itself, a running average of the heads, or the average where the gate lets it pass."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    choose: Literal["head", "average", "gated"] = Field(
        default="head", description="gated: the average, if its loss on the gate fold is no worse than what is served"
    )
    decay: float = Field(default=0.6, ge=0, lt=1, description="of the running average; less in the first versions")
    guard: HeadGuard | None = Field(
        default=None, description="where gated: take the head back to what is served when the average gets much worse"
    )

    fall_back: FallBack | None = Field(
        default=None, description="where gated: serve what the gate turns down again and again and nodes find better"
    )

    @property
    def variant(self) -> Variant:
        """Which of a version's adapters may be served."""
        return "head" if self.choose == "head" else "average"

    def asks(self, folds: Mapping[Fold, int]) -> bool:
        """Whether the base model judges; without a gate fold, gated serves the average."""
        return self.choose == "gated" and bool(folds.get("gate"))

    def average(self, before: Adapter, head: Adapter, version: int) -> Adapter:
        """The running average with the head of this version in it."""
        kept = ema_decay(version, self.decay)
        return weighted_sum([before, head], [kept, 1 - kept])


def passes_gate(answer: MeasuredLosses) -> bool:
    """Whether the candidate is no worse than what is served; `losses` are that of the one served, then the other."""
    before, candidate = answer.losses
    return math.isfinite(candidate) and (candidate <= before or not math.isfinite(before))


def conclude(
    flush: Flush, mean: Adapter, weights: Sequence[float], *, step: float, anchor: AnchorStage | None
) -> Aggregate:
    """The end that most strategies share: anchor the mean delta and take `step` along it.

    `weights` are those of the updates in `mean`, in canonical order; the aggregate's are absolute, step and anchor
    included.
    """
    anchored, report = anchor.step(flush, mean) if anchor else (mean, None)
    share = step * (1 - report.weight) if report else step
    if report:
        report = report.model_copy(update={"weight": step * report.weight})
    return Aggregate(
        adapter=flush.head.adapter + anchored * step,
        weights=tuple(share * weight for weight in weights),
        anchor=report,
    )


def report_of(anchor: AnchorUpdate, weight: float) -> AnchorReport:
    """What a manifest says of an anchor that weighs so much in the step."""
    return AnchorReport(
        base_version=anchor.base_version,
        weight=weight,
        loss_before=finite(anchor.loss_before),
        loss_after=finite(anchor.loss_after),
        seconds=anchor.seconds,
    )


def finite(loss: float) -> float | None:
    """A loss as messages carry it: None for one that is infinite or not a number."""
    return loss if math.isfinite(loss) else None
