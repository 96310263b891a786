"""The status of small federations, and when it calls for a person."""

from dataclasses import replace
from typing import Any

import pytest

from coordinator.strategies import FedAsync, FedBuff
from coordinator.watch.alarms import REFUSED, REFUSING, STARVED_AFTER
from coordinator.watch.history import KEPT_VERSIONS, MOST_STRANGERS
from coordinator.watch.status import Fairness, HeldOut, Status
from schemas.messages import ReleaseReport

SECOND = 1_000_000_000


def kinds(status: Status) -> list[str]:
    return [alarm.kind for alarm in status.alarms]


def test_shares_count_updates_and_their_weights(federation: Any) -> None:
    here = federation(FedBuff(buffer_size=4, staleness_exponent=1))
    for node in ("a", "a", "b", "c"):
        here.hears(node)
    for node, base in (("a", 1), ("b", 1), ("c", 0), ("c", 0)):
        here.hears(node, base_version=base)
    status = here.status()
    shares = {node.node: (node.contributions, node.staleness) for node in status.nodes}
    assert shares == {"a": (3, 0.0), "b": (2, 0.0), "c": (3, 2 / 3)}
    assert status.node("c").weight_share == pytest.approx(2 / 7)  # 1 + 1/2 + 1/2 of 7
    assert sum(node.weight_share for node in status.nodes) == pytest.approx(1)
    assert status.staleness == {0: 6, 1: 2}
    assert status.group_sizes == {2: 2, 4: 1}


def test_waiting_updates_are_grouped_by_their_staleness(federation: Any) -> None:
    here = federation(FedBuff(buffer_size=3))
    for node in ("a", "b", "c"):
        here.hears(node)
    here.hears("a")
    here.hears("b", base_version=0)
    assert [(group.base_version, group.staleness, group.updates) for group in here.status().waiting] == [
        (0, 1, 1),
        (1, 0, 1),
    ]
    assert here.status().node("b").waiting == 1


def test_refusals_are_counted_by_cause_and_raise_an_alarm(federation: Any) -> None:
    here = federation(FedBuff(buffer_size=9))
    for _ in range(REFUSED):
        here.hears("a", base_version=7)
    status = here.status()
    assert status.refusals == status.node("a").refusals == {"unknown version": REFUSED}
    assert kinds(status) == ["node_refused"]
    assert "base version 7 is unknown" in status.alarms[0].text
    here.hears("a")
    assert kinds(here.status()) == []


def test_a_node_that_stopped_counting_is_starved(federation: Any) -> None:
    here = federation(FedAsync())
    here.hears("slow")
    for _ in range(STARVED_AFTER):
        here.hears("fast")
    assert [(alarm.kind, alarm.node) for alarm in here.status().alarms] == [("node_starved", "slow")]


def test_a_node_that_is_new_is_not_starved(federation: Any) -> None:
    here = federation(FedAsync())
    for _ in range(STARVED_AFTER):
        here.hears("fast")
    here.hears("new")
    assert kinds(here.status()) == []


def test_an_old_head_is_stalled_only_while_somebody_could_make_the_next(federation: Any) -> None:
    here, later = federation(FedAsync()), 3600 * SECOND
    here.hears("a")
    assert kinds(here.status(later)) == []
    here.says("a")
    assert kinds(here.status(later)) == ["version_stalled"]
    assert kinds(here.status(60 * SECOND)) == []


def test_a_gate_that_refuses_again_and_again_is_an_alarm(federation: Any) -> None:
    here = federation(FedAsync())
    for version in range(1, REFUSING + 1):
        here.hears("a")
        turned_down = ReleaseReport(version=0, variant="head", judged=version, candidate=2.0, before=1.0)
        here.history = replace(here.history, decisions={**here.history.decisions, version: turned_down})
        assert ("gate_refusing" in kinds(here.status())) == (version == REFUSING)
    assert [version.verdict for version in here.status().versions[1:]] == ["turned_down"] * REFUSING


def test_a_node_that_went_away_and_one_with_a_full_outbox_are_alarms(federation: Any) -> None:
    here = federation(FedBuff(buffer_size=9))
    here.hears("a")
    here.says("a", online=False)
    here.says("b", outbox=9)
    assert kinds(here.status()) == ["node_offline", "outbox_growing"]


def test_what_a_node_said_of_its_limits_is_known_when_it_is_gone(federation: Any) -> None:
    here = federation(FedBuff(buffer_size=9))
    here.says("a", limits="at most 70 °C", idle="hot")
    assert (here.status().node("a").limits, here.status().node("a").idle) == ("at most 70 °C", "hot")
    here.says("a", limits="at most 70 °C", online=False)
    assert (here.status().node("a").limits, here.status().node("a").idle) == ("at most 70 °C", None)


def test_the_rank_of_a_node_is_known_and_one_that_is_not_taken_is_an_alarm(federation: Any) -> None:
    here = federation(FedBuff(buffer_size=9))
    here.says("a", idle="rank_not_taken", rank=64)
    here.says("b", idle="resting")
    here.hears("c")
    status = here.status()
    assert [status.node(name).rank for name in ("a", "b", "c")] == [64, 1, None]
    assert [(alarm.kind, alarm.node) for alarm in status.alarms] == [("rank_not_taken", "a")]
    assert "rank 64 is not taken" in status.alarms[0].text


def test_fairness_is_the_best_the_worst_and_the_mean_of_who_is_there(federation: Any) -> None:
    here = federation(FedBuff(buffer_size=9))
    assert here.status().fairness == {}
    here.says(
        "a", served_loss=1.0, served_loss_version=3, served_loss_examples=9, held_out_loss=5.0, held_out_version=4
    )
    here.says("b", served_loss=2.5, served_loss_version=3)
    here.says("c")
    here.says("gone", online=False, served_loss=9.0, served_loss_version=3)
    status = here.status()
    assert status.node("a").held_out["served"] == HeldOut(version=3, loss=1.0, examples=9)
    assert status.node("c").held_out == {}
    assert status.fairness["served"] == Fairness(nodes=2, mean=1.75, best=1.0, best_node="a", worst=2.5, worst_node="b")
    assert status.fairness["head"].worst_node == "a"


def test_many_versions_and_strangers_leave_bounded_traces(federation: Any) -> None:
    here = federation(FedAsync())
    for _ in range(KEPT_VERSIONS + 5):
        here.hears("a")
    for number in range(MOST_STRANGERS + 5):
        here.hears(f"stranger-{number}", base_version=999_999)
    status = here.status()
    assert len(status.versions) == KEPT_VERSIONS and len(here.history.decisions) == KEPT_VERSIONS
    assert len(status.nodes) == MOST_STRANGERS + 1
    assert status.refusals["unknown version"] == MOST_STRANGERS + 5
    assert here.history.losses == {}


def test_a_status_is_read_again_as_it_was_written(federation: Any) -> None:
    here = federation(FedAsync())
    here.hears("a")
    here.says("a", loss=0.5, outbox=1)
    status = here.status()
    assert Status.model_validate_json(status.model_dump_json()) == status
