"""What keeps one update, or one node, from deciding too much: bounds, trust, and the way back from a bad head. Pure.

Everything here is measured against what the coordinator holds itself: the sizes of what it has taken from all nodes,
the anchors it has trained on its own examples, and the gate fold. Nothing is taken from a claim.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from schemas.adapter import Adapter
from schemas.products import Reach, reach


class DeltaSize(NamedTuple):
    """How long a delta is, and how far it can move the products B A of a head."""

    norm: float
    reach: Reach


class Measured(NamedTuple):
    """What was measured of one update when a version was made of it; no cosine without an anchor to compare with."""

    size: DeltaSize
    cosine: float | None = None


@dataclass(frozen=True)
class Standing:
    """What the coordinator remembers of a node's updates: the size of the latest, and how they agree with anchors."""

    size: DeltaSize
    agreement: float = 0.0  # mean cosine to the anchors of the same base versions
    compared: int = 0  # updates in that mean

    def after(self, measured: Measured) -> "Standing":
        """The standing with one more update in it; the mean forgets, so that a node can mend its ways."""
        if measured.cosine is None:
            return Standing(measured.size, self.agreement, self.compared)
        count = min(self.compared + 1, REMEMBERED)
        return Standing(measured.size, self.agreement + (measured.cosine - self.agreement) / count, self.compared + 1)


REMEMBERED = 8  # updates that a node's agreement is the mean of, about
MOST, SOME = 1 / 2, 1 / 4  # of the nodes: more than MOST make the anchor a measure, SOME make it no accident
PLAUSIBLE = 20  # times shorter or longer than the anchor may be what measures others
FLEET = 3  # nodes; of fewer there is no majority
Standings = Mapping[str, Standing]


class TrustStage(BaseModel):
    """Updates that turn against what the coordinator's own examples teach count for less, or not at all.

    A node's updates are compared with the anchors of the same base versions: against those of another version an honest
    stale update looks hostile. One update says little, unless it points backwards: a node's mean over several is what
    excludes it, and only where the anchor is a measure that most nodes agree with: where it is not, the calibration set
    is unlike the fleet. What points backwards is left out where some nodes agree: an anchor that has nothing to do with
    what the fleet learns is at right angles to it, and neither along nor against; and unless more nodes go on pointing
    backwards than agree. While the head is on probation every update has to prove itself, as in FLTrust (Cao et al.,
    arXiv 2012.13995).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    anchors: int = Field(default=16, ge=1, le=1000, description="of the latest versions, kept to compare updates with")
    after: int = Field(
        default=2, ge=1, le=1000, description="updates of a node that are compared before its mean can exclude it"
    )
    least: float = Field(
        default=-0.05, ge=-1, le=1, description="mean cosine under which a node's updates are not used"
    )
    backwards: float = Field(
        default=-0.3, ge=-1, lt=0, description="cosine under which a single update is not used, from the first one on"
    )
    fleet: float = Field(
        default=0.05, ge=-1, le=1, description="agreement that most nodes need for the anchor to be a measure of others"
    )
    caution: float = Field(default=0.3, gt=0, le=1, description="weight on probation of what cannot be compared")

    def factors(
        self, standings: Standings, nodes: Sequence[str], measured: Sequence[Measured], probation: bool
    ) -> list[float]:
        """What to multiply each update's weight by; `standings` are those of all nodes without these updates."""
        after = standings_after(standings, nodes, measured)
        compared = [standing for standing in after.values() if standing.compared]
        is_measure = _share(standing.agreement >= self.fleet for standing in compared) > MOST
        has_backwards = self._has_backwards(compared)
        return [
            self._factor(after[node], one.cosine, is_measure, has_backwards, probation)
            for node, one in zip(nodes, measured, strict=True)
        ]

    def _has_backwards(self, compared: Sequence[Standing]) -> bool:
        """Whether some nodes agree with the anchor as clearly as others turn against it, and not fewer than those."""
        agree = [standing.agreement >= -self.backwards for standing in compared]
        against = sum(one.agreement < self.backwards and one.compared >= self.after for one in compared)
        return _share(agree) >= SOME and sum(agree) >= against

    def _factor(
        self, standing: Standing, cosine: float | None, is_measure: bool, has_backwards: bool, probation: bool
    ) -> float:
        if is_measure and standing.compared >= self.after and standing.agreement < self.least:
            return 0.0
        if has_backwards and cosine is not None and cosine < self.backwards:
            return 0.0
        if not probation:
            return 1.0
        return self.caution if cosine is None or not is_measure else max(0.0, cosine)


