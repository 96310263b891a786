"""The node's private examples in one SQLite file: each once, the oldest going first when there are too many.

An example stays while something it came from still holds it: a file, or a request or message that nothing takes back.
It knows no files, sockets or models, and there is no path from here to a topic.
"""

import hashlib
import logging
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from base_model.examples import Example

log = logging.getLogger(__name__)

DUPLICATE = "duplicate"
_BUSY_S = 10.0  # patience with a look at the same file from another process
_SCHEMA = """
CREATE TABLE IF NOT EXISTS examples (
    number INTEGER PRIMARY KEY AUTOINCREMENT, digest BLOB NOT NULL UNIQUE, prompt TEXT NOT NULL,
    completion TEXT NOT NULL, size INTEGER NOT NULL, place REAL NOT NULL, at REAL NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS sizes ON examples (size);
CREATE TABLE IF NOT EXISTS origins (
    source TEXT NOT NULL, number INTEGER NOT NULL REFERENCES examples ON DELETE CASCADE, PRIMARY KEY (source, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS origins_of ON origins (number);
CREATE TABLE IF NOT EXISTS files (
    source TEXT PRIMARY KEY, modified_ns INTEGER NOT NULL, size INTEGER NOT NULL, bytes_read INTEGER NOT NULL,
    lines_read INTEGER NOT NULL, digest BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS tallies (
    source TEXT NOT NULL, outcome TEXT NOT NULL, lines INTEGER NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY (source, outcome)
) STRICT;
CREATE TABLE IF NOT EXISTS room (id INTEGER PRIMARY KEY CHECK (id = 0), dropped INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO room VALUES (0, 0);
"""


class FileMark(NamedTuple):
    """How far a file was read: its state then, and the SHA-256 of the bytes that were read."""

    modified_ns: int
    size: int
    bytes_read: int
    lines_read: int
    digest: bytes


@dataclass(frozen=True)
class Reading:
    """A few lines of one source: the examples, and the refused ones, as line numbers by reason."""

    source: str
    at: float  # seconds since 1970
    examples: Sequence[Example] = ()
    refused: Mapping[str, Sequence[int]] = field(default_factory=dict)


class Tally(NamedTuple):
    """Lines of one source that gave no new example: why, how many, and the number of the last of them."""

    source: str
    outcome: str
    lines: int
    last: int


class Added(NamedTuple):
    """What became of some examples."""

    added: int
    duplicates: int


@dataclass(frozen=True)
class Summary:
    """What is in a store. Sizes in bytes of text; `newest_at` in seconds since 1970, None for an empty one."""

    examples: int
    held_out: int
    size: int
    newest_at: float | None
    dropped: int  # to make room
    sources: Mapping[str, int]
    tallies: tuple[Tally, ...]

    @property
    def training(self) -> int:
        """Examples that may be trained on."""
        return self.examples - self.held_out

    @property
    def duplicates(self) -> int:
        """Lines that repeat an example."""
        return sum(tally.lines for tally in self.tallies if tally.outcome == DUPLICATE)

    @property
    def refused(self) -> tuple[Tally, ...]:
        """Lines that are no example."""
        return tuple(tally for tally in self.tallies if tally.outcome != DUPLICATE)


class ExampleStore:
    """The store in a file, None for one in memory. Safe to use from any thread; raises sqlite3.DatabaseError.

    `most_bytes` bounds the texts. Examples whose prompt falls into the share `held_out` of all hashes are held out.
    """

    def __init__(self, path: Path | None, most_bytes: int, held_out: float) -> None:
        self._most_bytes, self._held_out = most_bytes, held_out
        self._lock = threading.Lock()
        self.changes = 0  # rises whenever the examples may have changed
        self._database = _open(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def load(self, path: Path) -> None:
        """Take over everything that another store's file holds, without changing it."""
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)) as other:
            other.backup(self._database)
        _prepare(self._database)

    def add(self, reading: Reading, mark: FileMark | None = None) -> Added:
        """Keep what is new in a reading and count the rest; `mark` says how far its file is read now. On disk then."""
        with self._transaction() as database:
            fresh = [_keep(database, example, reading) for example in reading.examples]
            _count(database, reading.source, DUPLICATE, fresh.count(False), 0)
            for reason, lines in reading.refused.items():
                _count(database, reading.source, reason, len(lines), max(lines, default=0))
            if mark is not None:
                database.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", (reading.source, *mark))
            _make_room(database, self._most_bytes)
        return Added(fresh.count(True), fresh.count(False))

    def forget(self, source: str) -> None:
        """Let go of all that came from this source alone, and of what was counted for it."""
        with self._transaction() as database:
            database.execute("DELETE FROM origins WHERE source = ?", (source,))
            database.execute("DELETE FROM examples WHERE number NOT IN (SELECT number FROM origins)")
            database.execute("DELETE FROM files WHERE source = ?", (source,))
            database.execute("DELETE FROM tallies WHERE source = ?", (source,))

    def note(self, source: str, outcome: str, line: int | None) -> None:
        """Say that one line of this source, the only one, has this outcome now; None: there is none any more."""
        with self._transaction() as database:
            database.execute("DELETE FROM tallies WHERE source = ? AND outcome = ?", (source, outcome))
            if line is not None:
                _count(database, source, outcome, 1, line)

    def mark(self, source: str) -> FileMark | None:
        """How far a file was read; None for one that is new."""
        rows = self._rows(
            "SELECT modified_ns, size, bytes_read, lines_read, digest FROM files WHERE source = ?", source
        )
        return FileMark(*rows[0]) if rows else None

    def files(self) -> frozenset[str]:
        """The files that something was read of."""
        return frozenset(source for (source,) in self._rows("SELECT source FROM files"))

    def training(self) -> tuple[Example, ...]:
        """What may be trained on, oldest first."""
        query = "SELECT prompt, completion FROM examples WHERE place >= ? ORDER BY number"
        return _examples(self._rows(query, self._held_out))

    def held_out(self, most: int) -> tuple[Example, ...]:
        """What is never trained on, at most so many; always the same ones while they are there."""
        query = "SELECT prompt, completion FROM examples WHERE place < ? ORDER BY place, number LIMIT ?"
        return _examples(self._rows(query, self._held_out, most))

    def summary(self) -> Summary:
        """What is in the store."""
        sources = "SELECT source, count(*) FROM origins GROUP BY source ORDER BY source"
        tallies = "SELECT source, outcome, lines, last FROM tallies ORDER BY source, outcome"
        ((examples, size, newest_at),) = self._rows("SELECT count(*), coalesce(sum(size), 0), max(at) FROM examples")
        ((held_out,),) = self._rows("SELECT count(*) FROM examples WHERE place < ?", self._held_out)
        ((dropped,),) = self._rows("SELECT dropped FROM room")
        return Summary(
            examples=examples,
            held_out=held_out,
            size=size,
            newest_at=newest_at,
            dropped=dropped,
            sources=dict(self._rows(sources)),
            tallies=tuple(Tally(*row) for row in self._rows(tallies)),
        )

    def _rows(self, query: str, *values: object) -> list[Any]:
        with self._lock:
            return self._database.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                if self._database.in_transaction:  # a full disk ends it by itself
                    self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")
            self.changes += 1


