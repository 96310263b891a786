"""A journal once more, through a real broker: the coordinator's own service takes in there what nodes' clients publish.

Whatever did not come from the broker (the base model's answers, ticks, starts, orders, keys, the clock) comes from the
journal, each at its recorded place. The next message goes out when the last one is journalled, so that nothing can
happen in another order, and the versions are the same, bit for bit, whatever the strategy asks. No model is needed.
"""

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from broker.events import Message, Subscribed
from broker.recording import RecordingError, Row, transaction
from broker.replayer import ReplayerError, replay_through
from broker.settings import BrokerSettings
from coordinator.core import found
from coordinator.journal import event_of_row, open_journal, read_versions, record_founding
from coordinator.lease import Lease
from coordinator.process import connecting_to
from coordinator.recovery import Restored, keep
from coordinator.registry import Registry
from coordinator.replay.inside import Replayed, ReplayedVersion, with_losses
from coordinator.replay.recorded import is_published, sender_of
from coordinator.replay.source import Source
from coordinator.service import UPDATES, Service, StopFlag
from coordinator.settings import CoordinatorSettings
from coordinator.state import AskModel, Effect, PublishRelease, Received
from coordinator.watch.board import Board
from coordinator.watch.history import History, observe

PATIENCE_S = 30.0  # for a message to come through the broker
_WAKE_S = 0.5


class OutOfStep(ReplayerError):
    """The coordinator got another message than the one that was sent, or none; says which, and what to look at."""


def replay_in_step(
    source: Source,
    broker: BrokerSettings,
    folder: Path,
    until: int | None = None,
    report: Callable[[ReplayedVersion], None] = lambda _: None,
) -> Replayed:
    """Replay a journal through a broker into a new coordinator's folder, up to version `until`.

    The folder is left for looking into: journal, registry. Raises ReplayerError, RecordingError.
    """
    if not source.is_journal:
        raise RecordingError(f"{source.path} is a recording of topics: only a journal has what else happened, and when")
    if folder.exists() and any(folder.iterdir()):
        raise RecordingError(f"{folder} is not empty: name a new folder for the coordinator of the replay")
    folder.mkdir(parents=True, exist_ok=True)
    with closing(open_journal(folder / "journal.db")) as journal:
        lease = Lease(journal, folder)
        lease.take()
        try:
            service = _InStep(source, broker, folder, journal, lease, until)
            with closing(service.senders):
                service.run_until(service.stopping, ())
        finally:
            lease.let_go()
        versions = with_losses(_compared(source, folder / "journal.db", until), service.reports)
    for version in versions:
        report(version)
    return Replayed(versions, service.state, service.rows)


class _InStep(Service):
    """The service with its eyes on a journal: what it hears is checked against it, and what else happens is its."""

    def __init__(
        self,
        source: Source,
        broker: BrokerSettings,
        folder: Path,
        journal: sqlite3.Connection,
        lease: Lease,
        until: int | None,
    ) -> None:
        registry = Registry(folder / "adapters")
        settings = CoordinatorSettings(data_dir=folder, strategy=source.config.strategy)
        restored = _founded(source, journal, registry)
        connect = connecting_to(broker, source.config.federation)
        super().__init__(restored, connect, settings, journal, lease, registry, None, Board(), None)
        self.stopping, self.rows = StopFlag(), 0
        self.reports = [restored.state.release]
        self._until = until
        self._script = source.rows()
        self.senders = replay_through(broker, filter(is_published, source.rows()), sender_of, None)
        self._standing = 0  # subscriptions
        self._given_up_at = time.monotonic() + PATIENCE_S

    def turn(self) -> None:
        """One recorded row, once the broker is there; after the last of them, what has still to go out."""
        self.lease.confirm()
        if self._standing < len(UPDATES):
            self._hear(None)
            return
        row = next(self._script, None)
        if row is None or (self._until is not None and self.state.head.version >= self._until):
            self._finish()
            return
        self.rows = row.seq
        event = event_of_row(row)
        if not isinstance(event, Received):
            self._happen(event)
            return
        next(self.senders)
        self._given_up_at = time.monotonic() + PATIENCE_S
        while not self._hear(row):
            pass

    def _hear(self, row: Row | None) -> bool:
        """Deal with the next event of the broker, and say whether it was the message that this row recorded."""
        event = self.client.next_event(_WAKE_S)
        if time.monotonic() > self._given_up_at:
            what = "there is no subscription" if row is None else f"the message of row {row.seq} did not come"
            raise OutOfStep(f"{what} after {PATIENCE_S:g} s: look at the broker's log, its limits and access rights")
        if isinstance(event, Subscribed) and event.reason is None:
            self._standing += 1
        if not isinstance(event, Message):
            self._hear_of_broker(event)
            return False
        if row is None or (event.topic, event.payload) != (row.topic, row.payload):
            sent = "before anything was sent" if row is None else f"in place of the one of row {row.seq}"
            raise OutOfStep(
                f"a message on {event.topic} came {sent}: replay through a broker that holds nothing for the "
                "coordinator and to which nobody else publishes"
            )
        # the journal's clock counts: limits by the hour and what is shown depend on it
        self._take([replace(event, received_at_ns=row.received_at_ns)])
        return True

    def _finish(self) -> None:
        """Let everything go out that was published, then stop."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.announcer.is_done and time.monotonic() < deadline:
            self._hear_of_broker(self.client.next_event(_WAKE_S))
        self.stopping.is_set = True

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        """All but asking the base model, whose answers are in the journal."""
        kept = [effect for effect in effects if not isinstance(effect, AskModel)]
        self.reports += [effect.report for effect in kept if isinstance(effect, PublishRelease)]
        super()._carry_out(kept)


def _founded(source: Source, journal: sqlite3.Connection, registry: Registry) -> Restored:
    with transaction(journal):
        record_founding(journal, source.config, source.adapter, source.founded_at_ns)
    state, effects = found(source.config, source.adapter, source.founded_at_ns)
    keep(registry, effects)
    return Restored(state, (), observe(History(), None, effects, source.founded_at_ns))


def _compared(source: Source, journal: Path, until: int | None) -> Iterator[ReplayedVersion]:
    """Every version of either side."""
    made = {manifest.version: manifest for manifest in read_versions(journal)}
    for version in sorted(made.keys() | source.recorded.keys()):
        if until is not None and version > until:
            return
        recorded, row = source.recorded.get(version, (None, None))
        manifest = made.get(version)
        digest = None if manifest is None else manifest.digest
        yield ReplayedVersion(version, recorded, digest, row, row, manifest)
