"""What the rows of a recording are, a coordinator's journal included, and which of them to take.

A journal has rows that no client can publish: the terms, the first adapter, answers, ticks and starts. All others are
messages, which schemas/reading.py reads.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from broker.recording import RecordingError, Row, last_seq, read_rows, reading, transaction, write_recording
from coordinator.journal import ADAPTER, ANSWER, CONFIG, KEYS, NOISE, ORDER, POISON, ROLLBACK, START, TICK, open_journal
from schemas.messages import GlobalManifest, InvalidMessage, split_body
from schemas.reading import Reading, address_of, message_on, read, summary
from schemas.topics import CoordinatorStateOf, GlobalAverageChunk, GlobalChunk, GlobalHead, GlobalManifestOf

JOURNAL = "$journal/"


@dataclass
class Volume:
    """How much there is of one kind or topic, and when the first and the last of it came, in ns since 1970."""

    messages: int = 0
    payload_bytes: int = 0
    first_ns: int = 0
    last_ns: int = 0
    faults: int = 0

    def add(self, row: Row, fault: str | None) -> None:
        """Count one row."""
        self.first_ns = min(self.first_ns, row.received_at_ns) if self.messages else row.received_at_ns
        self.last_ns = max(self.last_ns, row.received_at_ns) if self.messages else row.received_at_ns
        self.messages += 1
        self.payload_bytes += len(row.payload)
        self.faults += fault is not None


@dataclass(frozen=True)
class Selection:
    """Which rows to take: all that satisfy every condition that is not None or empty. Times are in ns since 1970."""

    nodes: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    version: int | None = None
    since_ns: int | None = None
    until_ns: int | None = None

    def takes(self, row: Row, said: Reading) -> bool:
        """Whether this row is taken; a kind also names those below it, `update` both manifests and chunks."""
        return (
            (not self.nodes or said.node in self.nodes)
            and (not self.kinds or any(f"{said.kind}/".startswith(f"{kind}/") for kind in self.kinds))
            and (self.version is None or said.version == self.version)
            and (self.since_ns is None or row.received_at_ns >= self.since_ns)
            and (self.until_ns is None or row.received_at_ns <= self.until_ns)
        )


@dataclass(frozen=True)
class Cut:
    """What a new recording keeps of an old one: a span of time or of versions, and whose messages.

    The span of a version is all that came after the head before it was published, up to its own. `nodes` and `without`
    concern only messages that are of one node.
    """

    since_ns: int | None = None
    until_ns: int | None = None
    first_version: int | None = None
    last_version: int | None = None
    nodes: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    @property
    def keeps_the_beginning(self) -> bool:
        """Whether all rows up to some row are kept, so that a journal stays one."""
        return self.since_ns is None and not self.first_version and not self.nodes and not self.without


def read_row(row: Row) -> Reading:
    """What a row is and says, whatever its bytes."""
    if not row.topic.startswith(JOURNAL):
        return read(row.topic, row.payload)
    kind = f"journal/{row.topic.removeprefix(JOURNAL).partition('/')[0]}"
    try:
        match row.topic:
            case topic if topic in (CONFIG, KEYS):
                return Reading(kind, content=_object(row.payload))
            case topic if topic in (TICK, START, NOISE):
                return Reading(kind)  # of the key of noise nothing is said
            case topic if topic.startswith(POISON):
                of = read(topic.removeprefix(POISON), b"")  # what it is of; nothing looks into the payload
                content = {"topic": topic.removeprefix(POISON), **summary(row.payload)}
                return replace(of, kind=kind, content=content, fault=None)
            case topic if topic.startswith(ORDER):
                return Reading(kind, content=_object(row.payload))
            case topic if topic.startswith(ANSWER):
                version, index = topic.removeprefix(ANSWER).split("/")
                head, bodies = split_body(row.payload)
                content = {"question": [int(version), int(index)], **_object(head), "bodies": summary(bodies)}
                return Reading(kind, version=int(version), content=content)
            case topic if topic.startswith(ROLLBACK):
                _, number, variant, scope = topic.removeprefix(ROLLBACK).split("/")
                content = {"variant": variant, "scope": scope, **summary(row.payload)}
                return Reading(kind, version=int(number), content=content)
    except ValueError as error:
        return Reading(kind, content=summary(row.payload), fault=str(error))
    return Reading(kind, content=summary(row.payload), version=0 if row.topic == ADAPTER else None)


def _object(text: bytes) -> dict[str, Any]:
    """A JSON object; ValueError for anything else."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("lists within lists, too deep to be read") from None
    if not isinstance(value, dict):
        raise ValueError(f"an object is expected here, not a {type(value).__name__}")
    return value


def volumes(path: Path) -> tuple[dict[str, Volume], dict[str, Volume]]:
    """A recording's table of contents, by kind and by topic. Raises RecordingError."""
    kinds: dict[str, Volume] = {}
    topics: dict[str, Volume] = {}
    for row in read_rows(path):
        said = read_row(row)
        kinds.setdefault(said.kind, Volume()).add(row, said.fault)
        topics.setdefault(row.topic, Volume()).add(row, said.fault)
    return dict(sorted(kinds.items())), dict(sorted(topics.items()))


