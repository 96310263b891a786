"""The values that strategies work on: a node's update, a group of one base version, the global adapter."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import Self

from schemas.adapter import Adapter


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

    @property
    def updates(self) -> tuple[AdapterUpdate, ...]:
        """Every update in canonical order."""
        return tuple(update for group in self.groups for update in group.updates)

    @property
    def oldest_ns(self) -> int | None:
        """When the update that has waited longest arrived; None for an empty buffer."""
        return min((update.received_at_ns for update in self.updates), default=None)

    def with_update(self, update: AdapterUpdate) -> Self:
        """The buffer with one more update in its place."""
        return replace(self, groups=_grouped((*self.updates, update)))


def _grouped(updates: Iterable[AdapterUpdate]) -> tuple[VersionGroup, ...]:
    canonical = sorted(updates, key=attrgetter("base_version", "node", "sequence", "update_id"))
    return tuple(VersionGroup(base, tuple(group)) for base, group in groupby(canonical, key=attrgetter("base_version")))


@dataclass(frozen=True)
class Aggregate:
    """What a strategy made of a buffer: the next adapter and each update's weight, in the buffer's canonical order."""

    adapter: Adapter
    weights: tuple[float, ...]
