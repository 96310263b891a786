"""What is on disk is enough: journal, registry, and the way back from any crash."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from broker.recording import RecordingError, Row, transaction
from coordinator.core import step
from coordinator.journal import fold, open_journal, read_updates, read_versions, record, row_of_event
from coordinator.questions import (
    Answer,
    MeasuredLosses,
    MeasureLosses,
    TrainAnchor,
    TrainedAnchor,
    answer_to_bytes,
)
from coordinator.recovery import FederationDiffers, restore
from coordinator.registry import Registry, RegistryError
from coordinator.replay.inside import replay
from coordinator.stages import AnchorStage, ReleaseStage
from coordinator.state import Answered, AskModel, CalibrationTerms, FederationConfig, FederationState, Received
from coordinator.strategies import AlignFed, FedBuff
from schemas.adapter import Adapter

MakeConfig = Callable[..., FederationConfig]
MakeMessage = Callable[..., Received]
MakeAdapter = Callable[..., Adapter]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "adapters")


def take(journal: sqlite3.Connection, state: FederationState, message: Received) -> FederationState:
    """What the shell does with a message, short of the network."""
    state, effects = step(state, message)
    with transaction(journal):
        record(journal, Row(message.at_ns, message.topic, message.payload), effects)
    return state


def hear(journal: sqlite3.Connection, state: FederationState, event: Answered) -> FederationState:
    """The same for what the base model says."""
    state, effects = step(state, event)
    with transaction(journal):
        record(journal, row_of_event(event), effects)
    return state


def test_a_restart_goes_on_with_the_buffer_as_it_was(
    tmp_path: Path, registry: Registry, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    terms = config(FedBuff(buffer_size=2))
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        before, _ = restore(journal, registry, terms, adapter(0), 1)
        before = take(journal, before, message("a", 2))
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        after, to_do = restore(journal, registry, terms, adapter(0), 2)
        assert to_do == ()
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
        state, _ = restore(journal, registry, terms, adapter(0), 1)
        with pytest.raises(KeyboardInterrupt), transaction(journal):
            record(journal, Row(lost.at_ns, lost.topic, lost.payload), step(state, lost)[1])
            raise KeyboardInterrupt
        assert restore(journal, registry, terms, adapter(0), 2)[0].head.version == 0
    assert [manifest.version for manifest in read_versions(tmp_path / "journal.db")] == [0]
    assert read_updates(tmp_path / "journal.db") == []


def test_a_version_that_a_crash_kept_out_of_the_registry_is_put_there(
    tmp_path: Path, registry: Registry, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    terms = config(FedBuff(buffer_size=1))
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        state, _ = restore(journal, registry, terms, adapter(0), 1)
        take(journal, state, message("a", 2))
        with pytest.raises(RegistryError, match="there is no version 1"):
            registry.manifest(1)
        restore(journal, registry, terms, adapter(0), 2)
    assert registry.adapter(1, terms.layout) == adapter(2)
    assert registry.manifest(1).parent == registry.manifest(0).digest


def test_the_ledger_says_what_became_of_each_update(
    tmp_path: Path, registry: Registry, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        state, _ = restore(journal, registry, config(FedBuff(buffer_size=2)), adapter(0), 1)
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
        state, _ = restore(journal, registry, config(FedBuff(buffer_size=1)), adapter(0.1), 1)
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
        state, _ = restore(journal, registry, config(FedBuff(buffer_size=1)), adapter(0), 1)
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
        state, _ = restore(journal, registry, config(FedBuff(buffer_size=5)), adapter(0), 1)
        take(journal, state, message("a", 2))
        state, _ = restore(journal, registry, config(FedBuff(buffer_size=1)), adapter(0), 2)
        assert state.head.version == 1
        assert registry.adapter(1, state.config.layout) == adapter(2)
    folded = [state for state, _ in fold(path)]
    assert folded[-1] == state
    assert all(version.agrees for version in replay(path))


ASKING = FedBuff(buffer_size=1, anchor=AnchorStage(), release=ReleaseStage(choose="gated"))


def say(journal: sqlite3.Connection, state: FederationState, adapter: MakeAdapter) -> FederationState:
    """Answer what is asked in the background: an anchor of the version's own, and a gate that lets even ones pass."""
    assert state.background is not None
    version = state.background.id[0]
    said: Answer = MeasuredLosses((2.0, 1.0 + version % 2 * 2), 0.5)
    if isinstance(state.background.question, TrainAnchor):
        said = TrainedAnchor(adapter(0.7 * version), 2.0, 1.0, 0.5)
    return hear(journal, state, Answered(5, state.background.id, answer_to_bytes(said)))


