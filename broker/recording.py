"""The recording file: messages as they arrived, raw, in one SQLite file that other tables may share.

Rows are only ever appended. Each carries a checksum, because SQLite notices a page that is missing but not a byte that
changed. A payload is not looked into here: a malformed one is recorded and replays like any other.

    connection = open_recording(path)
    with transaction(connection):
        seq = append(connection, row_of(message))
        connection.execute("INSERT INTO my_own_table ...")   # commits with the row or not at all
"""

import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from broker.events import Message, MessageProperties
from broker.whole_file import sync_folder

APPLICATION_ID = 0x414C4644  # "ALFD", tells our files from other SQLite files
FORMAT_VERSION = 1
WRITTEN_TOGETHER = 256  # rows of a transaction where all are at hand

SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT_VERSION};
CREATE TABLE messages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    received_at_ns INTEGER NOT NULL,
    topic TEXT NOT NULL,
    qos INTEGER NOT NULL,
    retain INTEGER NOT NULL,
    dup INTEGER NOT NULL,
    properties TEXT NOT NULL,
    payload BLOB NOT NULL,
    crc32 INTEGER NOT NULL
) STRICT;
"""
_COLUMNS = "received_at_ns, topic, qos, retain, dup, properties, payload, crc32"
V = TypeVar("V")


class RecordingError(Exception):
    """A recording cannot be used; says which file, why, and what to do."""


class RecordingBusy(RecordingError):
    """Another program is in the midst of a transaction, and was for longer than one waits."""


@dataclass(frozen=True)
class Row:
    """One recorded message. `seq` is its place in the order of arrival, from 1; 0 until it is appended."""

    received_at_ns: int
    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    duplicate: bool = False
    properties: MessageProperties = field(default_factory=MessageProperties)
    seq: int = 0


def row_of(message: Message) -> Row:
    """What is recorded of a message: all but its connection."""
    return Row(
        received_at_ns=message.received_at_ns,
        topic=message.topic,
        payload=message.payload,
        qos=message.qos,
        retain=message.retain,
        duplicate=message.duplicate,
        properties=message.properties,
    )


def open_recording(path: Path) -> sqlite3.Connection:
    """Open a recording to append to, checked from end to end; a file that does not exist is created.

    Every commit is on disk when it returns. Raises RecordingError.
    """
    with _typed(path, sqlite3.Error, OSError, UnicodeDecodeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _create(path)
        connection = sqlite3.connect(path.resolve().as_uri() + "?mode=rw", uri=True, isolation_level=None)
        try:
            _check_kind(path, connection)
            _check_pages(path, connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            connection.close()
            raise
        return connection


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Turn what SQLite says about the file into RecordingError, for tables that share it."""
    with _typed(path, sqlite3.Error):
        yield


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All statements in the block are on disk when it ends, or none when it raises. Raises RecordingError."""
    with _typed(path_of(connection), sqlite3.Error):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # a full disk has ended it already
                connection.execute("ROLLBACK")
            raise


def append(connection: sqlite3.Connection, row: Row) -> int:
    """Append a row within a `transaction` and return its `seq`. Raises ValueError outside of one."""
    if not connection.in_transaction:
        raise ValueError("append within a transaction, so that it is clear when the row is on disk")
    values = (
        row.received_at_ns,
        row.topic,
        row.qos,
        int(row.retain),
        int(row.duplicate),
        properties_to_json(row.properties),
        row.payload,
    )
    cursor = connection.execute(
        f"INSERT INTO messages ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*values, _checksum(*values))
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def last_seq(connection: sqlite3.Connection) -> int:
    """The number of the newest row; 0 where there is none."""
    [(seq,)] = connection.execute("SELECT coalesce(max(seq), 0) FROM messages")
    return int(seq)


def write_recording(path: Path, rows: Iterable[Row]) -> int:
    """Put rows into a new recording, numbered from 1, and return how many.

    It appears under its name when it is whole. Raises RecordingError if `path` is there already.
    """
    if path.exists():
        raise RecordingError(f"{path} is there already: name a new file, or remove it")
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.unlink(missing_ok=True)
    count = 0
    with closing(open_recording(unfinished)) as connection:
        waiting = iter(rows)
        while batch := list(islice(waiting, WRITTEN_TOGETHER)):
            with transaction(connection):
                for row in batch:
                    append(connection, row)
            count += len(batch)
    unfinished.replace(path)
    return count


def read_rows(path: Path, after_seq: int = 0) -> Iterator[Row]:
    """Stream the rows after `after_seq` in order, while another process may go on recording. Raises RecordingError."""
    with _reading(path) as connection:
        yield from _rows(path, connection, after_seq)


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection for the tables that share the file, checked from end to end. Raises RecordingError."""
    with _reading(path) as connection:
        _check_pages(path, connection)
        yield connection


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    # SQLite quotes damaged text in its complaints, which Python cannot decode then
    with _typed(path, sqlite3.Error, OSError, UnicodeDecodeError), closing(_open_to_read(path)) as connection:
        _check_kind(path, connection)
        yield connection


