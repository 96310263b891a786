"""Capture topics of a broker into recording files: committed in batches, capped in size, rotated, resumed after a kill.

A message is acknowledged only when it is on disk. The client id is that of the file, so a recorder that was killed and
is started again within the session's expiry gets what it has missed. What the messages mean is not known here.
"""

import hashlib
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from broker.client import Client
from broker.events import Connected, Disconnected, Event, Message, Subscribed
from broker.recording import append, open_recording, row_of, transaction
from broker.settings import BrokerSettings

LARGEST_PACKET = 268_435_455  # whatever anybody publishes is to be recorded: the limit is that of MQTT
BATCH_MESSAGES, BATCH_BYTES = 1_000, 16 << 20  # committed together; a commit waits for the disk
SMALLEST_MAX_SIZE = 100_000  # bytes; an empty recording has 12 KB
ROW_BYTES = 256  # about what a row takes beside its payload
DRAIN_S = 2.0  # the longest time for what is on its way when it stops
_WAKE_S = 0.5  # the longest wait, so that a stop is noticed and the counters move


class RecorderError(RuntimeError):
    """Recording cannot begin or go on; says why and what to do."""


@dataclass(frozen=True)
class Progress:
    """What has been recorded since the start; `trouble` is what the broker or the network did in this turn."""

    messages: int = 0
    payload_bytes: int = 0
    duplicates: int = 0
    rotations: int = 0
    dropped: int = 0  # QoS 0 messages that came faster than the disk took them
    connected: bool = False  # and every subscription stands: nothing that is published now is missed
    trouble: str | None = None
    standing: frozenset[str] = frozenset()  # the filters that the broker has granted on this connection


class RotatingRecording:
    """A recording at `path` that is renamed to `path`.1 when it is full, `path`.1 to `path`.2, and so on.

    `keep` earlier files stay; with 0 there is one file, and RecorderError when it is full. An existing recording is
    continued. Raises RecorderError for a file that is more than a recording, such as a coordinator's journal.
    """

    def __init__(self, path: Path, max_size: int, keep: int) -> None:
        if max_size < SMALLEST_MAX_SIZE:
            raise ValueError(f"max_size must be at least {SMALLEST_MAX_SIZE} bytes, got {max_size}")
        if keep < 0:
            raise ValueError(f"keep must not be negative, got {keep}")
        self.path, self.max_size, self.keep = path, max_size, keep
        self.rotations = 0
        self._connection = _open(path)

    def write(self, messages: Iterable[Message]) -> None:
        """Append messages in one transaction, or in one for each file; on return they are on disk."""
        fitting: list[Message] = []
        room = self._room()
        for message in messages:
            room -= len(message.payload) + ROW_BYTES
            if room < 0:
                self._commit(fitting)
                fitting, room = [], self._rotate() - len(message.payload) - ROW_BYTES
            fitting.append(message)
        self._commit(fitting)

    def close(self) -> None:
        """Fold SQLite's log into the file and let go of it."""
        self._connection.close()

    def _commit(self, messages: list[Message]) -> None:
        if messages:
            with transaction(self._connection):
                for message in messages:
                    append(self._connection, row_of(message))

    def _room(self) -> int:
        pages, size = (self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        return self.max_size - int(pages) * int(size)

    def _rotate(self) -> int:
        """Begin a new file and return its room; while somebody reads the old one, that one grows on."""
        if self._is_empty():
            return self.max_size  # one message larger than the limit: no rotation makes room for it
        if self.keep == 0:
            raise RecorderError(
                f"{self.path} is full with {self.max_size} bytes: raise --max-size, or keep earlier files by --rotate"
            )
        [(busy, *_)] = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if busy:
            return self.max_size
        self._connection.close()
        for number in range(self.keep - 1, 0, -1):
            if numbered(self.path, number).exists():
                numbered(self.path, number).replace(numbered(self.path, number + 1))
        self.path.replace(numbered(self.path, 1))
        self._connection = open_recording(self.path)
        self.rotations += 1
        return self._room()

    def _is_empty(self) -> bool:
        return self._connection.execute("SELECT 1 FROM messages LIMIT 1").fetchone() is None


def numbered(path: Path, number: int) -> Path:
    """The name of the file that was rotated away `number` rotations ago."""
    return path.with_name(f"{path.name}.{number}")


def capture(
    broker: BrokerSettings,
    filters: tuple[str, ...],
    recording: RotatingRecording,
    is_stopping: Callable[[], bool],
) -> Iterator[Progress]:
    """Record everything on `filters` until `is_stopping()`; yields at least twice a second.

    A lost broker is waited for. Raises RecorderError when another recorder writes the same file, the broker refuses a
    filter, or the file is full.
    """
    settings = broker.model_copy(update={"max_packet_size": LARGEST_PACKET})
    with _alone(recording.path), Client(settings, _client_id(recording.path), subscriptions=filters) as client:
        progress = Progress()
        while not is_stopping():
            progress = _turn(client, recording, progress)
            progress = replace(progress, connected=progress.standing >= set(filters))
            yield progress
        client.unsubscribe(*filters)  # else the broker would go on keeping messages for this id
        until = time.monotonic() + DRAIN_S
        while (after := _turn(client, recording, progress, 0)).messages > progress.messages:  # what is here already
            progress = after
            yield progress
            if time.monotonic() >= until:  # a broker may take its time to unsubscribe
                break


def _turn(client: Client, recording: RotatingRecording, progress: Progress, patience_s: float = _WAKE_S) -> Progress:
    batch: list[Message] = []
    size = 0
    event = client.next_event(patience_s)
    while isinstance(event, Message):
        batch.append(event)
        size += len(event.payload)
        event = client.next_event(0) if len(batch) < BATCH_MESSAGES and size < BATCH_BYTES else None
    recording.write(batch)
    for message in batch:
        client.ack(message)
    counted = replace(
        progress,
        messages=progress.messages + len(batch),
        payload_bytes=progress.payload_bytes + size,
        duplicates=progress.duplicates + sum(message.duplicate for message in batch),
        rotations=recording.rotations,
        dropped=client.dropped,
        trouble=None,
    )
    return _noted(counted, event)


def _noted(progress: Progress, event: Event | None) -> Progress:
    match event:
        case Connected(session_present):
            lost = progress.messages > 0 and not session_present
            trouble = "the broker has forgotten this recorder: what came while it was away is missing" if lost else None
            return replace(progress, standing=frozenset(), trouble=trouble)
        case Disconnected(reason):
            return replace(progress, standing=frozenset(), trouble=reason)
        case Subscribed(refused, reason) if reason is not None:
            raise RecorderError(f"the broker refused the subscription to {refused}: {reason}; check the access rights")
        case Subscribed(granted):
            return replace(progress, standing=progress.standing | {granted})
    return progress


def _open(path: Path) -> sqlite3.Connection:
    connection = open_recording(path)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if others := tables - {"messages", "sqlite_sequence"}:
        connection.close()
        raise RecorderError(f"{path} is more than a recording (it has {', '.join(sorted(others))}): name another file")
    return connection


def _client_id(path: Path) -> str:
    """The same for the same file on the same machine, so that the broker knows a recorder that was killed."""
    where = f"{socket.gethostname()} {path.resolve()}"
    return f"alignfed-recorder-{hashlib.sha256(where.encode()).hexdigest()[:12]}"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise RecorderError(f"another recorder writes {path}: stop it, or name another file") from None
    try:
        yield
    finally:
        os.unlink(lock.lock_file)
        lock.release()