def test_a_replay_of_answers_needs_no_model(
    tmp_path: Path,
    registry: Registry,
    config: MakeConfig,
    adapter: MakeAdapter,
    message: MakeMessage,
    calibration: CalibrationTerms,
) -> None:
    path = tmp_path / "journal.db"
    with closing(open_journal(path)) as journal:
        state, _ = restore(journal, registry, config(ASKING, calibration=calibration), adapter(0.1), 1)
        for sequence in range(6):
            state = take(journal, state, message("a", 1 / 3, sequence, state.head.digest, sequence))
            for _ in range(1 + sequence % 2):
                state = say(journal, state, adapter)
            state = hear(journal, state, Answered(7, (99, 0), b"an answer that nobody waits for"))
    assert state.head.version == 6
    *_, (folded, _) = fold(path)
    assert folded == state
    versions = list(replay(path))
    assert len(versions) == 7
    assert all(version.agrees for version in versions)
    manifests = read_versions(path)
    assert 0 < sum(manifest.anchor is not None for manifest in manifests) < 6
    assert len({manifest.release.version for manifest in manifests}) > 1


def test_a_coordinator_that_was_killed_while_the_model_thought_asks_again(
    tmp_path: Path,
    registry: Registry,
    config: MakeConfig,
    adapter: MakeAdapter,
    message: MakeMessage,
    calibration: CalibrationTerms,
) -> None:
    terms = config(ASKING, calibration=calibration)
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        state, to_do = restore(journal, registry, terms, adapter(0), 1)
        assert to_do == (AskModel((0, 0), TrainAnchor(adapter(0), seed=0)),)
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        state, again = restore(journal, registry, terms, adapter(0), 2)
        assert again == to_do
        state = hear(journal, state, Answered(3, (0, 0), answer_to_bytes(TrainedAnchor(adapter(4), 2.0, 1.0, 0.5))))
        state = take(journal, state, message("a", 2))
        assert state.head.adapter == adapter(3)
        state = hear(journal, state, Answered(3, (1, 0), answer_to_bytes(TrainedAnchor(adapter(4), 2.0, 1.0, 0.5))))
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        state, [asked] = restore(journal, registry, terms, adapter(0), 4)
        assert isinstance(asked, AskModel)
        assert (asked.question_id, type(asked.question)) == ((1, 1), MeasureLosses)
        assert registry.release().version == 0
        hear(journal, state, Answered(5, (1, 1), answer_to_bytes(MeasuredLosses((3.0, 1.0), 0.5))))
    assert all(version.agrees for version in replay(tmp_path / "journal.db"))


def test_a_release_that_a_crash_kept_out_of_the_registry_is_put_there(
    tmp_path: Path,
    registry: Registry,
    config: MakeConfig,
    adapter: MakeAdapter,
    message: MakeMessage,
    calibration: CalibrationTerms,
) -> None:
    terms = config(FedBuff(buffer_size=1, release=ReleaseStage(choose="gated")), calibration=calibration)
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        state, _ = restore(journal, registry, terms, adapter(0), 1)
        state = take(journal, state, message("a", 5))
        hear(journal, state, Answered(5, (1, 0), answer_to_bytes(MeasuredLosses((3.0, 1.0), 0.5))))
        assert registry.release().version == 0
        restore(journal, registry, terms, adapter(0), 2)
    assert (registry.release().version, registry.release().candidate) == (1, 1.0)
    assert registry.adapter(1, terms.layout, "average") == adapter(3)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"version": 1'])
