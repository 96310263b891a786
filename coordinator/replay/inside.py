"""Fold a journal again and compare every version with the one that was recorded."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.journal import fold_rows
from coordinator.replay.recorded import recorded_so_far
from coordinator.state import FederationState, PublishVersion
from schemas.messages import GlobalManifest


@dataclass(frozen=True)
class ReplayedVersion:
    """One version's digest as it was recorded and as the replay makes it; None where one side lacks it."""

    version: int
    recorded: str | None
    replayed: str | None
    recorded_row: int | None = None  # the row that made it
    replayed_row: int | None = None
    manifest: GlobalManifest | None = field(default=None, repr=False)  # as the replay makes it

    @property
    def agrees(self) -> bool:
        """Whether both sides made the same adapter, bit for bit."""
        return self.recorded == self.replayed

    @property
    def first_differing_row(self) -> int | None:
        """The row at which the two sides part; None where they do not."""
        rows = [row for row in (self.recorded_row, self.replayed_row) if row is not None]
        return None if self.agrees or not rows else min(rows)


@dataclass(frozen=True)
class Replayed:
    """What became of a recording: its versions, the state at the end, and how many rows there were."""

    versions: tuple[ReplayedVersion, ...]
    state: FederationState | None = field(repr=False)
    rows: int

    @property
    def agrees(self) -> bool:
        """Whether there is a version, and every one is the one that was recorded."""
        return bool(self.versions) and all(version.agrees for version in self.versions)

    @property
    def first_differing_row(self) -> int | None:
        """The first row after which the replay is not what was recorded."""
        return next((v.first_differing_row for v in self.versions if not v.agrees), None)


def replay(path: Path) -> Iterator[ReplayedVersion]:
    """Each version in order. Raises RecordingError for a file that is no sound journal."""
    yield from replay_journal(path).versions


def replay_journal(
    path: Path, until: int | None = None, report: Callable[[ReplayedVersion], None] = lambda _: None
) -> Replayed:
    """Fold a journal, up to version `until`; `report` is told of each version as soon as it is made.

    A version counts as recorded with the digest and the row that the journal's table names. Raises RecordingError.
    """
    newest, recorded = recorded_so_far(path)
    made: list[ReplayedVersion] = []
    state, rows = None, 0
    for row, after, effects in fold_rows(path):
        if row.seq > newest:  # written meanwhile
            break
        state, rows = after, row.seq
        for effect in effects:
            if isinstance(effect, PublishVersion):
                digest, seq = recorded.get(effect.manifest.version, (None, None))
                said = effect.manifest
                made.append(ReplayedVersion(said.version, digest, said.digest, seq, row.seq, said))
                report(made[-1])
        if until is not None and state.head.version >= until:
            break
    for version in sorted(recorded.keys() - {one.version for one in made}):
        if until is None or version <= until:
            digest, seq = recorded[version]
            made.append(ReplayedVersion(version, digest, None, seq))
            report(made[-1])
    return Replayed(tuple(made), state, rows)