def digest_of(example: Example) -> bytes:
    """The example's content address."""
    return hashlib.sha256(example.model_dump_json().encode()).digest()


def place_of(example: Example) -> float:
    """Where the prompt's hash falls between 0 and 1: the same on every machine.

    Of the prompt alone, so that one prompt with two completions is not both trained on and held out.
    """
    return int.from_bytes(hashlib.sha256(b"held out? " + example.prompt.encode()).digest()[:6], "big") / (1 << 48)


def _keep(database: sqlite3.Connection, example: Example, reading: Reading) -> bool:
    """Whether the example is new."""
    digest, size = digest_of(example), len(example.prompt.encode()) + len(example.completion.encode())
    row = (digest, example.prompt, example.completion, size, place_of(example), reading.at)
    insert = "INSERT OR IGNORE INTO examples (digest, prompt, completion, size, place, at) VALUES (?, ?, ?, ?, ?, ?)"
    fresh = database.execute(insert, row).rowcount == 1
    origin = "INSERT OR IGNORE INTO origins SELECT ?, number FROM examples WHERE digest = ?"
    database.execute(origin, (reading.source, digest))
    return fresh


def _count(database: sqlite3.Connection, source: str, outcome: str, lines: int, last: int) -> None:
    if lines:
        database.execute(
            "INSERT INTO tallies VALUES (?1, ?2, ?3, ?4) "
            "ON CONFLICT DO UPDATE SET lines = lines + ?3, last = max(last, ?4)",
            (source, outcome, lines, last),
        )


def _make_room(database: sqlite3.Connection, most_bytes: int) -> None:
    """Drop the oldest while there are too many bytes; the newest always stays."""
    size, newest = database.execute("SELECT coalesce(sum(size), 0), max(number) FROM examples").fetchone()
    while size > most_bytes:
        oldest, one = database.execute("SELECT number, size FROM examples ORDER BY number LIMIT 1").fetchone()
        if oldest == newest:
            return
        size -= one
        database.execute("DELETE FROM examples WHERE number = ?", (oldest,))
        database.execute("UPDATE room SET dropped = dropped + 1")


def _examples(rows: Sequence[tuple[str, str]]) -> tuple[Example, ...]:
    # they were checked when they came in
    return tuple(Example.model_construct(prompt=prompt, completion=completion) for prompt, completion in rows)


def _open(path: Path | None) -> sqlite3.Connection:
    """The file, made if need be and readable by its owner alone; one that is damaged is moved aside."""
    if path is None:
        return _prepare(_connect(":memory:"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    database = _connect(str(path))
    try:
        database.execute("PRAGMA journal_mode = WAL")
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as fault:
        if isinstance(fault, sqlite3.OperationalError):  # locked, or the disk: nothing is wrong with the file
            raise
        verdict = str(fault)
    if verdict == "ok":
        return _prepare(database)
    database.close()
    log.warning("%s is damaged (%s) and was moved to %s; files are read again", path, verdict, _move_aside(path))
    return _open(path)


def _connect(name: str) -> sqlite3.Connection:
    return sqlite3.connect(name, isolation_level=None, check_same_thread=False, timeout=_BUSY_S)


def _prepare(database: sqlite3.Connection) -> sqlite3.Connection:
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA foreign_keys = ON")
    database.execute("PRAGMA secure_delete = ON")  # what is forgotten is overwritten
    database.execute("PRAGMA journal_size_limit = 1048576")
    database.executescript(_SCHEMA)
    return database


def _move_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside
