"""What a small, sound federation leaves behind: three versions of two updates each, for tests to doctor."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from broker.federation_keys import init
from broker.recording import Row, transaction
from chaos.checker import Findings, check
from chaos.ledgers import read_ledgers
from chaos.witness import Witness
from coordinator.core import found, step
from coordinator.journal import open_journal, record, record_founding
from coordinator.registry import Registry
from coordinator.state import Effect, FederationConfig, FederationState, PublishRelease, PublishVersion, Received
from coordinator.strategies import FedBuff
from coordinator.trust.seals import Seals
from coordinator.trust.voice import CoordinatorKeys
from edge_node.outbox import Outbox
from edge_node.state import Update
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.chunks import describe
from schemas.codec import encode
from schemas.messages import UpdateManifest, join_body, update_id
from schemas.topics import UpdateManifestOf, route

FEDERATION, BASE_MODEL, BUFFER = "chaos", "ba5e" * 16, 2
LAYOUT = Layout(lora=LoraConfig(rank=1), tensors=(("x.lora_A.weight", (1, 1)), ("x.lora_B.weight", (1, 1))))


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "keys"
    init(folder, FEDERATION, ("127.0.0.1",), days=100)
    return folder


@dataclass(frozen=True)
class LeftBehind:
    """A round's folder. `versions[n]` are the ids of the updates that version n was made of."""

    folder: Path
    keys: Path
    versions: dict[int, tuple[str, ...]]

    @property
    def findings(self) -> Findings:
        return check(read_ledgers(self.folder, self.keys), BUFFER)

    def sql(self, file: str, statement: str, *values: object) -> None:
        with closing(sqlite3.connect(self.folder / file, isolation_level=None)) as database:
            database.execute(statement, values)

    def change_manifest(self, version: int, change: Callable[[dict[str, object]], None]) -> None:
        """Change a version where it is kept, in the registry and in the journal."""
        path = self.folder / "coordinator" / "adapters" / "manifests" / f"{version}.json"
        manifest = json.loads(path.read_bytes())
        change(manifest)
        content = json.dumps(manifest).encode()
        path.write_bytes(content)
        self.sql("coordinator/journal.db", "UPDATE versions SET manifest = ? WHERE version = ?", content, version)

    def witness(self, node: str) -> Witness:
        return Witness(self.folder / "witness" / f"{node}.jsonl")

    def fault(self, what: str, noted_at: float, **facts: object) -> None:
        with (self.folder / "faults.jsonl").open("a") as file:
            file.write(json.dumps({"what": what, "noted_at": noted_at, **facts}) + "\n")


@pytest.fixture
def left_behind(tmp_path: Path, keys: Path) -> LeftBehind:
    """The nodes a and b have sent three updates each; one more of a waits in its outbox."""
    registry = Registry(tmp_path / "coordinator" / "adapters")
    seals = Seals(registry, CoordinatorKeys(keys / "coordinator", FEDERATION), FEDERATION)
    config = FederationConfig(
        federation=FEDERATION,
        base_model=BASE_MODEL,
        base_model_name="tiny",
        layout=LAYOUT,
        strategy=FedBuff(buffer_size=BUFFER),
    )
    adapter = Adapter(LAYOUT, np.zeros(2, np.float32))
    versions: dict[int, tuple[str, ...]] = {}
    with closing(open_journal(tmp_path / "coordinator" / "journal.db")) as journal:
        with transaction(journal):
            record_founding(journal, config, adapter, 0)
        state, effects = found(config, adapter, 0)
        _keep(registry, seals, effects)
        for sequence in range(3):
            ids = []
            for node in ("a", "b"):
                update = _update(state, node, sequence)
                topic = route(FEDERATION, UpdateManifestOf(node, update.update_id)).topic
                payload = join_body(update.manifest, update.body)
                state, effects = step(state, Received(sequence, topic, payload))
                with transaction(journal):
                    record(journal, Row(sequence, topic, payload), effects)
                _keep(registry, seals, effects)
                _sends(tmp_path, node, update)
                ids.append(update.update_id)
            versions[sequence + 1] = tuple(ids)
    with Outbox(tmp_path / "load-0" / "a" / "outbox.db") as outbox:
        waiting = _update(state, "a", 3)
        outbox.put(waiting)
        Witness(tmp_path / "witness" / "a.jsonl").say("a", "stored", waiting.update_id)
    (tmp_path / "faults.jsonl").touch()
    return LeftBehind(tmp_path, keys, versions)


def _sends(folder: Path, node: str, update: Update) -> None:
    """What a node does with an update that is receipted at once."""
    witness = Witness(folder / "witness" / f"{node}.jsonl")
    with Outbox(folder / "load-0" / node / "outbox.db") as outbox:
        outbox.put(update)
        witness.say(node, "stored", update.update_id)
        witness.say(node, "receipted", update.update_id)
        outbox.settle(update.update_id)


def _keep(registry: Registry, seals: Seals, effects: tuple[Effect, ...]) -> None:
    for effect in effects:
        if isinstance(effect, PublishVersion):
            registry.add(effect.manifest, effect.adapter)
            seals.seal(effect.manifest)
        elif isinstance(effect, PublishRelease):
            registry.set_release(effect.report, effect.adapter)
            seals.seal_decision(effect.report)


def _update(state: FederationState, node: str, sequence: int) -> Update:
    body = encode(Adapter(LAYOUT, np.ones(2, np.float32)), "fp32")
    manifest = UpdateManifest(
        node=node,
        boot_id="b" * 32,
        sequence=sequence,
        base_version=state.head.version,
        base_digest=state.head.digest,
        base_model=BASE_MODEL,
        layout=LAYOUT.digest,
        examples=1,
        steps=1,
        participation=0,
        loss=1.0,
        seconds=0.0,
        body=describe(body, "fp32"),
    ).to_bytes()
    return Update(update_id(manifest), sequence, state.head.digest, state.head.version, manifest, body, 1000)
