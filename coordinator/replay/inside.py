"""Fold a journal again and compare every version with the one that was recorded."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from coordinator.journal import fold_rows
from coordinator.replay.recorded import recorded_so_far
from coordinator.state import FederationState, PublishRelease, PublishVersion
from coordinator.watch.history import is_measured
from schemas.messages import GlobalManifest, ReleaseReport, Variant


@dataclass(frozen=True)
class ReplayedVersion:
    """One version's digest as it was recorded and as the replay makes it; None where one side lacks it.

    `calibration_loss` says how good the federation was with this version, in nats per answer token: the loss on the
    gate fold of what nodes serve once it was decided on this version, or, if that never happened, since it was made.
    Where what they serve was never measured, it is the loss of the last step of the anchor in this version. None where
    the base model was asked for neither, where the loss is infinite, and until the replay has ended.
    """

    version: int
    recorded: str | None
    replayed: str | None
    recorded_row: int | None = None  # the row that made it
    replayed_row: int | None = None
    manifest: GlobalManifest | None = field(default=None, repr=False)  # as the replay makes it
    calibration_loss: float | None = None

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
    reports: list[ReleaseReport] = []
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
            elif isinstance(effect, PublishRelease):
                reports.append(effect.report)
        if until is not None and state.head.version >= until:
            break
    for version in sorted(recorded.keys() - {one.version for one in made}):
        if until is None or version <= until:
            digest, seq = recorded[version]
            made.append(ReplayedVersion(version, digest, None, seq))
            report(made[-1])
    return Replayed(with_losses(made, reports), state, rows)


def with_losses(versions: Iterable[ReplayedVersion], reports: Sequence[ReleaseReport]) -> tuple[ReplayedVersion, ...]:
    """The versions with their calibration losses; `reports` are on what nodes serve, in the order of decision."""
    decisions, measured = {report.judged: report for report in reports}, _measured(reports)
    return tuple(
        replace(version, calibration_loss=_loss(version.manifest, decisions, measured)) for version in versions
    )


def _measured(reports: Sequence[ReleaseReport]) -> dict[tuple[int, Variant], float | None]:
    """The gate's losses by adapter. A judgement measures two: what was served by then, and the average it is about."""
    losses: dict[tuple[int, Variant], float | None] = {}
    served: ReleaseReport | None = None
    for report in reports:
        if is_measured(report):
            if served is not None:
                losses[served.version, served.variant] = report.before
            losses[report.judged, "average"] = report.candidate
        served = report
    return losses


def _loss(
    manifest: GlobalManifest | None,
    decisions: Mapping[int, ReleaseReport],
    measured: Mapping[tuple[int, Variant], float | None],
) -> float | None:
    if manifest is None:
        return None
    release = decisions.get(manifest.version, manifest.release)
    if (served := (release.version, release.variant)) in measured:
        return measured[served]
    return None if manifest.anchor is None else manifest.anchor.loss_after
