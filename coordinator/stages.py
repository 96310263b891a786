"""What any strategy may add to its step: an anchor on calibration data, and a choice of what nodes serve. Pure.

Each stage is a configuration that is also the computation. Strategies compose them, so that a baseline with an anchor
or a release stage is that baseline's own line plus one field.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from coordinator.equations import anchor_share, anchored_step, ema_decay
from coordinator.questions import Ask, MeasureLosses, TrainAnchor
from coordinator.updates import Aggregate, Choice, Flush, Release
from schemas.adapter import Adapter, weighted_sum
from schemas.messages import AnchorReport

AVERAGE = "average"  # the key of the running average in a strategy's memory


class AnchorStage(BaseModel):
    """The coordinator trains on the calibration set's anchor fold like a node, and counts as `votes` updates."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    votes: float = Field(default=1.0, gt=0, le=100, description="the anchor weighs as much as so many fresh updates")

    def step(self, flush: Flush, mean: Adapter, ask: Ask) -> tuple[Adapter, AnchorReport | None]:
        """B / (B + a) * mean + a / (B + a) * anchor, with B updates and the anchor counting as a.

        `mean` is the weighted mean of the B deltas. Without an anchor fold it is returned as it is.
        """
        if not flush.folds.get("anchor"):
            return mean, None
        trained = ask(TrainAnchor(flush.head.adapter, seed=flush.head.version))
        share = anchor_share(len(flush.buffer.updates), self.votes)
        report = AnchorReport(
            weight=share, loss_before=_finite(trained.loss_before), loss_after=_finite(trained.loss_after)
        )
        return anchored_step(mean, trained.delta, share), report


@dataclass(frozen=True)
class Decision:
    """What a release stage decided, with what it must remember for the next time."""

    release: Release
    average: Adapter | None = None
    memory: Mapping[str, Adapter] = field(default_factory=dict)


class ReleaseStage(BaseModel):
    """What nodes serve: the head itself, a running average of the heads, or what the gate fold likes best."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    choose: Literal["head", "average", "gated"] = Field(
        default="head", description="gated: the best of head, average and what is served, by loss on the gate fold"
    )
    decay: float = Field(default=0.6, ge=0, lt=1, description="of the running average; less in the first versions")

    def decide(self, flush: Flush, head: Adapter, ask: Ask) -> Decision:
        """The decision for a new head. Without a gate fold, gated serves the average."""
        if self.choose == "head":
            return Decision(Release("head"))
        version = flush.head.version + 1
        kept = ema_decay(version, self.decay)
        average = weighted_sum([flush.memory.get(AVERAGE, flush.head.adapter), head], [kept, 1 - kept])
        memory = {AVERAGE: average}
        if self.choose == "average" or not flush.folds.get("gate"):
            return Decision(Release("average"), average, memory)
        answer = ask(MeasureLosses("gate", (flush.served.adapter, head, average)))
        before, new, smooth = map(_finite, answer.losses)
        # the newest first: among equals nodes should serve what has learnt from more of them
        choices: tuple[tuple[Choice, float | None], ...] = (("average", smooth), ("head", new), ("before", before))
        choice = min(choices, key=lambda named: math.inf if named[1] is None else named[1])[0]
        return Decision(Release(choice, head=new, average=smooth, before=before), average, memory)


def conclude(
    flush: Flush,
    mean: Adapter,
    weights: Sequence[float],
    ask: Ask,
    *,
    step: float,
    anchor: AnchorStage | None,
    release: ReleaseStage,
) -> Aggregate:
    """The end that most strategies share: anchor the mean delta, take `step` along it, decide what is served.

    `weights` are those of the updates in `mean`, in canonical order; the aggregate's are absolute, step and anchor
    included.
    """
    anchored, report = anchor.step(flush, mean, ask) if anchor else (mean, None)
    head = flush.head.adapter + anchored * step
    decision = release.decide(flush, head, ask)
    share = step * (1 - report.weight) if report else step
    if report:
        report = report.model_copy(update={"weight": step * report.weight})
    return Aggregate(
        adapter=head,
        weights=tuple(share * weight for weight in weights),
        release=decision.release,
        average=decision.average,
        memory=decision.memory,
        anchor=report,
    )


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None
