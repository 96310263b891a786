"""Messages that the coordinator dies of: counted before they are read, set aside after three deaths."""

import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.recording import read_rows
from coordinator.core import found, step
from coordinator.journal import POISON, event_of_row, read_updates, row_of_event
from coordinator.poison import LONGEST, MOST_DEATHS, PoisonGuard
from coordinator.replay.inside import replay
from coordinator.replay.recorded import read_row
from coordinator.state import Drop, FederationState, Poisoned, SendReceipt

TOPIC = "alignfed/test/update/a/0000/manifest"

# the product with a decoder that dies of bodies that begin with the number 13, as a fault in native code would let it
DEADLY = """
import os, signal, struct
import alignfed, coordinator.intake as intake
decode = intake.decode
def dying(body, *others):
    if body.startswith(struct.pack("<f", 13)):
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(body, *others)
intake.decode = dying
alignfed.main()
"""


def test_a_message_that_the_process_dies_of_is_set_aside_and_all_others_go_on(coordinator: Any, node: Any) -> None:
    node.until_version(0)
    coordinator.kill()
    coordinator.command = [sys.executable, "-c", DEADLY, *coordinator.command[3:]]
    deadly = node.send("a", 0, node.head, 13.0)
    good = [node.send(name, 0, node.head, 1.0) for name in "bc"]
    for _ in range(MOST_DEATHS):
        coordinator.start()
        assert coordinator.ends()[0] == -signal.SIGKILL
    coordinator.start()
    node.until_version(1)
    node.until(lambda: node.statuses(deadly) == ["rejected"])
    assert "died each time" in next(r.reason for r in node.receipts if r.update_id == deadly)
    assert all(node.statuses(id_)[-1] == "aggregated" for id_ in good)
    assert coordinator.process.poll() is None

    journal = coordinator.data_dir / "journal.db"
    (row,) = [row for row in read_rows(journal) if row.topic.startswith(POISON)]
    said = read_row(row)
    assert said.content["topic"] == row.topic.removeprefix(POISON) and row.payload  # kept, for whoever asks
    assert (said.node, said.update_id) == ("a", deadly)  # so a cut without this node is without this row
    assert {update.update_id for update in read_updates(journal)} == set(good)
    coordinator.kill()
    assert all(version.agrees for version in replay(journal))


def test_a_stop_is_no_death_and_neither_is_a_start(tmp_path: Path) -> None:
    for _ in range(3):
        guard = PoisonGuard(tmp_path)
        with guard.taking(TOPIC):
            pass
        assert guard.deaths == {}
    assert not (tmp_path / "poison.json").exists()


def test_what_is_taken_in_at_last_was_not_what_the_process_died_of(tmp_path: Path) -> None:
    with pytest.raises(MemoryError), PoisonGuard(tmp_path).taking(TOPIC):
        raise MemoryError
    guard = PoisonGuard(tmp_path)
    assert guard.deaths == {TOPIC: 1}
    with guard.taking(TOPIC):
        pass
    assert guard.deaths == PoisonGuard(tmp_path).deaths == {}


def test_a_topic_that_is_cut_within_a_letter_is_known_again(tmp_path: Path) -> None:
    topic = "x" * (LONGEST - 1) + "é, and on"
    for _ in range(MOST_DEATHS):
        with pytest.raises(MemoryError), PoisonGuard(tmp_path).taking(topic):
            raise MemoryError
    assert PoisonGuard(tmp_path).is_poison(topic)


def test_deaths_are_counted_by_topic_and_only_of_what_was_at_hand(tmp_path: Path) -> None:
    for deaths in range(MOST_DEATHS):
        guard = PoisonGuard(tmp_path)
        assert guard.deaths == ({TOPIC: deaths} if deaths else {}) and not guard.is_poison(TOPIC)
        with guard.taking("alignfed/test/update/b/0000/manifest"):
            pass
        with pytest.raises(MemoryError), guard.taking(TOPIC):  # what ends a process need not be a signal
            raise MemoryError
    guard = PoisonGuard(tmp_path)
    assert guard.is_poison(TOPIC) and not guard.is_poison(TOPIC.replace("/a/", "/b/"))
    assert PoisonGuard(tmp_path).deaths == {TOPIC: MOST_DEATHS}  # a start is no death


def test_what_is_kept_of_deaths_is_bounded_and_the_latest_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.poison.REMEMBERED", 5)
    for number in range(7):
        with pytest.raises(MemoryError), PoisonGuard(tmp_path).taking(f"{number}/{'x' * LONGEST}"):
            raise MemoryError
    PoisonGuard(tmp_path)
    kept = list(PoisonGuard(tmp_path).deaths)
    assert [name[:2] for name in kept] == ["2/", "3/", "4/", "5/", "6/"] and len(kept[-1]) == LONGEST


@pytest.mark.parametrize("bytes_", [b"", b"{", b"[1]", b'{"a": "b"}', b"[" * 100_000, b"\xff"])
def test_a_damaged_count_begins_anew(tmp_path: Path, bytes_: bytes) -> None:
    (tmp_path / "poison.json").write_bytes(bytes_)
    assert PoisonGuard(tmp_path).deaths == {}


# --- the core ---


@pytest.fixture
def state(config: Callable[..., Any], adapter: Callable[..., Any]) -> FederationState:
    return found(config(), adapter(0), 0)[0]


def poisoned(topic: str) -> Poisoned:
    event = Poisoned(5, topic, b"anything")
    assert event_of_row(row_of_event(event)) == event
    return event


def test_an_update_is_refused_by_the_topic_of_its_message(state: FederationState, message: Callable[..., Any]) -> None:
    event = poisoned(message("a", 1).topic)
    state, (effect,) = step(state, event)
    assert isinstance(effect, SendReceipt) and (effect.receipt.status, effect.cause) == ("rejected", "poison")
    assert state.nodes["a"].refusals == {"poison": 1}


def test_what_was_accepted_stays_so(state: FederationState, message: Callable[..., Any]) -> None:
    sent = message("a", 1)
    state, _ = step(state, sent)
    state, (effect,) = step(state, poisoned(sent.topic))
    assert isinstance(effect, SendReceipt) and effect.receipt.status == "duplicate"
    assert len(state.buffer.updates) == 1


def test_poison_takes_the_room_of_idle_nodes_alone(state: FederationState, message: Callable[..., Any]) -> None:
    for number in range(state.config.limits.nodes + 1):
        state, (effect,) = step(state, poisoned(message(f"n{number}", 1).topic))
        assert isinstance(effect, SendReceipt)
    assert len(state.nodes) == state.config.limits.nodes and "n0" not in state.nodes
    state = replace(state, nodes={name: replace(ledger, quarantine="busy") for name, ledger in state.nodes.items()})
    state, (effect,) = step(state, poisoned(message("late", 1).topic))
    assert isinstance(effect, Drop) and "late" not in state.nodes


def test_what_is_no_update_is_counted(state: FederationState) -> None:
    state, (effect,) = step(state, poisoned("alignfed/test/elsewhere"))
    assert isinstance(effect, Drop) and state.dropped == {"poison": 1}
