"""When nodes overrule the gate: calibration data that is unlike the fleet keeps good versions from being served. Pure.

An update may say how well the version it was trained from answers examples that its node never trains on. One node's
word decides nothing: many nodes must have found, most of them, each by itself, that what came after the adapter that is
served is better, and the gate must have turned down version after version.
"""

from collections.abc import Iterable, Mapping
from statistics import median_high

from pydantic import BaseModel, ConfigDict, Field

KEPT_REPORTS = 16  # of one node


class FallBack(BaseModel):
    """The `release.fall_back` setting: serve what the gate turns down, where nodes find it better."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    after: int = Field(default=4, ge=1, le=1000, description="judgements in a row that turned a version down")
    nodes: int = Field(default=3, ge=1, le=10_000, description="who can compare, at least")
    quorum: float = Field(
        default=0.4,
        gt=0,
        le=1,
        description="of all that can say how good what is served is: half as many can lie in vain",
    )
    gain: float = Field(default=0.02, ge=0, lt=1, description="of the nodes' held-out loss: the median, relative")

    def overrules(self, turned_down: int, served: int, reports: Iterable[Mapping[int, float]]) -> bool:
        """Whether the nodes' word counts for more than the gate's.

        `turned_down` judgements in a row went against a version, this one included; `served` is the version whose
        adapter is served; `reports` are held-out losses by version, of each node whose word counts.
        """
        heard = [
            one for one in reports if any(version <= served for version in one)
        ]  # others joined too late to compare
        gains = [gain for one in heard if (gain := gain_since(served, one)) is not None]
        enough = len(gains) >= max(self.nodes, self.quorum * len(heard))
        return turned_down >= self.after and enough and median_high([-gain for gain in gains]) <= -self.gain


def gain_since(served: int, reports: Mapping[int, float]) -> float | None:
    """How much lower a node's held-out loss is on the newest version than on what is served, as a share of that.

    None for a node that has not reported on both sides.
    """
    before = max((version for version in reports if version <= served), default=None)
    newest = max(reports, default=served)
    if before is None or newest <= served:
        return None
    return 1 - reports[newest] / reports[before] if reports[before] else 0.0


def with_report(reports: Mapping[int, float], version: int, loss: float, served: int) -> dict[int, float]:
    """A node's reports with one more; what neither side of `served` needs any more is forgotten."""
    known = {**reports, version: loss}
    first = max((old for old in known if old <= served), default=min(known))
    oldest, *others = sorted(old for old in known if old >= first)
    return {old: known[old] for old in (oldest, *others[1 - KEPT_REPORTS :])}
