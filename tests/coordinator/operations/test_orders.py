"""Orders on their way: from the operator's command through a file into the journal, each once, and into replays."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from broker.recording import transaction
from coordinator.core import step
from coordinator.journal import fold, open_journal, read_nodes, record, record_nodes, row_of_event
from coordinator.operations.obeying import answer_to, event_of_order
from coordinator.operations.order_file import (
    FILE,
    KEPT,
    MOST_WAITING,
    GivenOrder,
    answer,
    answer_of,
    begin,
    give,
    waiting,
)
from coordinator.operations.orders import LARGEST, Forgive, OrderAnswer, Quarantine, RollBack, order_from_bytes
from coordinator.recovery import restore
from coordinator.registry import Registry
from coordinator.state import FederationConfig, Ordered, RolledBack
from schemas.adapter import Adapter
from schemas.messages import InvalidMessage

MakeAdapter = Callable[..., Adapter]
MakeConfig = Callable[..., FederationConfig]

QUARANTINE = Quarantine(node="a", reason="why")
DONE = OrderAnswer(epoch=1, head=2, release=1, variant="head")


def test_orders_come_in_the_order_they_were_given_until_they_are_answered(tmp_path: Path) -> None:
    assert waiting(tmp_path, 0) == []
    assert [give(tmp_path, QUARANTINE), give(tmp_path, Forgive(node="a"))] == [1, 2]
    assert [order_from_bytes(order.payload) for order in waiting(tmp_path, 0)] == [QUARANTINE, Forgive(node="a")]
    assert answer_of(tmp_path, 1) is None
    answer(tmp_path, 1, DONE)
    assert answer_of(tmp_path, 1) == DONE
    assert [order.number for order in waiting(tmp_path, 1)] == [2]


def test_numbers_go_on_in_a_file_that_was_lost(tmp_path: Path) -> None:
    begin(tmp_path, 0)
    assert give(tmp_path, QUARANTINE) == 1
    for lost in tmp_path.glob(FILE + "*"):
        lost.unlink()
    assert waiting(tmp_path, 7) == []
    assert give(tmp_path, QUARANTINE) == 8


def test_orders_for_a_coordinator_that_never_runs_are_bounded_and_so_is_what_is_remembered(tmp_path: Path) -> None:
    for _ in range(MOST_WAITING):
        give(tmp_path, QUARANTINE)
    with pytest.raises(OSError, match=f"{MOST_WAITING} orders wait"):
        give(tmp_path, QUARANTINE)
    for order in waiting(tmp_path, 0):
        answer(tmp_path, order.number, DONE)
    begin(tmp_path, KEPT + 10)
    assert give(tmp_path, QUARANTINE) == KEPT + 11
    assert [answer_of(tmp_path, number) for number in (10, 11, 12)] == [None, None, DONE]


def test_a_file_from_before_orders_were_answered_is_taken_over(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE)) as old:
        old.execute("CREATE TABLE orders (number INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB NOT NULL) STRICT")
        old.execute("INSERT INTO orders (payload) VALUES (?)", (QUARANTINE.to_bytes(),))
        old.commit()
    assert waiting(tmp_path, 0) == [GivenOrder(1, QUARANTINE.to_bytes())]


def test_an_order_whose_coordinator_died_before_it_answered_is_answered_and_not_repeated(
    tmp_path: Path, config: MakeConfig, adapter: MakeAdapter
) -> None:
    registry = Registry(tmp_path / "adapters")
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        state, _ = restore(journal, registry, config(), adapter(0), 1)
        given = GivenOrder(1, RollBack(version=0).to_bytes())
        event = event_of_order(given, state.orders, registry, journal, 2)
        assert isinstance(event, RolledBack) and event.body == registry.body(0)
        state, effects = step(state, event)
        with transaction(journal):
            record(journal, row_of_event(event), effects)
        assert event_of_order(given, state.orders, registry, journal, 3) is None
        assert answer_to(None, state).refused is None
        # the journal has no such order: the file was put back from a copy, and nobody knows what came of it
        lost = event_of_order(GivenOrder(0, given.payload), state.orders, registry, journal, 3)
        assert "give it again" in str(lost)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [(RollBack(version=9).to_bytes(), "no version 9"), (b"{}", "no order"), (b" " * 5000, "5000")],
)
def test_what_cannot_be_obeyed_is_refused_in_words_and_leaves_no_event(
    tmp_path: Path, config: MakeConfig, adapter: MakeAdapter, payload: bytes, reason: str
) -> None:
    registry = Registry(tmp_path / "adapters")
    with closing(open_journal(tmp_path / "journal.db")) as journal:
        state, _ = restore(journal, registry, config(), adapter(0), 1)
        said = event_of_order(GivenOrder(1, payload), state.orders, registry, journal, 2)
    assert isinstance(said, str) and reason in said
    assert answer_to(said, state).refused == said


@pytest.mark.parametrize(
    "payload", [b"", b"{}", b'{"kind":"dance"}', b'{"kind":"forgive","node":"../x"}', b"\xff" * 9, b"[" * LARGEST]
)
def test_what_is_no_order_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidMessage):
        order_from_bytes(payload)


def test_a_folder_of_no_coordinator_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no coordinator's folder"):
        give(tmp_path / "nowhere", QUARANTINE)


def test_a_damaged_file_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database" * 100)
    with pytest.raises(OSError, match="delete it"):
        waiting(tmp_path, 0)


def test_an_order_that_was_journalled_holds_after_a_restart(
    tmp_path: Path, config: MakeConfig, adapter: MakeAdapter
) -> None:
    path, registry = tmp_path / "journal.db", Registry(tmp_path / "adapters")
    with closing(open_journal(path)) as journal:
        before, _ = restore(journal, registry, config(), adapter(0), 1)
        event = Ordered(2, 1, QUARANTINE.to_bytes())
        after, effects = step(before, event)
        with transaction(journal):
            record(journal, row_of_event(event), effects)
            record_nodes(journal, before, after)
    *_, (folded, _) = fold(path)
    assert folded == after
    assert (folded.orders, folded.nodes["a"].quarantine) == (1, "why")
    assert [(report.node, report.quarantine) for report in read_nodes(path)] == [("a", "why")]


def test_a_table_of_nodes_that_is_lost_is_made_anew_from_the_journal(
    tmp_path: Path, config: MakeConfig, adapter: MakeAdapter
) -> None:
    path, registry = tmp_path / "journal.db", Registry(tmp_path / "adapters")
    with closing(open_journal(path)) as journal:
        state, _ = restore(journal, registry, config(), adapter(0), 1)
        event = Ordered(2, 1, QUARANTINE.to_bytes())
        with transaction(journal):
            record(journal, row_of_event(event), step(state, event)[1])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE nodes")
    with closing(open_journal(path)) as journal:
        restore(journal, registry, config(), adapter(0), 3)
    assert [report.quarantine for report in read_nodes(path)] == ["why"]
