"""AlignFed, as this project builds it: group, align, weigh, anchor, release.

The three modules of the paper (arXiv 2606.08197) keep their purposes: version-aware grouping, cross-version alignment
on calibration data, fairness by freshness and participation. Its equations as read literally delete what the nodes
agree on; docs/paper.md says where we depart from them and why, docs/log.md what has been measured.
"""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, Literal

from pydantic import Field, model_validator

from coordinator.equations import (
    absolute_weights,
    cap_shares,
    consensus,
    freshness,
    participation_factor,
)
from coordinator.questions import AlignDeltas, Ask
from coordinator.stages import AnchorStage, ReleaseStage
from coordinator.strategies.buffered import Buffered
from coordinator.trust.robust import HeadGuard, Measured, TrustStage, clip_factor, size_of, usual_size
from coordinator.updates import Aggregate, Flush, VersionGroup
from schemas.adapter import Adapter, weighted_sum
from schemas.messages import GroupReport
from schemas.products import transplant

PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"release": {"choose": "gated", "guard": {}}},
    "patient": {"wait": True, "release": {"choose": "gated", "guard": {}}},
    "unlabelled": {"anchor": None, "release": {"choose": "average"}},
}


class AlignFed(Buffered):
    """Five stages, each of which can be switched off."""

    name: Literal["alignfed"] = "alignfed"
    preset: Literal["fast", "patient", "unlabelled"] = Field(
        default="fast",
        description="defaults of all else. patient: nodes wait for the next version; unlabelled: no use of answers",
    )
    step: float = Field(default=2.0, gt=0, le=10, description="server step along the mean delta")
    wait: bool = Field(
        default=False, description="nodes wait for the next version before they train again: better for each upload"
    )
    align: Literal["none", "transplant", "semantic"] = Field(
        default="none", description="how stale deltas are carried over to the head"
    )
    ridge: float = Field(default=0.01, gt=0, le=10, description="of the transplant: pull towards the plain delta")
    staleness_exponent: float = Field(
        default=0.35, ge=0, le=4, description="weight (1 + staleness)^-exponent; with 0.5 slow nodes count too little"
    )
    participation: bool = Field(default=True, description="weigh nodes more that were heard less")
    norm_limit: float | None = Field(
        default=2.0,
        ge=1,
        description="deltas longer than so many times the fleet's median are shortened, longer ones more",
    )
    largest_share: float | None = Field(
        default=0.5, gt=0, le=1, description="of the weights of a version, for one node"
    )
    trust: TrustStage | None = Field(default=TrustStage(), description="leave out nodes that turn against the anchor")
    anchor: AnchorStage | None = Field(default=AnchorStage(), description="train on the calibration set as well")
    release: ReleaseStage = Field(
        default=ReleaseStage(choose="gated", guard=HeadGuard()), description="what nodes serve"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        preset, release = settings.get("preset", "fast"), settings.get("release")
        usual = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
        if isinstance(release, dict):  # half a stage leaves the other half as it was
            settings = settings | {"release": usual.get("release", {}) | release}
        return usual | settings

    @property
    def one_update_per_version(self) -> bool:  # type: ignore[override]
        """A setting here, a fact of the others."""
        return self.wait

    @property
    def needs_base_adapters(self) -> bool:  # type: ignore[override]
        """Only alignment looks back."""
        return self.align != "none"

    @property
    def kept_anchors(self) -> int:  # type: ignore[override]
        """Trust compares stale updates with anchors that are as old."""
        return self.trust.anchors if self.trust and self.anchor else 0

    def aggregate(self, flush: Flush, ask: Ask) -> Aggregate:
        """head + step * (B / (B + a) * sum_i w_i d_i' + a / (B + a) * d_anchor), a being the anchor's freshness."""
        aligned: list[Adapter] = []
        groups: list[GroupReport] = []
        for group in flush.buffer.groups:
            deltas, report = self._align(flush, group, ask)
            aligned += deltas
            groups.append(report)
        measured = self._measure(flush, aligned)
        weights = self._weigh(flush, measured)
        mean = weighted_sum(aligned, weights)
        aggregate = self.conclude(flush, mean, weights)
        return replace(aggregate, groups=tuple(groups), measured=measured, distrusted=self._distrusted(flush, measured))

    def _align(self, flush: Flush, group: VersionGroup, ask: Ask) -> tuple[Sequence[Adapter], GroupReport]:
        """The group's deltas, carried over to the head if they are stale, and what is to be said of them."""
        deltas = tuple(update.delta for update in group.updates)
        report = GroupReport(base_version=group.base_version, updates=len(deltas), cosine=_agreement(deltas))
        if self.align == "none" or group.base_version == flush.head.version:
            return deltas, report
        base, head = flush.bases[group.base_version], flush.head.adapter
        if self.align == "transplant":
            return tuple(transplant(head, base, delta, self.ridge) for delta in deltas), report
        if not flush.folds.get("anchor"):
            return deltas, report
        answer = ask(AlignDeltas("semantic", base, head, deltas))
        residuals = {
            "residual_before": answer.residual_before,
            "residual_after": answer.residual_after,
            "seconds": answer.seconds,
        }
        is_better = answer.residual_after < answer.residual_before
        return answer.deltas if is_better else deltas, report.model_copy(update=residuals)

    def _measure(self, flush: Flush, aligned: Sequence[Adapter]) -> tuple[Measured, ...]:
        """Size after alignment, and cosine to the anchor of its base version as the node sent it."""
        measured = []
        for update, delta in zip(flush.buffer.updates, aligned, strict=True):
            anchor = flush.anchors.get(update.base_version) if self.trust else None
            cosine = update.delta.cosine(anchor) if anchor is not None else None
            measured.append(Measured(size_of(flush.head.adapter, delta), cosine))
        return tuple(measured)

    def _trusted(self, flush: Flush, measured: Sequence[Measured]) -> list[float]:
        """What trust leaves of each update's weight."""
        if self.trust is None:
            return [1.0] * len(measured)
        nodes = [update.node for update in flush.buffer.updates]
        return self.trust.factors(flush.standings, nodes, measured, flush.probation)

    def _distrusted(self, flush: Flush, measured: Sequence[Measured]) -> frozenset[str]:
        factors = zip(flush.buffer.updates, self._trusted(flush, measured), strict=True)
        return frozenset(update.update_id for update, factor in factors if factor == 0)

    def _weigh(self, flush: Flush, measured: Sequence[Measured]) -> tuple[float, ...]:
        """Freshness times participation over B; less for long or hostile deltas, and for a node that would dominate."""
        updates = flush.buffer.updates
        mean_count = fmean(flush.participation.values()) if flush.participation else 0.0
        heard = [
            participation_factor(flush.participation.get(u.node, 0), mean_count) if self.participation else 1.0
            for u in updates
        ]
        fresh = [freshness(flush.staleness(u), self.staleness_exponent) for u in updates]
        weights = absolute_weights(fresh, heard)
        weights = tuple(w * factor for w, factor in zip(weights, self._trusted(flush, measured), strict=True))
        if self.largest_share is not None:
            weights = cap_shares([update.node for update in updates], weights, self.largest_share)
        capped = self.within_share(flush, weights)
        # last: an overlong delta must not make its node look light, and the others' shares look large
        return tuple(weight * clip for weight, clip in zip(capped, self._clips(flush, measured), strict=True))

    def _clips(self, flush: Flush, measured: Sequence[Measured]) -> list[float]:
        """What to shorten each delta to."""
        if self.norm_limit is None:
            return [1.0] * len(measured)
        sizes = [one.size for one in measured]
        anchor = flush.anchors[max(flush.anchors)] if self.trust and flush.anchors else None
        own = size_of(flush.head.adapter, anchor) if anchor is not None else None
        usual = usual_size(flush.standings, [update.node for update in flush.buffer.updates], sizes, own)
        return [clip_factor(size, usual, self.norm_limit) for size in sizes]


def _agreement(deltas: Sequence[Adapter]) -> float | None:
    """Mean cosine of the deltas to their mean; None for one alone, or where there is nothing to compare."""
    if len(deltas) < 2:
        return None
    mean = consensus(deltas)
    cosines = [delta.cosine(mean) for delta in deltas]
    return fmean(cosines)
