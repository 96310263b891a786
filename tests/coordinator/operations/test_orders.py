"""Orders on their way: from the operator's command through a file into the journal, each once, and into replays."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from broker.recording import transaction
from coordinator.core import step
from coordinator.journal import fold, open_journal, read_nodes, record, record_nodes, row_of_event
from coordinator.operations.order_file import FILE, give, given
from coordinator.operations.orders import Forgive, Quarantine, order_from_bytes
from coordinator.recovery import restore
from coordinator.registry import Registry
from coordinator.state import FederationConfig, Ordered
from schemas.adapter import Adapter
from schemas.messages import InvalidMessage

MakeAdapter = Callable[..., Adapter]
MakeConfig = Callable[..., FederationConfig]

QUARANTINE = Quarantine(node="a", reason="why")


def test_orders_come_in_the_order_they_were_given_and_only_those_that_are_new(tmp_path: Path) -> None:
    assert given(tmp_path, 0) == []
    assert [give(tmp_path, QUARANTINE), give(tmp_path, Forgive(node="a"))] == [1, 2]
    assert [order_from_bytes(payload) for _, payload in given(tmp_path, 0)] == [QUARANTINE, Forgive(node="a")]
    assert [number for number, _ in given(tmp_path, 1)] == [2]


@pytest.mark.parametrize("payload", [b"", b"{}", b'{"kind":"dance"}', b'{"kind":"forgive","node":"../x"}', b"\xff" * 9])
def test_what_is_no_order_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidMessage):
        order_from_bytes(payload)


def test_a_folder_of_no_coordinator_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no coordinator's folder"):
        give(tmp_path / "nowhere", QUARANTINE)


def test_a_damaged_file_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database" * 100)
    with pytest.raises(OSError, match="delete it"):
        given(tmp_path, 0)


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
