"""A pytest plugin: the fixture `replay` makes a recording's versions again and hands them to a test.

    def test_the_fleet_still_learns(replay):
        replayed = replay("incident.rec")
        assert replayed.agrees
        assert replayed.versions[-1].calibration_loss < 1.2

Loads nothing of this project until a test asks for the fixture.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from coordinator.replay.fuzzing import Fuzzed
    from coordinator.replay.inside import Replayed
    from coordinator.replay.outside import ReplayedTopics
    from coordinator.replay.what_if import WhatIf


class Replay:
    """Replays recordings; a relative path is found beside the test file first, then below pytest's root."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders

    def __call__(self, recording: str | PathLike[str], until: int | None = None) -> "Replayed":
        """Fold a coordinator's journal. Raises RecordingError for a file that is none."""
        from coordinator.replay.inside import replay_journal

        return replay_journal(self._find(recording), until)

    def topics(
        self,
        recording: str | PathLike[str],
        journal: str | PathLike[str] | None = None,
        until: int | None = None,
    ) -> "ReplayedTopics":
        """Check a recording of topics, the terms from a journal or assumed."""
        from coordinator.replay.outside import replay_topics

        return replay_topics(self._find(recording), None if journal is None else self._find(journal), until)

    def what_if(
        self,
        recording: str | PathLike[str],
        *,
        without: Sequence[str] = (),
        strategy: str | None = None,
        until: int | None = None,
    ) -> "WhatIf":
        """The same input without some nodes, or under another strategy; the base model is not asked."""
        from coordinator.replay.source import open_source
        from coordinator.replay.what_if import Change, strategy_named, what_if

        source = open_source(self._find(recording))
        chosen = None if strategy is None else strategy_named(strategy, source.config)
        return what_if(source, Change(tuple(without), chosen), until)

    def fuzz(self, recording: str | PathLike[str], seed: int) -> "Fuzzed":
        """The same input as an unkind network would bring it."""
        from coordinator.replay.fuzzing import fuzz
        from coordinator.replay.source import open_source

        return fuzz(open_source(self._find(recording)), seed)

    def _find(self, recording: str | PathLike[str]) -> Path:
        return next((folder / recording for folder in self._folders if (folder / recording).exists()), Path(recording))


@pytest.fixture
def replay(request: pytest.FixtureRequest) -> Replay:
    """replay("incident.rec"): the versions that a coordinator makes of a recording, and whether they are the same."""
    return Replay((request.path.parent, request.config.rootpath))
