"""Fold a journal again and compare every version with the one that was recorded."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from coordinator.journal import fold, read_versions
from coordinator.state import PublishVersion


@dataclass(frozen=True)
class ReplayedVersion:
    """One version's digest as it was recorded and as the replay makes it; None where one side lacks it."""

    version: int
    recorded: str | None
    replayed: str | None

    @property
    def agrees(self) -> bool:
        """Whether both sides made the same adapter, bit for bit."""
        return self.recorded == self.replayed


def replay(path: Path) -> Iterator[ReplayedVersion]:
    """Each version in order, as soon as it is replayed. Raises RecordingError for a file that is no sound journal."""
    recorded = (manifest.digest for manifest in read_versions(path))
    replayed = (
        effect.manifest.digest for _, effects in fold(path) for effect in effects if isinstance(effect, PublishVersion)
    )
    for version, (before, now) in enumerate(zip_longest(recorded, replayed)):
        yield ReplayedVersion(version, before, now)
