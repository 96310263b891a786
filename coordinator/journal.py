"""The journal: everything that ever went into the core, raw and in order, and beside it what came of it, for reading.

The recording file holds one row for each event: messages as they arrived, and under topics of its own, which are none
of the federation's, the terms of the federation, its first adapter, the base model's answers, ticks and starts. Whoever
writes a message here has made sure that its topic is one of the federation's. The core's state is a fold over these
rows. The tables `versions` and `updates` are written in the same transaction and only ever read by
people, tools and tests.
"""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from broker.recording import RecordingError, Row, append, in_words, open_recording, read_rows, reading
from coordinator.checkpoint import Checkpoint
from coordinator.core import found, step
from coordinator.privacy.noise import KEY_BYTES
from coordinator.state import (
    Answered,
    Configured,
    Effect,
    Event,
    FederationConfig,
    FederationState,
    KeysChanged,
    NoiseKeyDrawn,
    Ordered,
    OwnEvent,
    Poisoned,
    PublishVersion,
    Received,
    RolledBack,
    SendReceipt,
    Started,
    Ticked,
)
from coordinator.trust.ledger import NodeReport, report_of
from coordinator.watch.history import History, observe
from schemas.adapter import Adapter, InvalidAdapter
from schemas.messages import GlobalManifest, InvalidMessage, Variant
from schemas.trust import KeyRing

CONFIG, ADAPTER, TICK, START = "$journal/config", "$journal/adapter", "$journal/tick", "$journal/start"
KEYS = "$journal/keys"
NOISE = "$journal/noise"  # a secret, as all of the journal is
ROLLBACK = "$journal/rollback/"  # followed by the order's number, and version/variant/scope
ANSWER = "$journal/answer/"  # followed by the question's id, as version/index
POISON = "$journal/poison/"  # followed by the message's topic; the payload is the message's
ORDER = "$journal/order/"  # followed by the order's number

_SCHEMA = """
CREATE TABLE IF NOT EXISTS versions (
    version INTEGER PRIMARY KEY,
    digest TEXT NOT NULL,
    manifest BLOB NOT NULL,
    seq INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS updates (
    node TEXT NOT NULL,
    update_id TEXT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT,
    base_version INTEGER NOT NULL,
    version INTEGER,
    examples INTEGER NOT NULL,
    steps INTEGER NOT NULL,
    loss REAL NOT NULL,
    body_size INTEGER NOT NULL,
    manifest_size INTEGER NOT NULL,
    received_at_ns INTEGER NOT NULL,
    PRIMARY KEY (node, update_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS nodes (
    node TEXT PRIMARY KEY,
    report TEXT NOT NULL
) STRICT, WITHOUT ROWID;
"""


@dataclass(frozen=True)
class UpdateRow:
    """What became of one update; `version` is the one it was aggregated into."""

    node: str
    update_id: str
    status: str
    reason: str | None
    base_version: int
    version: int | None
    examples: int
    steps: int
    loss: float
    body_size: int
    manifest_size: int
    received_at_ns: int


# what was accepted stays so, whatever becomes of a late copy
_INSERT_UPDATE = f"""
INSERT OR REPLACE INTO updates SELECT {", ".join("?" * len(UpdateRow.__dataclass_fields__))}
WHERE NOT EXISTS (
    SELECT 1 FROM updates WHERE node = ?1 AND update_id = ?2 AND status IN ('accepted', 'aggregated')
)
"""


def open_journal(path: Path) -> sqlite3.Connection:
    """Open or create the journal; on damage RecordingError says what to do."""
    connection = open_recording(path)
    with in_words(path):
        connection.executescript(_SCHEMA)
    return connection


def record_founding(connection: sqlite3.Connection, config: FederationConfig, adapter: Adapter, at_ns: int) -> None:
    """Write the first two rows and version 0, within a transaction."""
    append(connection, Row(at_ns, CONFIG, config.to_bytes()))
    seq = append(connection, Row(at_ns, ADAPTER, adapter.to_safetensors()))
    _record_effects(connection, seq, at_ns, found(config, adapter, at_ns)[1])


def record(connection: sqlite3.Connection, row: Row, effects: tuple[Effect, ...]) -> None:
    """Write one event's row and what came of it, within a transaction."""
    _record_effects(connection, append(connection, row), row.received_at_ns, effects)


