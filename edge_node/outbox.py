"""The updates that wait for their receipt, and the few facts that outlive the process, in one SQLite file.

A broker's acknowledgement is no proof that anything was kept, so an update stays here until the coordinator's receipt.
Every write is on disk when the call returns. It does not know topics, the network, or what a delta is.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self

from edge_node.state import Memory, Update, WaitingUpdate, named_base

_SCHEMA = """
CREATE TABLE IF NOT EXISTS updates (
    update_id TEXT PRIMARY KEY, sequence INTEGER NOT NULL, base_digest TEXT NOT NULL,
    manifest BLOB NOT NULL, body BLOB NOT NULL, size INTEGER NOT NULL, chunk_size INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS memory (
    id INTEGER PRIMARY KEY CHECK (id = 0), boots INTEGER NOT NULL, sequence INTEGER NOT NULL,
    participation INTEGER NOT NULL, last_base TEXT, epoch INTEGER NOT NULL, version INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS release_mark (
    id INTEGER PRIMARY KEY CHECK (id = 0), epoch INTEGER NOT NULL, version INTEGER NOT NULL
) STRICT;
INSERT OR IGNORE INTO release_mark VALUES (0, 0, 0);
INSERT OR IGNORE INTO memory VALUES (0, 0, 0, 0, NULL, 0, 0);
"""
_BASE_VERSION = "json_extract(CAST(manifest AS TEXT), '$.base_version')"
_BASE = f"{_BASE_VERSION} || ' ' || base_digest"  # as `named_base` spells it
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class OutboxDamaged(RuntimeError):
    """The outbox file cannot be read; it was moved aside, and the text says where and what to do."""


class OutboxUnusable(OSError):
    """The disk does not do what the outbox asks; the text says which file, why, and what to do."""


def read_mark(path: Path) -> tuple[int, int] | None:
    """The newest (epoch, version) that the node has held, by its outbox; None where it never ran. Changes nothing.

    Raises sqlite3.Error.
    """
    if not path.exists():
        return None
    log = path.with_name(path.name + "-wal")
    access = "?mode=ro" if log.exists() else "?mode=ro&immutable=1"  # without a log no node is at work
    with closing(sqlite3.connect(path.resolve().as_uri() + access, uri=True)) as database:
        [(epoch, version)] = database.execute("SELECT epoch, version FROM memory").fetchall()
    return epoch, version


class Outbox:
    """The node's durable queue of updates. Used by one thread of one process; raises OutboxDamaged, OutboxUnusable."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._database = sqlite3.connect(path, isolation_level=None)
        with self._watched():
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute("PRAGMA journal_size_limit = 4194304")  # a burst leaves no large file behind
            (verdict,) = self._database.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                self._move_aside(verdict)
            self._database.executescript(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def put(self, update: Update) -> None:
        """Keep an update, and that its base has been trained on."""
        row = (
            update.update_id,
            update.sequence,
            update.base_digest,
            update.manifest,
            update.body,
            len(update.body),
            update.chunk_size,
        )
        with self._transaction() as database:
            database.execute("INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            base = named_base(update.base_version, update.base_digest)
            database.execute("UPDATE memory SET sequence = ?, last_base = ?", (update.sequence + 1, base))

    def waiting(self) -> tuple[WaitingUpdate, ...]:
        """What is in the outbox, oldest first, without the bytes."""
        with self._watched():
            rows = self._database.execute(
                f"SELECT update_id, sequence, size, {_BASE_VERSION} FROM updates ORDER BY sequence"
            ).fetchall()
        return tuple(WaitingUpdate(id_, sequence, size, base, is_new=False) for id_, sequence, size, base in rows)

    def load(self, update_id: str) -> Update:
        """An update with its bytes; KeyError when it is not in the outbox."""
        with self._watched():
            row = self._database.execute(
                f"SELECT update_id, sequence, base_digest, {_BASE_VERSION}, manifest, body, chunk_size "
                "FROM updates WHERE update_id = ?",
                (update_id,),
            ).fetchone()
        if row is None:
            raise KeyError(update_id)
        return Update(*row)

    def manifest(self, update_id: str) -> bytes:
        """An update's manifest without the bytes of its body; KeyError when it is not in the outbox."""
        with self._watched():
            row = self._database.execute("SELECT manifest FROM updates WHERE update_id = ?", (update_id,)).fetchone()
        if row is None:
            raise KeyError(update_id)
        return bytes(row[0])

    def settle(self, update_id: str) -> None:
        """Forget an accepted update, and count it."""
        with self._transaction() as database:
            database.execute("DELETE FROM updates WHERE update_id = ?", (update_id,))
            database.execute("UPDATE memory SET participation = participation + 1")

    def drop(self, update_id: str) -> None:
        """Forget an update that nobody will use; its base may be trained on again."""
        with self._transaction() as database:
            database.execute(
                "UPDATE memory SET last_base = NULL "
                f"WHERE last_base = (SELECT {_BASE} FROM updates WHERE update_id = ?)",
                (update_id,),
            )
            database.execute("DELETE FROM updates WHERE update_id = ?", (update_id,))

    def memory(self) -> Memory:
        """What the node knew when it last ran."""
        with self._watched():
            row = self._database.execute("SELECT sequence, participation, last_base, epoch, version FROM memory")
            sequence, participation, last_base, epoch, version = row.fetchone()
            released = self._database.execute("SELECT epoch, version FROM release_mark").fetchone()
        return Memory(sequence, participation, last_base, mark=(epoch, version), release_mark=released)

    def raise_mark(self, mark: tuple[int, int]) -> None:
        """Note the newest (epoch, version) held; it never falls."""
        with self._transaction() as database:
            database.execute("UPDATE memory SET epoch = ?1, version = ?2 WHERE (epoch, version) < (?1, ?2)", mark)

    def raise_release_mark(self, mark: tuple[int, int]) -> None:
        """Note the newest (epoch, version) that is to be served; it never falls."""
        with self._transaction() as database:
            database.execute("UPDATE release_mark SET epoch = ?1, version = ?2 WHERE (epoch, version) < (?1, ?2)", mark)

    def count_boot(self) -> int:
        """How often the node has started on this file, this time included."""
        with self._transaction() as database:
            (boots,) = database.execute("UPDATE memory SET boots = boots + 1 RETURNING boots").fetchone()
        return int(boots)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._watched():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # a full disk has ended it already
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as fault:
            # the low byte is the kind of error, the rest its variety
            if (getattr(fault, "sqlite_errorcode", None) or 0) & 0xFF in _DAMAGED:
                self._move_aside(str(fault))
            if isinstance(fault, sqlite3.OperationalError):
                raise OutboxUnusable(
                    f"{self._path}: {fault}. See to its disk (is there room, may this user write there?) and start the "
                    "node again; no update that is in it is lost"
                ) from fault
            raise

    def _move_aside(self, fault: str) -> None:
        """Keep a damaged file for who wants to look into it, make room for a new one, and say so."""
        self._database.close()
        number = 1
        while (aside := self._path.with_name(f"{self._path.name}.damaged-{number}")).exists():
            number += 1
        for suffix in ("", "-wal", "-shm"):
            part = self._path.with_name(self._path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        raise OutboxDamaged(
            f"{self._path} is damaged ({fault}). It was moved to {aside}. "
            "Start the node again to go on with an empty outbox; updates without a receipt are lost"
        )
