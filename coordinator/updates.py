"""The values that strategies work on: a node's update, a group of one base version, the global adapter."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from typing import Self

from coordinator.equations import staleness
from coordinator.questions import Fold
from coordinator.trust.robust import Measured, Standing
from schemas.adapter import Adapter
from schemas.messages import AnchorReport, GroupReport, Variant


@dataclass(frozen=True)
class GlobalAdapter:
    """An adapter with its place in the federation's sequence of versions."""

    version: int
    adapter: Adapter

    @property
    def digest(self) -> str:
        """SHA-256 of the safetensors bytes."""
        return self.adapter.digest


@dataclass(frozen=True)
class AdapterUpdate:
    """A node's delta, decoded and checked, with the tags that the coordinator vouches for."""

    node: str
    update_id: str
    sequence: int
    base_version: int
    examples: int
    received_at_ns: int
    delta: Adapter


@dataclass(frozen=True)
class VersionGroup:
    """Buffered updates of one base version, in canonical order: by node, then by the node's own sequence."""

    base_version: int
    updates: tuple[AdapterUpdate, ...]


@dataclass(frozen=True)
class Buffer:
    """Updates that wait for the next version, grouped by base version, oldest first.

    The order does not depend on arrival: float sums do depend on order, and replay must be exact.
    """

    groups: tuple[VersionGroup, ...] = ()

    @classmethod
    def of(cls, *updates: AdapterUpdate) -> Self:
        """A buffer of these updates."""
        canonical = sorted(updates, key=attrgetter("base_version", "node", "sequence", "update_id"))
        groups = groupby(canonical, key=attrgetter("base_version"))
        return cls(tuple(VersionGroup(base, tuple(group)) for base, group in groups))

    @property
    def updates(self) -> tuple[AdapterUpdate, ...]:
        """Every update in canonical order."""
        return tuple(update for group in self.groups for update in group.updates)

    def counted(self, most: int) -> int:
        """How many updates there are, of one node no more than `most` counted."""
        return sum(min(count, most) for count in Counter(update.node for update in self.updates).values())

    @property
    def oldest_ns(self) -> int | None:
        """When the update that has waited longest arrived; None for an empty buffer."""
        return min((update.received_at_ns for update in self.updates), default=None)

    def with_update(self, update: AdapterUpdate) -> Self:
        """The buffer with one more update in its place."""
        return self.of(*self.updates, update)

    def no_later_than(self, at_ns: int) -> Self:
        """The buffer on a clock that shows this time: nothing in it arrived later."""
        return self.of(*(replace(u, received_at_ns=min(u.received_at_ns, at_ns)) for u in self.updates))


@dataclass(frozen=True)
class Served:
    """The adapter that nodes serve: which version's, and whether it is its head or the running average of then."""

    version: int
    variant: Variant
    adapter: Adapter


@dataclass(frozen=True)
class AnchorUpdate:
    """The coordinator's own delta, trained on the calibration set's anchor fold from one version, as nodes train."""

    base_version: int
    delta: Adapter
    loss_before: float
    loss_after: float
    seconds: float


@dataclass(frozen=True)
class Flush:
    """All that the next version may be made of."""

    head: GlobalAdapter
    buffer: Buffer
    anchor: AnchorUpdate | None = None  # trained since the last version, from this head or one before
    bases: Mapping[int, Adapter] = field(default_factory=dict)  # by base version, if the strategy needs them
    participation: Mapping[str, int] = field(
        default_factory=dict
    )  # accepted updates of every known node, these included
    folds: Mapping[Fold, int] = field(default_factory=dict)  # examples in each fold of the calibration set
    standings: Mapping[str, Standing] = field(default_factory=dict)  # of every node with an update in a version
    anchors: Mapping[int, Adapter] = field(default_factory=dict)  # earlier ones by base version, if the strategy asks
    probation: bool = False  # the head was taken back not long ago

    def staleness(self, update: AdapterUpdate) -> int:
        """Versions that passed since the one this update started from."""
        return staleness(self.head.version, update.base_version)


@dataclass(frozen=True)
class Aggregate:
    """What a strategy made: the next head, each update's weight in canonical order, and why."""

    adapter: Adapter
    weights: tuple[float, ...]
    groups: tuple[GroupReport, ...] = ()
    anchor: AnchorReport | None = None
    measured: tuple[Measured, ...] = ()  # of each update in canonical order, where the strategy measures them
    distrusted: frozenset[str] = frozenset()  # ids of the updates that were left out for what was measured