def record_nodes(connection: sqlite3.Connection, before: FederationState | None, after: FederationState) -> None:
    """Write what has changed of the nodes' ledgers between two states, within a transaction; all without a before."""
    old = before.nodes if before else {}
    if after.nodes is old:
        return
    changed = [(node, ledger) for node, ledger in after.nodes.items() if ledger is not old.get(node)]
    rows = [(node, report_of(node, ledger).model_dump_json()) for node, ledger in changed]
    connection.executemany("INSERT OR REPLACE INTO nodes VALUES (?, ?)", rows)
    connection.executemany("DELETE FROM nodes WHERE node = ?", [(node,) for node in old.keys() - after.nodes.keys()])


def row_of_event(event: OwnEvent) -> Row:
    """The row of an event that is not a message taken in."""
    match event:
        case Poisoned():
            return Row(event.at_ns, POISON + event.topic, event.payload)
        case Ticked():
            return Row(event.at_ns, TICK, b"")
        case Answered(at_ns, (version, index), payload):
            return Row(at_ns, f"{ANSWER}{version}/{index}", payload)
        case Started():
            return Row(event.at_ns, START, b"")
        case Ordered(at_ns, number, payload):
            return Row(at_ns, f"{ORDER}{number}", payload)
        case Configured():
            return Row(event.at_ns, CONFIG, event.config.to_bytes())
        case KeysChanged():
            return Row(event.at_ns, KEYS, event.ring.to_bytes())
        case NoiseKeyDrawn():
            return Row(event.at_ns, NOISE, event.key)
        case RolledBack(at_ns, number, version, variant, scope, body):
            return Row(at_ns, f"{ROLLBACK}{number}/{version}/{variant}/{scope}", body)


def fold(path: Path) -> Iterator[tuple[FederationState, tuple[Effect, ...]]]:
    """The state and the effects after each row from the second on; nothing for an empty journal."""
    for _, state, effects in fold_rows(path):
        yield state, effects


def fold_rows(path: Path) -> Iterator[tuple[Row, FederationState, tuple[Effect, ...]]]:
    """The same, with each row."""
    first_two = list(islice(read_rows(path), 2))
    if len(first_two) < 2:
        return
    first, second = first_two
    config, adapter = founding(path, first, second)
    state, effects = found(config, adapter, second.received_at_ns)
    yield second, state, effects
    yield from _fold_on(path, second.seq, state)


def _fold_on(path: Path, seq: int, state: FederationState) -> Iterator[tuple[Row, FederationState, tuple[Effect, ...]]]:
    for row in read_rows(path, seq):
        state, effects = step(state, _recorded_event(path, row))
        yield row, state, effects


def fold_history(
    path: Path, since: Checkpoint | None = None
) -> Iterator[tuple[FederationState, History, tuple[Effect, ...]]]:
    """The same, with the history of all rows so far in place of the row; with a checkpoint, after its row only."""
    history = History() if since is None else since.history
    for row, state, effects in fold_rows(path) if since is None else _fold_on(path, since.seq, since.state):
        event = None if row.topic == ADAPTER else _recorded_event(path, row)
        history = observe(history, event, effects, row.received_at_ns)
        yield state, history, effects


def _recorded_event(path: Path, row: Row) -> Event:
    try:
        return event_of_row(row)
    except ValueError as error:
        raise RecordingError(f"{path}: row {row.seq} is no event of a coordinator: {error}") from None


def was_taken(connection: sqlite3.Connection, number: int) -> bool:
    """Whether the order of this number is in the journal."""
    found = connection.execute(
        "SELECT 1 FROM messages WHERE topic = ? OR topic GLOB ?", (f"{ORDER}{number}", f"{ROLLBACK}{number}/*")
    )
    return found.fetchone() is not None


def read_versions(path: Path) -> list[GlobalManifest]:
    """The recorded manifests, oldest first."""
    with reading(path) as connection:
        rows = connection.execute("SELECT manifest FROM versions ORDER BY version").fetchall()
    try:
        return [GlobalManifest.from_bytes(manifest) for (manifest,) in rows]
    except InvalidMessage as error:
        raise RecordingError(f"{path} is damaged: {error}; restore it from a copy") from None


def read_updates(path: Path) -> list[UpdateRow]:
    """Every update whose manifest could be read, in order of arrival."""
    columns = ", ".join(UpdateRow.__dataclass_fields__)
    with reading(path) as connection:
        rows = connection.execute(f"SELECT {columns} FROM updates ORDER BY received_at_ns, node, update_id").fetchall()
    return [UpdateRow(*row) for row in rows]


