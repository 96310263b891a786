"""What the coordinator keeps of one node: what it took, what it refused and why, and what still arrives. Pure.

It is the coordinator's own count: nothing in it is taken from a claim, but `held_out`, which is one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict

from coordinator.trust.robust import Standing
from schemas.chunks import Assembly
from schemas.messages import UpdateManifest

Refusal = Literal[
    "unreadable", "another node", "another federation", "unknown version", "stale", "quota", "too large", "quarantined",
    "distrusted", "overflow", "finished", "revoked", "poison",
]  # fmt: skip

ALARM_SHARE = 0.2  # of a node's decided updates refused: above it somebody should look
ALARM_AFTER = 5  # decided updates; one bad one of two says nothing
HOUR_NS = 3600 * 1_000_000_000
_CHUNK_OVERHEAD = 200  # bytes that a chunk, or its hash in a manifest, takes beside its content


@dataclass(frozen=True)
class PartialUpdate:
    """An update that is still arriving; chunks may come before their manifest."""

    started_at_ns: int
    touched_at_ns: int
    assembly: Assembly = field(default_factory=Assembly)
    manifest: UpdateManifest | None = None
    asked: int = 0  # questions for missing chunks since the last one arrived

    @property
    def held(self) -> int:
        """Bytes of memory that this takes, overhead included."""
        announced = len(self.manifest.body.chunks) if self.manifest else 0
        return self.assembly.held + _CHUNK_OVERHEAD * (1 + announced + len(self.assembly.parts))

    def no_later_than(self, at_ns: int) -> "PartialUpdate":
        """The same on a clock that shows this time."""
        return replace(self, started_at_ns=min(self.started_at_ns, at_ns), touched_at_ns=min(self.touched_at_ns, at_ns))


@dataclass(frozen=True)
class Accepted:
    """What became of an accepted update; `version` is None while it waits in the buffer."""

    base_version: int
    version: int | None = None


@dataclass(frozen=True)
class NodeLedger:
    """The coordinator's own count of one node's doings."""

    participation: int = 0
    accepted: Mapping[str, Accepted] = field(default_factory=dict)
    partial: Mapping[str, PartialUpdate] = field(default_factory=dict)
    refused: tuple[str, ...] = ()  # the latest few ids, so that their late chunks are not collected
    refusals: Mapping[Refusal, int] = field(default_factory=dict)  # every one, those of accepted updates too
    late: int = 0  # of these, refusals of updates that were accepted first, and so count as participation too
    last_refusal: str | None = None  # the reason that the node was told
    overclaimed: int = 0  # updates that claimed more participation than is counted here
    hour: int = 0  # since 1970, of the latest update that was decoded
    decoded: int = 0  # in that hour
    standing: Standing | None = None  # from its first update in a version on
    quarantine: str | None = None  # why nothing is taken from this node
    held_out: Mapping[int, float] = field(default_factory=dict)  # what it says of versions; see fall_back.py
    privacy_loss: float = 0.0  # of all its updates that are in versions; see coordinator/privacy

    @property
    def partial_bytes(self) -> int:
        """Bytes of memory held for this node's incomplete updates."""
        return sum(partial.held for partial in self.partial.values())

    @property
    def is_empty(self) -> bool:
        """Whether nothing but refusals would be lost by forgetting this node."""
        return not (self.participation or self.accepted or self.partial or self.quarantine)

    @property
    def decided(self) -> int:
        """Updates that were accepted or refused; those refused after they had been accepted count once."""
        refused = sum(self.refusals.values())
        return max(refused, self.participation + refused - self.late)

    @property
    def refused_share(self) -> float:
        """Refused updates of all that were decided."""
        return sum(self.refusals.values()) / self.decided if self.decided else 0.0

    @property
    def alarm(self) -> bool:
        """Whether so many of its updates are refused that somebody should find out why."""
        return self.decided >= ALARM_AFTER and self.refused_share > ALARM_SHARE

    def with_refusal(self, kind: Refusal, reason: str) -> "NodeLedger":
        """One more refusal, with the reason that the node is told."""
        return replace(self, refusals={**self.refusals, kind: self.refusals.get(kind, 0) + 1}, last_refusal=reason)

    def decoded_in(self, at_ns: int) -> int:
        """Updates that were decoded in the hour of this time; clocks that go back begin no new hour."""
        return self.decoded if at_ns // HOUR_NS <= self.hour else 0

    def with_decoded(self, at_ns: int) -> "NodeLedger":
        """One more update that was decoded at this time."""
        return replace(self, hour=max(self.hour, at_ns // HOUR_NS), decoded=self.decoded_in(at_ns) + 1)

    def no_later_than(self, at_ns: int) -> "NodeLedger":
        """The same on a clock that shows this time: nothing in it happened later."""
        partial = {update: arriving.no_later_than(at_ns) for update, arriving in self.partial.items()}
        return replace(self, partial=partial, hour=min(self.hour, at_ns // HOUR_NS))

    def forgiven(self) -> "NodeLedger":
        """Without what speaks against the node; what it has contributed stays counted."""
        return replace(self, refusals={}, late=0, last_refusal=None, overclaimed=0, standing=None, quarantine=None)


class NodeReport(BaseModel):
    """One node as operators see it; a row of the journal's table `nodes`."""

    model_config = ConfigDict(frozen=True)

    node: str
    participation: int
    waiting: int
    refusals: dict[str, int]
    refused_share: float
    last_refusal: str | None
    alarm: bool
    quarantine: str | None
    agreement: float | None
    compared: int
    norm: float | None
    reach: float | None
    overclaimed: int
    privacy_loss: float | None = None  # none: without bound


def report_of(node: str, ledger: NodeLedger) -> NodeReport:
    """What there is to say of a node."""
    standing = ledger.standing
    return NodeReport(
        node=node,
        participation=ledger.participation,
        waiting=sum(known.version is None for known in ledger.accepted.values()),
        refusals={kind: ledger.refusals[kind] for kind in sorted(ledger.refusals)},
        refused_share=ledger.refused_share,
        last_refusal=ledger.last_refusal,
        alarm=ledger.alarm,
        quarantine=ledger.quarantine,
        agreement=standing.agreement if standing and standing.compared else None,
        compared=standing.compared if standing else 0,
        norm=standing.size.norm if standing else None,
        reach=standing.size.reach.whole if standing else None,
        overclaimed=ledger.overclaimed,
        privacy_loss=ledger.privacy_loss if math.isfinite(ledger.privacy_loss) else None,
    )
