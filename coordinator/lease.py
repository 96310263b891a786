"""One coordinator decides at a time: a lease in the journal's database, which a standby waits for and takes over.

The holder renews the lease once a second; a standby takes it when it was not renewed for as long as it lasts, by the
standby's own clock, so clocks need not agree. A holder that was frozen and wakes up finds the lease lost before it
writes or publishes anything, and ends. Whatever slips out has a lower epoch, which nodes refuse.

On one machine a holder that is dead is known at once, by the folder's lock, which the operating system lets go. One
that froze in the midst of a transaction keeps the database locked: when its lease has run out, the standby ends it.
"""

import logging
import platform
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from broker.recording import RecordingBusy, path_of, transaction
from coordinator.frozen_writer import ProcessId, end, this_process, writer_of

log = logging.getLogger("coordinator")

LEASE_S = 5.0
RENEW_EVERY_S = 1.0
LOOK_EVERY_S = 0.25
_BUSY_S = 30.0  # patience with another writer of the database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS lease (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    holder TEXT NOT NULL,
    host TEXT NOT NULL,
    is_locked INTEGER NOT NULL,
    renewals INTEGER NOT NULL
) STRICT;
"""


class _Row(NamedTuple):
    holder: str
    host: str
    is_locked: int
    renewals: int

    @property
    def process(self) -> ProcessId | None:
        """The holder's, as its own machine numbers it."""
        _, *numbers = self.holder.split()
        return ProcessId(*map(int, numbers)) if len(numbers) == 2 and all(map(str.isdecimal, numbers)) else None


class LeaseLost(RuntimeError):
    """Another coordinator has taken over; says that this one has to end."""


class Lease:
    """The right to decide for the federation of one folder, held from `take` until `let_go`."""

    def __init__(self, journal: sqlite3.Connection, folder: Path) -> None:
        self.is_lost = False
        self._journal, self._folder = journal, folder
        self._path = path_of(journal)
        self._holder = f"{uuid.uuid4().hex} {this_process()}"
        self._host = f"{platform.node()} {uuid.getnode():x}"
        self._lock = FileLock(folder / "lock", thread_local=False)
        self._ended = threading.Event()
        self._renewed_at = 0.0
        self._thread = threading.Thread(target=self._renew_for_ever, name="lease", daemon=True)
        if not _has_table(journal):  # a look that waits for no writer
            with transaction(journal):
                journal.execute(_SCHEMA)

    def take(self) -> None:
        """Wait until nobody else holds the lease, then hold it."""
        seen, since, waited = self._row(), time.monotonic(), False
        while not (self._may_take(seen, since) and self._take_from(seen)):
            if not waited:
                log.warning("another coordinator works in %s: waiting as its standby", self._folder)
            waited = True
            time.sleep(LOOK_EVERY_S)
            if (row := self._row()) != seen:
                seen, since = row, time.monotonic()
        if waited:
            log.warning("taking over in %s", self._folder)
        self._thread.start()

    def let_go(self) -> None:
        """Renew it no more; whoever waits may have it."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_BUSY_S)
        with transaction(self._journal):
            self._journal.execute("DELETE FROM lease WHERE holder = ?", (self._holder,))
        self._lock.release(force=True)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction of the journal that is not begun without the lease. Raises LeaseLost."""
        with transaction(self._journal):
            self._check(self._row())
            yield

    def confirm(self) -> None:
        """Make sure of the lease before something goes out. Raises LeaseLost."""
        if self.is_lost or time.monotonic() - self._renewed_at > LEASE_S / 2:  # we were frozen, or the disk is slow
            self._check(self._row())

    def _may_take(self, seen: _Row | None, since: float) -> bool:
        """Whether the holder is known to be gone: it let go of its lock on this machine, or of the lease itself."""
        is_free = self._try_lock()
        if seen is None or (is_free and seen.is_locked and seen.host == self._host):
            return True
        return time.monotonic() - since > LEASE_S

    def _take_from(self, seen: _Row | None) -> bool:
        """Put ourselves in the place of this holder, unless somebody else was quicker, or nobody can write now."""
        renewals = 0 if seen is None else seen.renewals + 1
        try:
            with transaction(self._journal):
                if self._row() != seen:
                    return False
                values = (self._holder, self._host, int(self._lock.is_locked), renewals)
                self._journal.execute("INSERT OR REPLACE INTO lease VALUES (0, ?, ?, ?, ?)", values)
        except RecordingBusy:
            self._end_writer(seen)
            return False
        self._renewed_at = time.monotonic()
        return True

    def _end_writer(self, seen: _Row | None) -> None:
        """End the holder if it is the one that writes and does not go on; of anybody else only say so."""
        writer, holder = writer_of(self._path), None if seen is None else seen.process
        try:
            if seen is not None and seen.host == self._host and holder is not None and writer == holder.pid:
                if end(holder):
                    log.warning("process %d had stopped in the midst of a transaction, and was ended", writer)
                return
            fault = "it is not the coordinator that decided last"
        except OSError as refused:
            fault = str(refused)
        log.error("%s is locked by %s: %s. This standby can only wait: end it", self._path,
                  f"process {writer}" if writer else "a process of another container or machine", fault)  # fmt: skip

    def _try_lock(self) -> bool:
        if self._lock.is_locked:
            return True
        try:
            self._lock.acquire(blocking=False)
        except (Timeout, OSError):  # storage that cannot lock leaves the lease alone to decide
            return False
        return True

    def _row(self) -> _Row | None:
        row = self._journal.execute("SELECT holder, host, is_locked, renewals FROM lease").fetchone()
        return None if row is None else _Row(*row)

    def _check(self, row: _Row | None) -> None:
        if row is None or row.holder != self._holder:
            self.is_lost = True
            raise LeaseLost(
                f"another coordinator has taken over in {self._folder}, because this one did not renew its lease for "
                f"{LEASE_S:g} s: this one ends; started again, it waits as a standby"
            )

    def _renew_for_ever(self) -> None:
        with closing(sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)) as database:
            while not self._ended.wait(RENEW_EVERY_S):
                begun = time.monotonic()
                try:
                    renewed = database.execute(
                        "UPDATE lease SET renewals = renewals + 1, is_locked = ? WHERE holder = ?",
                        (int(self._try_lock()), self._holder),
                    )
                except sqlite3.Error as fault:  # not renewed: a standby may take over, and we shall find out
                    log.error("the lease in %s could not be renewed: %s", self._folder, fault)
                    continue
                if renewed.rowcount == 0:
                    self.is_lost = True
                    return
                self._renewed_at = begun


def _has_table(journal: sqlite3.Connection) -> bool:
    return journal.execute("SELECT 1 FROM sqlite_master WHERE name = 'lease'").fetchone() is not None
