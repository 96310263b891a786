"""One update from node to version, as the journal tells it: what arrived when, what was decided, what became of it.

It reads the journal and the registry and changes nothing, so a coordinator may go on writing meanwhile.
"""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from broker.recording import RecordingError
from coordinator.equations import staleness
from coordinator.registry import Registry, RegistryError
from coordinator.watch.status import Count, Value, Verdict, verdict
from schemas.messages import GlobalManifest, GroupReport, InvalidMessage, Loss, ReceiptStatus, UpdateManifest
from schemas.reading import message_on
from schemas.topics import UpdateChunk, UpdateManifestOf, parse

ID_PREFIX = re.compile(r"[0-9a-f]{6,32}")


class NoSuchUpdate(LookupError):
    """The journal knows no update, or more than one, by this name; the text says what to do."""


class Arrival(Value):
    """One message of the update as it reached the coordinator."""

    at_ns: int
    what: str = Field(description="manifest, or chunk and its number")
    size: Count = Field(description="bytes")
    duplicate: bool = Field(description="marked by the broker as sent again")


class VersionOfUpdate(Value):
    """The version that the update went into."""

    version: Count
    at_ns: int
    digest: str
    weight: float = Field(description="absolute factor of the update's delta in the step")
    weight_share: float = Field(description="of the weights of all updates in it")
    staleness: Count
    updates: Count
    group: GroupReport | None = Field(description="the updates of the same base version, where the strategy reports it")
    verdict: Verdict
    gate_before: Loss | None
    gate_after: Loss | None


class Trace(Value):
    """From node to version."""

    update_id: str
    node: str
    status: ReceiptStatus | None = Field(description="none while parts are missing")
    reason: str | None = Field(description="why it was refused")
    base_version: Count | None
    sequence: Count | None = Field(description="the node's running number")
    examples: Count | None
    steps: Count | None
    loss: float | None = Field(description="of the node's training")
    training_seconds: float | None
    codec: str | None
    size: Count | None = Field(description="bytes of the body")
    arrivals: tuple[Arrival, ...]
    decided_at_ns: int | None = Field(description="when it was accepted or refused")
    went_into: VersionOfUpdate | None


class _Outcome(NamedTuple):
    """What the journal's table says of an update."""

    node: str
    update_id: str
    status: ReceiptStatus
    reason: str | None
    base_version: int
    version: int | None
    received_at_ns: int


def trace(data_dir: Path, federation: str, update_id: str) -> Trace:
    """Follow an update by its id, or by the first six digits or more. Raises NoSuchUpdate, RecordingError."""
    if not ID_PREFIX.fullmatch(update_id):
        raise NoSuchUpdate(f"{update_id[:64]!a} is no update id: give 6 to 32 hexadecimal digits of one")
    with _reading(data_dir / "journal.db") as journal:
        outcomes = _outcomes(journal, update_id)
        arrivals = list(_arrivals(journal, federation, update_id))
    names = {(o.node, o.update_id) for o in outcomes} | {(node, id_) for node, id_, *_ in arrivals}
    if not names:
        raise NoSuchUpdate(f"no update {update_id} ever reached this coordinator")
    if len(names) > 1:
        several = ", ".join(f"{id_} of {node}" for node, id_ in sorted(names)[:5])
        raise NoSuchUpdate(f"{update_id} is the beginning of several updates: {several}; give more digits")
    [(node, id_)] = names
    manifest = next((manifest for *_, manifest in arrivals if manifest is not None), None)
    outcome = outcomes[0] if outcomes else None
    return Trace(
        update_id=id_,
        node=node,
        status=outcome.status if outcome else None,
        reason=outcome.reason if outcome else None,
        base_version=manifest.base_version if manifest else outcome.base_version if outcome else None,
        sequence=manifest.sequence if manifest else None,
        examples=manifest.examples if manifest else None,
        steps=manifest.steps if manifest else None,
        loss=manifest.loss if manifest else None,
        training_seconds=manifest.seconds if manifest else None,
        codec=manifest.body.codec if manifest else None,
        size=manifest.body.size if manifest else None,
        arrivals=tuple(arrival for _, _, arrival, _ in arrivals),
        decided_at_ns=outcome.received_at_ns if outcome else None,
        went_into=_version(Registry(data_dir / "adapters"), outcome),
    )


def _outcomes(journal: sqlite3.Connection, prefix: str) -> list[_Outcome]:
    rows = journal.execute(
        f"SELECT {', '.join(_Outcome._fields)} FROM updates WHERE update_id >= ? AND update_id <= ?",
        (prefix, prefix + "g"),  # the first letter that is no hexadecimal digit
    )
    return [_Outcome(*row) for row in rows]


def _arrivals(
    journal: sqlite3.Connection, federation: str, prefix: str
) -> Iterator[tuple[str, str, Arrival, UpdateManifest | None]]:
    """Every message of updates whose id begins so, in order: node, id, arrival, and the manifest if it is one."""
    rows = journal.execute(
        "SELECT seq, received_at_ns, topic, length(payload), dup FROM messages WHERE topic LIKE ? ORDER BY seq",
        (f"%/{prefix}%",),
    )
    for seq, at_ns, topic, size, duplicate in rows:
        match parse(federation, topic):
            case UpdateManifestOf(node, id_) as address if id_.startswith(prefix):
                arrival = Arrival(at_ns=at_ns, what="manifest", size=size, duplicate=bool(duplicate))
                yield node, id_, arrival, _manifest(journal, seq, address)
            case UpdateChunk(node, id_, index) if id_.startswith(prefix):
                arrival = Arrival(at_ns=at_ns, what=f"chunk {index}", size=size, duplicate=bool(duplicate))
                yield node, id_, arrival, None


def _manifest(journal: sqlite3.Connection, seq: int, address: UpdateManifestOf) -> UpdateManifest | None:
    [(payload,)] = journal.execute("SELECT payload FROM messages WHERE seq = ?", (seq,)).fetchall()
    try:
        return message_on(address, payload)
    except InvalidMessage:
        return None


def _version(registry: Registry, outcome: _Outcome | None) -> VersionOfUpdate | None:
    if outcome is None or outcome.version is None:
        return None
    try:
        manifest = registry.manifest(outcome.version)
        decision, release = registry.decision(manifest.version), registry.release()
    except RegistryError:
        return None  # a crash kept it out of the registry; the next start puts it there
    mine = next((update for update in manifest.inputs if update.update_id == outcome.update_id), None)
    weight = mine.weight if mine else 0.0
    return VersionOfUpdate(
        version=manifest.version,
        at_ns=manifest.created_at_ns,
        digest=manifest.digest,
        weight=weight,
        weight_share=abs(weight) / (sum(abs(update.weight) for update in manifest.inputs) or 1.0),
        staleness=staleness(manifest.version - 1, outcome.base_version),
        updates=len(manifest.inputs),
        group=_group(manifest, outcome.base_version),
        verdict=verdict(manifest.version, decision, release),
        gate_before=decision.before if decision else None,
        gate_after=decision.candidate if decision else None,
    )


def _group(manifest: GlobalManifest, base_version: int) -> GroupReport | None:
    return next((group for group in manifest.groups if group.base_version == base_version), None)


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """The journal, read only; not checked from end to end, for it may be large and somebody waits."""
    if not path.is_file():
        raise RecordingError(f"{path} does not exist: name the coordinator's folder by --data-dir")
    try:
        with closing(sqlite3.connect(path.resolve().as_uri() + "?mode=ro", uri=True)) as connection:
            yield connection
    except sqlite3.Error as fault:
        raise RecordingError(f"{path} cannot be read: {fault}") from fault
