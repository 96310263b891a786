"""Replay a recording of topics: what the published versions can honestly be compared with.

Two ways, both for every version. The fold makes the versions again from version 0 on and is exact, but needs the terms
and the whole history, and the coordinator's journal where the strategy has asked the base model. The chain takes one
version at a time by its published weights, and needs only what is in the recording.
"""

from dataclasses import dataclass, field
from pathlib import Path

from coordinator.replay.beside import fold_beside
from coordinator.replay.chain import CheckedVersion, Verdict, check_chain
from coordinator.replay.source import ModelWasAsked, NotReplayable, Source, open_source
from coordinator.replay.virtual_time import begin, play
from coordinator.state import FederationState, PublishVersion


@dataclass(frozen=True)
class ReplayedTopic:
    """One published version: its digest, what the fold makes of the same input, and what follows from both.

    `row` is that of the pointer with which it became the head; `replayed` is None where there was no fold.
    """

    version: int
    recorded: str
    replayed: str | None
    row: int
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class ReplayedTopics:
    """Every published version with its verdict, what was assumed for the fold, and why there was none."""

    versions: tuple[ReplayedTopic, ...]
    assumptions: tuple[str, ...] = ()
    not_folded: str | None = None
    state: FederationState | None = field(default=None, repr=False)

    @property
    def agrees(self) -> bool:
        """Whether no version differs, and at least one after the first could be checked."""
        verdicts = [version.verdict for version in self.versions]
        checked = any(v.verdict == "agrees" and v.version > 0 for v in self.versions)
        return "differs" not in verdicts and (checked or len(verdicts) == 1)

    @property
    def first_differing_row(self) -> int | None:
        """The row of the first version that is not what its inputs make."""
        return next((version.row for version in self.versions if version.verdict == "differs"), None)


def replay_topics(path: Path, journal: Path | None = None, until: int | None = None) -> ReplayedTopics:
    """Replay a recording of topics, the terms from a journal or assumed. Raises RecordingError."""
    chain = [checked for checked in check_chain(path) if until is None or checked.version <= until]
    if not chain:
        raise NotReplayable(f"{path} has no version: there is nothing to compare with")
    try:
        source = open_source(path, journal)
    except NotReplayable as why:
        if journal is not None:
            open_source(journal)  # one that cannot be read is an error of its own
            if isinstance(why, ModelWasAsked):
                return _beside(path, journal, until, chain)
        found = tuple(ReplayedTopic(c.version, c.digest, None, c.row, c.verdict, c.reason) for c in chain)
        return ReplayedTopics(found, not_folded=str(why))
    made, state = _folded(source, until)
    versions = tuple(judged(checked, made.get(checked.version)) for checked in chain)
    return ReplayedTopics(versions, source.assumptions, state=state)


def _beside(path: Path, journal: Path, until: int | None, chain: list[CheckedVersion]) -> ReplayedTopics:
    fold = fold_beside(path, journal, until)
    assumed = [f"the base model's answers and the order in which messages were taken in are those of {journal}"]
    if fold.lacking:
        assumed.append(f"{fold.lacking} of the {fold.messages} messages in it are not in the recording: left out")
    versions = tuple(judged(checked, fold.made.get(checked.version)) for checked in chain)
    return ReplayedTopics(versions, tuple(assumed), state=fold.state)


def _folded(source: Source, until: int | None) -> tuple[dict[int, str], FederationState]:
    first = begin(source)
    made = {0: first.state.head.digest}
    state = first.state
    for turn in play(state, source.rows(), {}):
        state = turn.state
        for effect in turn.effects:
            if isinstance(effect, PublishVersion):
                made[effect.manifest.version] = effect.manifest.digest
        if until is not None and state.head.version >= until:
            break
    return made, state


def judged(checked: CheckedVersion, replayed: str | None) -> ReplayedTopic:
    """What follows for a version from its chain and from what the fold makes of the same input."""
    verdict, reason = checked.verdict, checked.reason
    if replayed == checked.digest and verdict != "differs":
        verdict, reason = "agrees", "made again, bit for bit"
    elif verdict == "unchecked":
        reason += "; made again it is another one, or none: the order or the terms may have been others"
    return ReplayedTopic(checked.version, checked.digest, replayed, checked.row, verdict, reason)
