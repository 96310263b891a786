"""What is on disk is enough: journal, registry, and the way back from any crash."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from broker.recording import RecordingError, Row, transaction
from coordinator.core import step
from coordinator.journal import fold, open_journal, read_updates, read_versions, record
from coordinator.recovery import FederationDiffers, restore
from coordinator.registry import Registry, RegistryError
from coordinator.replay import replay
from coordinator.state import FederationConfig, FederationState, Received
from coordinator.strategies import FedBuff
from schemas.adapter import Adapter

MakeConfig = Callable[..., FederationConfig]
MakeMessage = Callable[..., Received]
MakeAdapter = Callable[[float], Adapter]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "adapters")


def take(journal: sqlite3.Connection, state: FederationState, message: Received) -> FederationState:
    """What the shell does with a message, short of the network."""
    state, effects = step(state, message)
    with transaction(journal):
        record(journal, Row(message.at_ns, message.topic, message.payload), effects)
    return state


def test_a_restart_goes_on_with_the_buffer_as_it_was(
    tmp_path: Path, registry: Registry, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    terms = config(FedBuff(buffer_size=2))
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        before = take(journal, restore(journal, registry, terms, adapter(0), 1), message("a", 2))
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        after = restore(journal, registry, terms, adapter(0), 2)
        assert after.buffer == before.buffer
        assert after.epoch == before.epoch + 1
        after = take(journal, after, message("b", 4))
    assert after.head.version == 1
    assert after.head.adapter == adapter(3)


def test_a_message_that_did_not_reach_the_journal_never_happened(
    tmp_path: Path, registry: Registry, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    terms, lost = config(FedBuff(buffer_size=1)), message("a", 2)
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        state = restore(journal, registry, terms, adapter(0), 1)
        with pytest.raises(KeyboardInterrupt), transaction(journal):
            record(journal, Row(lost.at_ns, lost.topic, lost.payload), step(state, lost)[1])
            raise KeyboardInterrupt
        assert restore(journal, registry, terms, adapter(0), 2).head.version == 0
    assert [manifest.version for manifest in read_versions(tmp_path / "journal.db")] == [0]
    assert read_updates(tmp_path / "journal.db") == []


def test_a_version_that_a_crash_kept_out_of_the_registry_is_put_there(
    tmp_path: Path, registry: Registry, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    terms = config(FedBuff(buffer_size=1))
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        take(journal, restore(journal, registry, terms, adapter(0), 1), message("a", 2))
        with pytest.raises(RegistryError, match="there is no version 1"):
            registry.manifest(1)
        restore(journal, registry, terms, adapter(0), 2)
    assert registry.adapter(1, terms.layout) == adapter(2)
    assert registry.manifest(1).parent == registry.manifest(0).digest


def test_the_ledger_says_what_became_of_each_update(
    tmp_path: Path, registry: Registry, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        state = restore(journal, registry, config(FedBuff(buffer_size=2)), adapter(0), 1)
        sent = (message("a", 1, at_ns=2), message("b", 1, at_ns=3), message("c", 1, at_ns=4), message("d", float(9), 7))
        for one in sent:
            state = take(journal, state, one)
    rows = {row.node: (row.status, row.version) for row in read_updates(tmp_path / "journal.db")}
    assert rows == {"a": ("aggregated", 1), "b": ("aggregated", 1), "c": ("accepted", None), "d": ("rejected", None)}


def test_a_replay_makes_the_same_versions_bit_for_bit(
    tmp_path: Path, registry: Registry, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    path = tmp_path / "journal.db"
    with closing(open_journal(path)) as journal:
        state = restore(journal, registry, config(FedBuff(buffer_size=1)), adapter(0.1), 1)
        for sequence in range(3):
            state = take(journal, state, message("a", 0.3, state.head.version, state.head.digest, sequence))
    versions = list(replay(path))
    assert [version.version for version in versions] == [0, 1, 2, 3]
    assert all(version.agrees for version in versions)


def test_a_replay_shows_the_version_that_was_tampered_with(
    tmp_path: Path, registry: Registry, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    path = tmp_path / "journal.db"
    with closing(open_journal(path)) as journal:
        state = restore(journal, registry, config(FedBuff(buffer_size=1)), adapter(0), 1)
        state = take(journal, state, message("a", 1, base_digest=adapter(0).digest))
        manifest = read_versions(path)[1]
        false = manifest.model_copy(update={"body": manifest.body.model_copy(update={"sha256": "0" * 64})})
        with transaction(journal):
            journal.execute("UPDATE versions SET manifest = ? WHERE version = 1", (false.to_bytes(),))
    assert [version.agrees for version in replay(path)] == [True, False]


def test_another_federation_s_journal_is_refused_with_a_way_out(
    tmp_path: Path, registry: Registry, config: MakeConfig, adapter: MakeAdapter
) -> None:
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        restore(journal, registry, config(), adapter(0), 1)
        with pytest.raises(FederationDiffers, match=r"base model.*data_dir of its own"):
            restore(journal, registry, config(base_model="f" * 64), adapter(0), 2)


def test_a_changed_strategy_is_recorded_and_replays(
    tmp_path: Path, registry: Registry, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    path = tmp_path / "journal.db"
    with closing(open_journal(path)) as journal:
        take(journal, restore(journal, registry, config(FedBuff(buffer_size=5)), adapter(0), 1), message("a", 2))
        state = restore(journal, registry, config(FedBuff(buffer_size=1)), adapter(0), 2)
        assert state.head.version == 1
        assert registry.adapter(1, state.config.layout) == adapter(2)
    folded = [state for state, _ in fold(path)]
    assert folded[-1] == state
    assert all(version.agrees for version in replay(path))


def test_a_damaged_adapter_is_not_handed_out(
    tmp_path: Path, registry: Registry, config: MakeConfig, adapter: MakeAdapter
) -> None:
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        restore(journal, registry, config(), adapter(1), 1)
    [path] = (tmp_path / "adapters" / "objects").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RegistryError, match="damaged"):
        registry.body(0)


def test_a_recording_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with closing(open_journal(path)) as journal, transaction(journal):
        for _ in range(2):
            record(journal, Row(1, "alignfed/v1/test/global/head", b"{}"), ())
    with pytest.raises(RecordingError, match="not a journal"):
        list(replay(path))


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.5, 0.9, 0.99])
def test_a_journal_that_was_cut_short_is_refused(
    tmp_path: Path, registry: Registry, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage, kept: float
) -> None:
    whole, cut = tmp_path / "journal.db", tmp_path / "cut.db"
    with closing(open_journal(whole)) as journal:
        state = restore(journal, registry, config(FedBuff(buffer_size=1)), adapter(0), 1)
        for sequence in range(40):
            state = take(journal, state, message("a", 0.5, state.head.version, state.head.digest, sequence))
    content = whole.read_bytes()
    cut.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(RecordingError):
        list(replay(cut))