def _rows(path: Path, connection: sqlite3.Connection, after_seq: int) -> Iterator[Row]:
    query = f"SELECT seq, {_COLUMNS} FROM messages WHERE seq > ? ORDER BY seq"
    for values in connection.execute(query, (after_seq,)):
        yield _row(path, *values)


def _open_to_read(path: Path) -> sqlite3.Connection:
    if not path.exists():
        raise RecordingError(f"{path} does not exist")
    if path.is_dir():
        raise RecordingError(f"{path} is a folder; name the file in it, such as journal.db")
    # Without a log no writer is at work, and reading leaves no trace; with one SQLite must join in.
    access = "?mode=ro" if _has_log(path) else "?mode=ro&immutable=1"
    # a reader that stopped half way is closed by whichever thread collects it
    return sqlite3.connect(path.resolve().as_uri() + access, uri=True, isolation_level=None, check_same_thread=False)


def _has_log(path: Path) -> bool:
    log = path.with_name(path.name + "-wal")
    return log.exists() and log.stat().st_size > 0


def _create(path: Path) -> None:
    """Make an empty recording under another name first: a crash on the way must not leave half a file behind."""
    unfinished = path.with_name(path.name + ".new")
    # SQLite would replay the log of a file that is gone into the new one of the same name.
    for leftover in (unfinished, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        leftover.unlink(missing_ok=True)
    with closing(sqlite3.connect(unfinished, isolation_level=None)) as connection:
        connection.executescript(SCHEMA)
    os.replace(unfinished, path)
    sync_folder(path.parent)


def _check_kind(path: Path, connection: sqlite3.Connection) -> None:
    if path.stat().st_size == 0:
        raise RecordingError(f"{path} is empty: not a recording, or one that was cut short")
    [(application,)] = connection.execute("PRAGMA application_id").fetchall()
    [(version,)] = connection.execute("PRAGMA user_version").fetchall()
    if application != APPLICATION_ID:
        raise RecordingError(f"{path} is a SQLite file of another program, not a recording")
    [(page_size,)] = connection.execute("PRAGMA page_size").fetchall()
    if path.stat().st_size % page_size and not _has_log(path):
        raise RecordingError(f"{path} is cut short; restore it from a copy")  # SQLite would fill the page with zeros
    if version > FORMAT_VERSION:
        raise RecordingError(
            f"{path} has format {version} and this program knows up to {FORMAT_VERSION}; use a newer one"
        )


def _check_pages(path: Path, connection: sqlite3.Connection) -> None:
    [(verdict,)] = connection.execute("PRAGMA quick_check(1)").fetchall()
    if verdict != "ok":
        raise RecordingError(f"{path} is damaged: {verdict}; restore it from a copy")


@contextmanager
def _typed(path: Path, *failures: type[Exception]) -> Iterator[None]:
    """Turn what SQLite and the file system say about the file into RecordingError."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError):
        raise  # the statement is at fault, not the file
    except failures as failure:
        kind = RecordingBusy if _code(failure) == sqlite3.SQLITE_BUSY else RecordingError
        raise kind(f"{path}: {_explain(failure)}") from failure


def _explain(failure: Exception) -> str:
    code = _code(failure)
    if code == sqlite3.SQLITE_NOTADB:
        return "not a recording, or its first bytes are damaged"
    if code == sqlite3.SQLITE_CORRUPT:
        return f"damaged or cut short ({failure}); restore it from a copy"
    if code == sqlite3.SQLITE_FULL:
        return "the disk is full; nothing of this transaction was kept"
    if code == sqlite3.SQLITE_BUSY:
        return "another program is writing to it"
    return str(failure)


def _code(failure: Exception) -> int:
    code: int = getattr(failure, "sqlite_errorcode", 0)
    return code & 0xFF  # the low byte is the kind, the rest its detail


def path_of(connection: sqlite3.Connection) -> Path:
    """The file behind an open recording."""
    return Path(connection.execute("SELECT file FROM pragma_database_list WHERE name = 'main'").fetchone()[0])


def _row(path: Path, seq: int, *values: Any) -> Row:
    *recorded, checksum = values
    received_at_ns, topic, qos, retain, dup, properties, payload = recorded
    # the file may be anybody's: without STRICT a column holds any type, and a checksum can be made for it
    types = tuple(map(type, recorded)) == (int, str, int, int, int, str, bytes)
    if not types or _checksum(*recorded) != checksum:
        raise RecordingError(f"{path}: row {seq} is damaged, its checksum differs; restore the file from a copy")
    try:
        said = properties_from_json(properties)
    except ValueError as error:
        raise RecordingError(f"{path}: row {seq} is damaged: {error}; restore the file from a copy") from None
    return Row(received_at_ns, topic, payload, qos, bool(retain), bool(dup), said, seq=seq)


def _checksum(*values: Any) -> int:
    *fields, payload = values
    return zlib.crc32(payload, zlib.crc32(repr(fields).encode("utf-8")))


def properties_to_json(properties: MessageProperties) -> str:
    """MQTT 5 properties as one compact JSON object; what is not set is left out."""
    correlation_data = properties.correlation_data
    present = {
        "user": properties.user or None,
        "content_type": properties.content_type,
        "response_topic": properties.response_topic,
        "correlation_data": None if correlation_data is None else correlation_data.hex(),
        "expiry_s": properties.expiry_s,
        "payload_format": properties.payload_format,
    }
    return json.dumps({k: v for k, v in present.items() if v is not None}, ensure_ascii=False, separators=(",", ":"))


def properties_from_json(text: str) -> MessageProperties:
    """What `properties_to_json` wrote; ValueError for anything else."""
    try:
        present = json.loads(text)
    except RecursionError:
        raise ValueError("MQTT properties are no nested lists") from None
    if not isinstance(present, dict):
        raise ValueError(f"MQTT properties are an object, not a {type(present).__name__}")
    return MessageProperties(
        user=tuple(map(_user_property, _property(present, "user", list) or ())),
        content_type=_property(present, "content_type", str),
        response_topic=_property(present, "response_topic", str),
        correlation_data=_unhex(_property(present, "correlation_data", str)),
        expiry_s=_property(present, "expiry_s", int),
        payload_format=_property(present, "payload_format", int),
    )


def _property(present: dict[str, Any], name: str, kind: type[V]) -> V | None:
    value = present.get(name)
    if value is None or type(value) is kind:
        return value
    raise ValueError(f"the MQTT property {name} is no {kind.__name__}")


def _user_property(pair: Any) -> tuple[str, str]:
    match pair:
        case [str(key), str(value)]:
            return key, value
    raise ValueError("a user property in MQTT is two texts")


def _unhex(digits: str | None) -> bytes | None:
    return None if digits is None else bytes.fromhex(digits)