def test_a_decision_that_is_missing_or_cut_short_says_so_and_a_start_writes_it_again(
    tmp_path: Path, registry: Registry, config: MakeConfig, adapter: MakeAdapter, content: bytes
) -> None:
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        restore(journal, registry, config(), adapter(0), 1)
        path = tmp_path / "adapters" / "decisions" / "0.json"
        path.write_bytes(content)
        with pytest.raises(RegistryError, match=r"is damaged: .*; delete it and start the coordinator again"):
            registry.release()
        path.unlink()
        with pytest.raises(RegistryError, match="starting the coordinator writes them again"):
            registry.release()
        restore(journal, registry, config(), adapter(0), 2)
    assert registry.release().version == 0


def test_a_coordinator_that_comes_back_with_new_terms_asks_once(
    tmp_path: Path,
    registry: Registry,
    config: MakeConfig,
    adapter: MakeAdapter,
    message: MakeMessage,
    calibration: CalibrationTerms,
) -> None:
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        state, _ = restore(journal, registry, config(ASKING, calibration=calibration), adapter(0), 1)
        take(journal, state, message("a", 2))
        other = config(ASKING.model_copy(update={"step": 2.0}), calibration=calibration)
        state, to_do = restore(journal, registry, other, adapter(0), 2)
    assert to_do == (AskModel((1, 0), TrainAnchor(adapter(2), seed=1)),)


def test_a_coordinator_that_comes_back_without_its_calibration_set_publishes_what_was_in_the_making(
    tmp_path: Path,
    registry: Registry,
    config: MakeConfig,
    adapter: MakeAdapter,
    message: MakeMessage,
    calibration: CalibrationTerms,
) -> None:
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        waiting = AlignFed(buffer_size=1, align="semantic", anchor=None, release=ReleaseStage())
        state, _ = restore(journal, registry, config(waiting, calibration=calibration), adapter(0), 1)
        for node in ("a", "b"):  # b's is stale by then
            state = take(journal, state, message(node, 5))
        assert (state.head.version, state.pending is None) == (1, False)
        state, to_do = restore(journal, registry, config(waiting), adapter(0), 2)
    assert to_do == ()
    assert (state.head.version, state.pending) == (2, None)
    assert registry.adapter(2, state.config.layout) == state.head.adapter
    assert [row.version for row in read_updates(tmp_path / "journal.db")] == [1, 2]


def test_an_average_that_a_crash_kept_out_of_the_registry_is_put_there(
    tmp_path: Path, registry: Registry, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    terms = config(FedBuff(buffer_size=1, release=ReleaseStage(choose="average")))
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        state, _ = restore(journal, registry, terms, adapter(0), 1)
        take(journal, state, message("a", 5))
        with pytest.raises(RegistryError):
            registry.body(1, "average")
        restore(journal, registry, terms, adapter(0), 2)
    assert registry.adapter(1, terms.layout, "average") == adapter(3)
    assert registry.adapter(1, terms.layout) == adapter(5)


def test_what_waited_and_became_of_no_version_is_stale_in_the_ledger_with_its_reason(
    tmp_path: Path, registry: Registry, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        state, _ = restore(journal, registry, config(FedBuff(buffer_size=2)), adapter(0), 1)
        take(journal, state, message("a", 5))
        restore(journal, registry, config(FedBuff(buffer_size=2), final_version=0), adapter(0), 2)
    [row] = read_updates(tmp_path / "journal.db")
    assert (row.status, row.reason) == ("stale", "the federation is finished with version 0")


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
        state, _ = restore(journal, registry, config(FedBuff(buffer_size=1)), adapter(0), 1)
        for sequence in range(40):
            state = take(journal, state, message("a", 0.5, state.head.version, state.head.digest, sequence))
    content = whole.read_bytes()
    cut.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(RecordingError):
        list(replay(cut))