def read_terms(path: Path) -> FederationConfig:
    """The newest terms of a journal's federation. Raises RecordingError."""
    with reading(path) as connection:
        query = "SELECT payload FROM messages WHERE topic = ? ORDER BY seq DESC LIMIT 1"
        row = connection.execute(query, (CONFIG,)).fetchone()
    if row is None:
        raise RecordingError(f"{path} has no federation's terms: it is a recording, or its coordinator has not begun")
    try:
        return FederationConfig.from_bytes(row[0])
    except ValueError as error:
        raise RecordingError(f"{path}: the federation's terms cannot be read: {error}") from None


def founding(path: Path, first: Row, second: Row) -> tuple[FederationConfig, Adapter]:
    """The terms and version 0, from a journal's first two rows; RecordingError for those of anything else."""
    if (first.topic, second.topic) != (CONFIG, ADAPTER):
        raise RecordingError(f"{path} does not begin with a federation's terms: it is a recording, not a journal")
    try:
        config = FederationConfig.from_bytes(first.payload)
        adapter = Adapter.from_safetensors(config.layout, second.payload)
    except (ValueError, InvalidAdapter) as error:
        raise RecordingError(f"{path}: the federation's terms cannot be read: {error}") from None
    return config, adapter


def event_of_row(row: Row) -> Event:
    """What `row_of_event` made a row of, or a message; ValueError for a row that it cannot have made."""
    match row.topic:
        case topic if topic == TICK:
            return Ticked(row.received_at_ns)
        case topic if topic == START:
            return Started(row.received_at_ns)
        case topic if topic.startswith(ANSWER):
            version, index = topic.removeprefix(ANSWER).split("/")
            return Answered(row.received_at_ns, (int(version), int(index)), row.payload)
        case topic if topic.startswith(POISON):
            return Poisoned(row.received_at_ns, topic.removeprefix(POISON), row.payload)
        case topic if topic.startswith(ORDER):
            return Ordered(row.received_at_ns, int(topic.removeprefix(ORDER)), row.payload)
        case topic if topic == CONFIG:
            return Configured(row.received_at_ns, FederationConfig.from_bytes(row.payload))
        case topic if topic == KEYS:
            return KeysChanged(row.received_at_ns, KeyRing.from_bytes(row.payload))
        case topic if topic == NOISE:
            if len(row.payload) != KEY_BYTES:
                raise ValueError(f"a key of noise has {KEY_BYTES} bytes, got {len(row.payload)}")
            return NoiseKeyDrawn(row.received_at_ns, row.payload)
        case topic if topic.startswith(ROLLBACK):
            order, version, of, scope = topic.removeprefix(ROLLBACK).split("/")
            variant: Variant = "average" if of == "average" else "head"
            wanted: Literal["release", "head"] = "head" if scope == "head" else "release"
            # rollbacks were once named by 32 digits of their own
            number = int(order) if len(order) < 32 else None
            return RolledBack(row.received_at_ns, number, int(version), variant, wanted, row.payload)
        case _:
            return Received(row.received_at_ns, row.topic, row.payload)


def read_nodes(path: Path) -> list[NodeReport]:
    """Every node's ledger as it stands, by name. Raises RecordingError."""
    with reading(path) as connection:
        try:
            rows = connection.execute("SELECT report FROM nodes ORDER BY node").fetchall()
        except sqlite3.OperationalError:
            raise RecordingError(f"{path} has no table of nodes yet: start its coordinator once") from None
    return [NodeReport.model_validate_json(report) for (report,) in rows]


def _record_effects(connection: sqlite3.Connection, seq: int, at_ns: int, effects: tuple[Effect, ...]) -> None:
    for effect in effects:
        match effect:
            case PublishVersion(manifest):
                values = (manifest.version, manifest.digest, manifest.to_bytes(), seq)
                connection.execute("INSERT INTO versions VALUES (?, ?, ?, ?)", values)
            case SendReceipt(node, receipt, None) if receipt.status in ("aggregated", "rejected", "stale"):
                connection.execute(
                    "UPDATE updates SET status = ?, reason = ?, version = ? WHERE node = ? AND update_id = ?",
                    (receipt.status, receipt.reason, receipt.version, node, receipt.update_id),
                )
            case SendReceipt(node, receipt, manifest) if manifest is not None:
                row = UpdateRow(
                    node=node,
                    update_id=receipt.update_id,
                    status=receipt.status,
                    reason=receipt.reason,
                    base_version=manifest.base_version,
                    version=receipt.version,
                    examples=manifest.examples,
                    steps=manifest.steps,
                    loss=manifest.loss,
                    body_size=manifest.body.size,
                    manifest_size=len(manifest.to_bytes()),
                    received_at_ns=at_ns,
                )
                connection.execute(_INSERT_UPDATE, tuple(vars(row).values()))
