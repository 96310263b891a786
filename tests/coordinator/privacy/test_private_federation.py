"""A federation that promises privacy: its versions, what it keeps of each node, and that a replay is the same."""

import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from broker.recording import RecordingError, Row, read_rows, transaction
from commands.picture import picture
from coordinator.core import found, step
from coordinator.journal import NOISE, event_of_row, open_journal, read_nodes, record, record_nodes
from coordinator.privacy.accounting import epsilon
from coordinator.privacy.terms import PrivacyTerms
from coordinator.recovery import restore
from coordinator.registry import Registry
from coordinator.replay.inside import replay
from coordinator.replay.recorded import read_row
from coordinator.replay.source import open_source
from coordinator.replay.what_if import Change, strategy_named, what_if
from coordinator.settings import CoordinatorSettings
from coordinator.state import Configured, FederationConfig, NoiseKeyDrawn, PublishVersion, Received
from coordinator.strategies import AlignFed, FedAvg, FedBuff
from coordinator.watch.history import History
from coordinator.watch.status import Facts, status_of
from schemas.adapter import Adapter
from schemas.messages import CoordinatorState
from schemas.topics import CoordinatorStateOf

KEY = bytes(range(32))
TERMS = PrivacyTerms(clip_norm=1.0, noise_multiplier=2.0)
MakeConfig = Callable[..., FederationConfig]
MakeMessage = Callable[..., Received]
MakeAdapter = Callable[..., Adapter]


