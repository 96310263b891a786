"""What a federation has left behind, read from its files alone: journal, registry, outboxes, witnesses, faults.

Nothing here goes through the product's own readers but signatures and the replay, which are its own to check: a fault
in the others would hide itself.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.recovery import Kill
from chaos.witness import Seen, read
from coordinator.journal import POISON
from coordinator.registry import Registry
from coordinator.replay.inside import replay
from coordinator.trust.verification import read_certified, verify_chain
from schemas.signing import unsigned


@dataclass(frozen=True)
class Recorded:
    """The coordinator's word on one update."""

    node: str
    update: str
    status: str
    version: int | None
    reason: str | None


@dataclass(frozen=True)
class Made:
    """One version by its manifest: its digest, its parent's, and the updates that went into it."""

    version: int
    digest: str
    parent: str | None
    inputs: tuple[str, ...]

    @classmethod
    def from_json(cls, content: bytes) -> "Made":
        manifest = json.loads(content)
        inputs = tuple(given["update_id"] for given in manifest["inputs"])
        return cls(manifest["version"], manifest["body"]["sha256"], manifest["parent"], inputs)


@dataclass(frozen=True)
class NodeLedger:
    """A node's own files: what waits in its outbox, and how many updates it counts as receipted."""

    waiting: frozenset[str]
    receipted: int


@dataclass(frozen=True)
class Freeze:
    """A coordinator that was frozen for longer than its lease: when it woke up, its exit code, and its epoch."""

    woke_at: float
    over_at: float
    code: int | None
    epochs: int


@dataclass(frozen=True)
class Ledgers:
    """All of it. `journalled` and `registered` are the same versions as journal and registry know them."""

    updates: tuple[Recorded, ...]
    journalled: tuple[Made, ...]
    registered: tuple[Made, ...]
    sealed: tuple[Made, ...]
    chain_faults: tuple[str, ...]
    replay_faults: tuple[str, ...]
    poisoned: tuple[str, ...]  # topics of messages that were set aside unread: none of them can be deadly here
    nodes: Mapping[str, NodeLedger]
    seen: tuple[Seen, ...]
    kills: tuple[Kill, ...]
    freezes: tuple[Freeze, ...]
    ended: tuple[str, ...]


def read_ledgers(folder: Path, keys: Path) -> Ledgers:
    """Everything below a round's folder; its processes have ended. `keys` is what `alignfed keys` made."""
    registry = folder / "coordinator" / "adapters"
    faults = list(_faults(folder / "faults.jsonl"))
    with closing(_open(folder / "coordinator" / "journal.db")) as journal:
        updates = journal.execute("SELECT node, update_id, status, version, reason FROM updates").fetchall()
        manifests = journal.execute("SELECT manifest FROM versions ORDER BY version").fetchall()
        poisoned = journal.execute("SELECT topic FROM messages WHERE topic GLOB ?", (f"{POISON}*",)).fetchall()
    return Ledgers(
        updates=tuple(Recorded(*row) for row in updates),
        journalled=tuple(Made.from_json(manifest) for (manifest,) in manifests),
        registered=tuple(map(Made.from_json, _in_order(registry / "manifests", "*.json"))),
        sealed=tuple(Made.from_json(unsigned(payload)) for payload in _in_order(registry / "signatures", "*.signed")),
        chain_faults=_chain_faults(registry, keys),
        replay_faults=_replay_faults(folder / "coordinator" / "journal.db"),
        poisoned=tuple(topic.removeprefix(POISON) for (topic,) in poisoned),
        nodes={path.parent.name: _node_ledger(path) for path in sorted(folder.rglob("outbox.db"))},
        seen=tuple(sorted((one for path in (folder / "witness").glob("*.jsonl") for one in read(path)), key=_time)),
        kills=tuple(Kill(**fact) for what, _, fact in faults if what == "kill"),
        freezes=tuple(_freezes(faults)),
        ended=tuple(fact["target"] for what, _, fact in faults if what == "ended by itself"),
    )


def _chain_faults(registry: Path, keys: Path) -> tuple[str, ...]:
    chain = verify_chain(Registry(registry), read_certified(keys / "coordinator"))
    return tuple(f"version {found.version}: {found.fault}" for found in chain if found.fault is not None)


def _replay_faults(journal: Path) -> tuple[str, ...]:
    return tuple(f"a replay makes another version {made.version}" for made in replay(journal) if not made.agrees)


def _node_ledger(path: Path) -> NodeLedger:
    with closing(_open(path)) as outbox:
        waiting = outbox.execute("SELECT update_id FROM updates").fetchall()
        (receipted,) = outbox.execute("SELECT participation FROM memory").fetchone()
    return NodeLedger(frozenset(id_ for (id_,) in waiting), receipted)


def _faults(path: Path) -> Iterator[tuple[str, float, dict[str, Any]]]:
    for line in path.read_text().splitlines():
        fact = json.loads(line)
        yield fact.pop("what"), fact.pop("noted_at"), _with_tuples(fact)


def _freezes(faults: list[tuple[str, float, dict[str, Any]]]) -> Iterator[Freeze]:
    ends = [at for what, at, _ in faults if what == "freeze is over"]
    for what, at, fact in faults:
        if what == "freeze":
            yield Freeze(over_at=next((end for end in ends if end > at), at), **fact)


def _with_tuples(fact: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fact.items()}


def _in_order(folder: Path, pattern: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob(pattern), key=lambda path: int(path.stem))]


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)


def _time(one: Seen) -> float:
    return one.at