class HeadGuard(BaseModel):
    """When the head goes back to what nodes serve: the gate found the newest average clearly worse."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rise: float = Field(default=0.05, ge=0, le=10, description="of the gate loss, relative to what is served")
    slack: float = Field(default=0.01, ge=0, le=10, description="nats on top of that")
    probation: int = Field(
        default=4, ge=1, le=10_000, description="versions after a return for which updates have to prove themselves"
    )

    def alarms(self, before: float, candidate: float) -> bool:
        """Whether a candidate is so much worse than what is served that the head cannot be trusted."""
        return math.isfinite(before) and not candidate <= self.tolerated(before)

    def tolerated(self, before: float) -> float:
        """The highest loss that raises no alarm, after this one."""
        return (1 + self.rise) * before + self.slack

    def probation_after(self, returns: int) -> int:
        """Versions of probation after so many returns: it doubles each time, up to 64 times."""
        return self.probation << min(max(returns - 1, 0), 6)


def size_of(head: Adapter, delta: Adapter) -> DeltaSize:
    """A delta's norm, and how far it can move the products of the head."""
    return DeltaSize(delta.norm, reach(head, delta))


def usual_size(
    standings: Standings, nodes: Sequence[str], sizes: Sequence[DeltaSize], own: DeltaSize | None = None
) -> tuple[float, float]:
    """The lower medians over all nodes of their latest delta's norm and reach, those in the buffer included.

    One vote for each node, however often it sends: a buffer of few updates can be full of attackers, a fleet cannot.
    `own` is the newest anchor's size. What is next to nothing beside it, or absurdly long, has no vote: the first nodes
    to send may be liars, and would say how far all others may go. From the third node on it has a vote itself.
    """
    latest = {node: standing.size for node, standing in standings.items()} | dict(zip(nodes, sizes, strict=True))
    votes = list(latest.values())
    if own is not None:
        plausible = [size for size in votes if own.norm <= PLAUSIBLE * size.norm and size.norm <= PLAUSIBLE * own.norm]
        votes = [*plausible, own] if len(latest) >= FLEET else plausible or votes
    return median_low(size.norm for size in votes), median_low(size.reach.whole for size in votes)


def clip_factor(size: DeltaSize, usual: tuple[float, float], limit: float) -> float:
    """What to multiply a delta by, so that neither its norm nor its reach gains by being over `limit` times the usual.

    Up to the limit it is left as it is; beyond it, the longer it is the shorter it becomes, down to the usual.
    Shortened to the limit, whoever exaggerates would count for so many times as much as the honest.
    """
    norm, whole = usual
    times = max(_ratio(size.norm, norm), _ratio(size.reach.whole, whole))
    if times <= limit:
        return 1.0
    left = max(1.0, limit**2 / times)
    by_norm = min(1.0, left * norm / size.norm) if size.norm else 1.0
    most = left * whole
    return by_norm if size.reach.whole <= most else min(by_norm, _share_within(size.reach, most))


def _ratio(length: float, usual: float) -> float:
    return length / usual if usual else math.inf if length else 0.0


def _share_within(reach: Reach, bound: float) -> float:
    """The c with c linear + c^2 square = bound; 0 where nothing is allowed, as where most nodes send nothing at all."""
    both = reach.linear + math.sqrt(reach.linear**2 + 4 * reach.square * bound)
    return 2 * bound / both if both else 0.0


def standings_after(standings: Standings, nodes: Sequence[str], measured: Sequence[Measured]) -> dict[str, Standing]:
    """Every node's standing with these updates, in the order given, in it."""
    after = dict(standings)
    for node, one in zip(nodes, measured, strict=True):
        before = after.get(node) or Standing(one.size)
        after[node] = before.after(one)
    return after


def _share(of: Iterable[bool]) -> float:
    """How many of them are true; 0 of none."""
    all_ = list(of)
    return sum(all_) / len(all_) if all_ else 0.0


def newest(anchors: Mapping[int, Adapter], count: int) -> dict[int, Adapter]:
    """The anchors of the latest so many versions that have one."""
    return {version: anchors[version] for version in sorted(anchors)[-count:]}