def test_a_delta_that_its_node_did_not_shorten_is_shortened(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    terms = config(FedBuff(buffer_size=1), privacy=PrivacyTerms(clip_norm=1.0, noise_multiplier=0))
    state, _ = step(found(terms, adapter(0), 0)[0], NoiseKeyDrawn(0, KEY))
    state, _ = step(state, message("a", adapter(30, 40)))
    assert state.head.version == 1
    assert 0.999 < state.head.adapter.norm <= 1.0
    np.testing.assert_allclose(state.head.adapter.values, [0.6, 0.8], rtol=1e-3)


def test_no_version_is_made_before_there_is_a_key(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = found(config(FedBuff(buffer_size=1), privacy=TERMS), adapter(0), 0)
    state, _ = step(state, message("a", 0.5))
    assert (state.head.version, len(state.buffer.updates)) == (0, 1)
    state, effects = step(state, NoiseKeyDrawn(1, KEY))
    assert state.head.version == 1
    assert any(isinstance(effect, PublishVersion) for effect in effects)


def test_what_was_sent_does_not_come_out_and_each_version_costs_each_node_once(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = step(found(config(privacy=TERMS), adapter(0), 0)[0], NoiseKeyDrawn(0, KEY))
    for node in ("a", "b"):
        state, _ = step(state, message(node, 0.1))
    assert state.head.version == 1 and state.head.adapter != adapter(0.1)
    assert {node: ledger.privacy_loss for node, ledger in state.nodes.items()} == {"a": 0.25, "b": 0.25}


def test_versions_that_were_made_before_the_promise_are_not_forgotten(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    plain = config(FedBuff(buffer_size=1))
    state, _ = step(found(plain, adapter(0), 0)[0], message("a", 0.5))
    private = plain.model_copy(update={"privacy": TERMS})
    state, _ = step(step(state, Configured(1, private))[0], NoiseKeyDrawn(1, KEY))
    state, _ = step(state, message("b", 0.5, base_version=1, base_digest=state.head.digest))
    assert state.nodes["a"].privacy_loss == math.inf
    assert state.nodes["b"].privacy_loss == 0.25


def journalled(
    path: Path, terms: FederationConfig, adapter: MakeAdapter, message: MakeMessage, restarts: int = 2
) -> list[str]:
    """A federation's journal over several starts, each with a key of its own; the digests of its versions."""
    digests = []
    for start in range(restarts):
        with closing(open_journal(path)) as journal:
            registry = Registry(path.parent / "adapters")
            state, _ = restore(journal, registry, terms, adapter(0), start, noise_key=bytes([start]) * 32)
            for node in ("a", "b"):
                told = message(node, 0.3, state.head.version, state.head.digest, sequence=start)
                before, (state, effects) = state, step(state, told)
                with transaction(journal):
                    record(journal, Row(told.at_ns, told.topic, told.payload), effects)
                    record_nodes(journal, before, state)
            digests.append(state.head.digest)
    return digests


def test_a_replay_draws_the_same_noise_bit_for_bit(
    tmp_path: Path, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    path = tmp_path / "journal.db"
    digests = journalled(path, config(privacy=TERMS), adapter, message)
    versions = list(replay(path))
    assert [version.replayed for version in versions[1:]] == digests
    assert all(version.agrees for version in versions)
    assert len([row for row in read_rows(path) if row.topic == NOISE]) == 2


def test_what_if_a_node_had_not_been_there_has_other_noise_and_another_strategy_has_none(
    tmp_path: Path, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    path = tmp_path / "journal.db"
    terms = config(FedBuff(buffer_size=1), privacy=TERMS)
    digests = journalled(path, terms, adapter, message, restarts=1)
    without = what_if(open_source(path), Change(without=("a",)))
    assert without.state.head.version == 1 and without.state.head.digest not in digests
    plain = what_if(open_source(path), Change(strategy=strategy_named("alignfed", terms)))
    assert plain.state.config.privacy is None


def test_the_key_is_on_no_topic_and_nothing_is_said_of_it(
    tmp_path: Path, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    path = tmp_path / "journal.db"
    journalled(path, config(privacy=TERMS), adapter, message, restarts=1)
    (row,) = [row for row in read_rows(path) if row.topic == NOISE]
    assert read_row(row).content == {}
    event = event_of_row(row)
    assert isinstance(event, NoiseKeyDrawn) and event.key == bytes(32)
    assert "key" not in repr(event)
    state, _ = step(found(config(privacy=TERMS), adapter(0), 0)[0], NoiseKeyDrawn(0, b"\x7a" * 32))
    assert "zzzz" not in repr(state)


def test_a_journal_whose_key_is_cut_short_is_refused(
    tmp_path: Path, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    path = tmp_path / "journal.db"
    journalled(path, config(privacy=TERMS), adapter, message, restarts=1)
    with closing(open_journal(path)) as journal, transaction(journal):
        record(journal, Row(9, NOISE, b"short"), ())
    with pytest.raises(RecordingError, match="key of noise has 32 bytes, got 5"):
        list(replay(path))


def test_operators_see_what_is_promised_to_each_node(
    tmp_path: Path, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    path = tmp_path / "journal.db"
    terms = config(privacy=TERMS)
    journalled(path, terms, adapter, message)
    with closing(open_journal(path)) as journal:
        state, _ = restore(journal, Registry(tmp_path / "adapters"), terms, adapter(0), 9, noise_key=KEY)
    assert [(report.node, report.privacy_loss) for report in read_nodes(path)] == [("a", 0.5), ("b", 0.5)]
    status = status_of(Facts(state, _history(path)), 9)
    assert [node.epsilon for node in status.nodes] == [epsilon(0.5, TERMS.delta)] * 2
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(picture(status, None))
    assert "epsilon" in (said := console.export_text()) and f"{epsilon(0.5, TERMS.delta):.3g}" in said


def _history(path: Path) -> History:
    from coordinator.journal import fold_history

    *_, (_, history, _) = fold_history(path)
    return history


def test_settings_take_the_terms_and_refuse_what_cannot_be_kept() -> None:
    settings = CoordinatorSettings.model_validate({"privacy": {"clip_norm": 0.5, "noise_multiplier": 1}})
    assert settings.privacy == PrivacyTerms(clip_norm=0.5, noise_multiplier=1.0)
    with pytest.raises(ValidationError, match="fedavg makes another"):
        CoordinatorSettings(strategy=FedAvg(), privacy=TERMS)
    with pytest.raises(ValidationError, match="clip_norm must not be over"):
        CoordinatorSettings(privacy=PrivacyTerms(clip_norm=100_000, noise_multiplier=1))


def test_terms_that_weigh_by_deltas_promise_nothing_and_are_refused(config: MakeConfig) -> None:
    said = json.loads(config(AlignFed()).model_dump_json()) | {"privacy": TERMS.model_dump()}
    with pytest.raises(ValidationError, match="no noise makes the versions of alignfed, as it is set, private"):
        FederationConfig.model_validate_json(json.dumps(said))


PRIVATE = """
strategy = {name = "fedbuff", buffer_size = 2}
privacy = {clip_norm = 0.5, noise_multiplier = 1.0}
"""


def test_a_coordinator_tells_nodes_the_norm_makes_noise_and_says_what_it_promises_through_a_kill(
    start_coordinator: Any, node: Any, base_model: Path
) -> None:
    coordinator = start_coordinator(base_model, PRIVATE)
    node.until_version(0)
    birth = node.retained(CoordinatorStateOf())
    assert CoordinatorState.from_bytes(birth.payload).clip_norm == 0.5
    for version in (0, 1):
        for name in ("a", "b"):
            node.send(name, version, node.head, 1.0)
        node.until_version(version + 1)
        if version == 0:
            coordinator.kill()
            coordinator.start()
    before, after = (Adapter.from_safetensors(node.layout, node.body(version)) for version in (0, 1))
    assert (after - before).norm > 2  # noise of 0.25 on each of 1,024 numbers, and a step of at most 0.5
    coordinator.kill()
    journal = coordinator.data_dir / "journal.db"
    versions = list(replay(journal))
    assert len(versions) == 3 and all(version.agrees for version in versions)
    words = ("nodes", "show", "a", "--data-dir", str(coordinator.data_dir), "--json")
    shown = subprocess.run([sys.executable, "-m", "alignfed", *words], capture_output=True, text=True, check=True)
    said = json.loads(shown.stdout)
    assert (said["privacy_loss"], said["delta"]) == (2.0, 1e-5)
    assert said["epsilon"] == epsilon(2.0, 1e-5)