def select(path: Path, selection: Selection) -> Iterator[tuple[Row, Reading]]:
    """The rows that a selection takes, with what they say. Raises RecordingError."""
    for row in read_rows(path):
        said = read_row(row)
        if selection.takes(row, said):
            yield row, said


def row_at(path: Path, seq: int) -> Row:
    """One row by its number. Raises RecordingError when it is not there."""
    row = next(read_rows(path, seq - 1), None)
    if row is None or row.seq != seq:
        raise RecordingError(f"{path} has no message {seq}")
    return row


def is_journal(path: Path) -> bool:
    """Whether a recording begins with a federation's terms. Raises RecordingError."""
    first = next(read_rows(path), None)
    return first is not None and first.topic == CONFIG


def is_published(row: Row) -> bool:
    """Whether a row is a message that a client published."""
    return not row.topic.startswith("$")


def is_of_a_node(row: Row) -> bool:
    """Whether a row is a message that a node published."""
    found = address_of(row.topic)
    return found is not None and found[1].spec.sender == "node"


def sender_of(row: Row) -> str:
    """Who published a message: a node or the coordinator by name, `others` for what is on no topic of ours."""
    found = address_of(row.topic)
    if found is None:
        return "others"
    node: str = getattr(found[1], "node", "") if found[1].spec.sender == "node" else "coordinator"
    return node


def version_rows(path: Path) -> Mapping[int, int]:
    """The row with which each version became the head: by a journal's own table, else by the pointers in it."""
    if is_journal(path) and (recorded := recorded_digests(path)):
        return {version: seq for version, (_, seq) in recorded.items()}
    marks: dict[int, int] = {}
    for row in read_rows(path):
        match address_of(row.topic):
            case (_, GlobalHead() as head) if row.payload:
                try:
                    marks.setdefault(message_on(head, row.payload).version, row.seq)
                except InvalidMessage:
                    continue  # a pointer that no node could follow either
    return marks


def recorded_digests(path: Path) -> dict[int, tuple[str, int]]:
    """Each version's digest and row, as a journal's table has them; empty for a recording without it."""
    return recorded_so_far(path)[1]


def recorded_so_far(path: Path) -> tuple[int, dict[int, tuple[str, int]]]:
    """The newest row, and the same up to there: a coordinator may be at work."""
    with reading(path) as connection:
        newest = last_seq(connection)
        if not _has_versions(connection):
            return newest, {}
        query = "SELECT version, manifest, seq FROM versions WHERE seq <= ? ORDER BY version"
        rows = connection.execute(query, (newest,)).fetchall()
    try:
        return newest, {version: (GlobalManifest.from_bytes(manifest).digest, seq) for version, manifest, seq in rows}
    except InvalidMessage as error:
        raise RecordingError(f"{path} is damaged: {error}; restore it from a copy") from None


def cut(path: Path, out: Path, wanted: Cut) -> int:
    """Write what is wanted of a recording into a new one and return how many rows. Raises RecordingError.

    A journal that keeps its beginning stays a journal, with the table of its versions.
    """
    first, last = _span(path, wanted)
    count = write_recording(out, _kept(path, wanted, first, last))
    if wanted.keeps_the_beginning and is_journal(path):
        with closing(open_journal(out)) as target, transaction(target):
            _copy_versions(path, target, count)
    return count


def _span(path: Path, wanted: Cut) -> tuple[int, int | None]:
    """The rows after which to begin and with which to end."""
    if wanted.first_version is None and wanted.last_version is None:
        return 0, None
    marks = version_rows(path)
    for version in (wanted.first_version, wanted.last_version):
        if version is not None and version not in marks:
            known = f"{min(marks)} to {max(marks)}" if marks else "none"
            raise RecordingError(f"{path} has no version {version}; it has {known}")
    before = [seq for version, seq in marks.items() if wanted.first_version and version < wanted.first_version]
    return max(before, default=0), None if wanted.last_version is None else marks[wanted.last_version]


def _kept(path: Path, wanted: Cut, after: int, last: int | None) -> Iterable[Row]:
    for row in read_rows(path):
        if (last is not None and row.seq > last) or (
            wanted.until_ns is not None and row.received_at_ns > wanted.until_ns
        ):
            return
        if wanted.since_ns is not None and row.received_at_ns < wanted.since_ns:
            continue
        if row.seq <= after and not _is_needed(row, wanted.first_version):
            continue
        node = read_row(row).node
        if node is not None and ((wanted.nodes and node not in wanted.nodes) or node in wanted.without):
            continue
        yield row


def _is_needed(row: Row, first_version: int | None) -> bool:
    """Whether a row before the span is what the span builds on: the version before it, and the coordinator's birth."""
    found = address_of(row.topic)
    match found:
        case (_, GlobalManifestOf(version)) | (_, GlobalChunk(version, _)) | (_, GlobalAverageChunk(version, _)):
            return first_version is not None and version == first_version - 1
        case (_, CoordinatorStateOf()):
            return True
    return False


def _copy_versions(path: Path, target: sqlite3.Connection, last: int) -> None:
    with reading(path) as source:
        if _has_versions(source):
            rows: list[tuple[Any, ...]] = source.execute(
                "SELECT version, digest, manifest, seq FROM versions WHERE seq <= ?", (last,)
            ).fetchall()
            target.executemany("INSERT INTO versions VALUES (?, ?, ?, ?)", rows)


def _has_versions(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'versions'").fetchone() is not None
