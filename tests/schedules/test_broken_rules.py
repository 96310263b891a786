"""The schedules can fail: each rule that is broken here on purpose, at its seam, is found out within a few of them."""

import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.recording import open_recording
from coordinator import intake, journal
from coordinator.publisher import PhasedPublisher
from coordinator.service import Service
from edge_node import fetch, node
from edge_node.effects import Effects
from edge_node.outbox import Outbox
from edge_node.state import EdgeState
from tests.schedules import sqlite_files
from tests.schedules.world import Report, play

pytestmark = pytest.mark.skipif(not sqlite_files.can_watch(), reason=sqlite_files.NEEDS_A_LIBRARY)
MOST = 200  # schedules until a broken rule has to be noticed

Break = Callable[[pytest.MonkeyPatch], None]


def first_broken(seeds: Iterable[int]) -> Report | None:
    """The first schedule in which a promise does not hold."""
    return next((report for seed in seeds if (report := play(seed)).broken is not None), None)


def receipts_go_out_before_the_journal_is_on_disk(patch: pytest.MonkeyPatch) -> None:
    usual, take = Service._carry_out, Service._take

    def take_early(service: Service, messages: Any) -> None:
        with patch.context() as within:
            within.setattr("coordinator.service.record", lambda *row: (journal.record(*row), usual(service, row[2])))
            within.setattr(Service, "_carry_out", lambda *_: None)
            take(service, messages)

    patch.setattr(Service, "_take", take_early)


def the_journal_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    def open_carelessly(path: Path) -> sqlite3.Connection:
        connection = open_recording(path)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    patch.setattr(journal, "open_recording", open_carelessly)


def the_outbox_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    usual = Outbox.__init__

    def open_carelessly(outbox: Outbox, path: Path) -> None:
        usual(outbox, path)
        outbox._database.execute("PRAGMA synchronous = OFF")

    patch.setattr(Outbox, "__init__", open_carelessly)


def an_update_is_forgotten_when_the_broker_has_it(patch: pytest.MonkeyPatch) -> None:
    def forget(this: node.Node, update_id: str) -> None:
        this._equipment.outbox.settle(update_id)
        waiting = tuple(update for update in this.state.outbox if update.update_id != update_id)
        this.state = replace(this.state, outbox=waiting)

    patch.setattr(node.Node, "_handed_over", forget)


def a_pointer_goes_out_before_what_it_points_to(patch: pytest.MonkeyPatch) -> None:
    usual = PhasedPublisher.add
    patch.setattr(PhasedPublisher, "add", lambda this, *phases: usual(this, *reversed(phases)))


def a_node_follows_any_pointer(patch: pytest.MonkeyPatch) -> None:
    usual = fetch.on_head

    def follow(state: EdgeState, at: float, payload: bytes) -> tuple[EdgeState, Effects]:
        return usual(replace(state, memory=replace(state.memory, mark=(0, 0)), held=None), at, payload)

    patch.setattr(fetch, "on_head", follow)


def a_copy_of_an_update_counts_again(patch: pytest.MonkeyPatch) -> None:
    usual = intake._ledger
    patch.setattr(intake, "_ledger", lambda state, name: replace(usual(state, name), accepted={}))


def a_message_is_acknowledged_and_then_not_journalled(patch: pytest.MonkeyPatch) -> None:
    usual = Service._take
    patch.setattr(Service, "_take", lambda this, messages: [this.client.ack(m) for m in messages] and usual(this, []))


@pytest.mark.parametrize(
    "broken",
    [
        receipts_go_out_before_the_journal_is_on_disk,
        the_journal_is_not_synced,
        the_outbox_is_not_synced,
        an_update_is_forgotten_when_the_broker_has_it,
        a_pointer_goes_out_before_what_it_points_to,
        a_node_follows_any_pointer,
        a_copy_of_an_update_counts_again,
        a_message_is_acknowledged_and_then_not_journalled,
    ],
)
def test_a_broken_rule_is_found_out(monkeypatch: pytest.MonkeyPatch, broken: Break) -> None:
    broken(monkeypatch)
    report = first_broken(range(1, MOST + 1))
    assert report is not None
    print(f"{broken.__name__}: seed {report.seed}: {report.broken}")
