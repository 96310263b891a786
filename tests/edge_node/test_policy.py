"""What an owner's policy says of a machine's conditions, and what a node makes of it."""

from typing import Any

import pytest
from pydantic import ValidationError

from edge_node.core import next_deadline, node_metrics
from edge_node.effects import AbortTraining, Note, PublishState, Train
from edge_node.events import ConditionsRead
from edge_node.node import farewell_of
from edge_node.policy import Conditions, TrainingPolicy, is_too_far_behind, reason_against
from schemas.topics import GlobalHead


@pytest.mark.parametrize(
    ("limit", "conditions", "reason"),
    [
        ({"max_load": 0.5}, {"load": 0.5}, None),
        ({"max_load": 0.5}, {"load": 0.6}, "busy"),
        ({"max_temperature_c": 70}, {"temperature_c": 70.0}, None),
        ({"max_temperature_c": 70}, {"temperature_c": 70.1}, "hot"),
        ({"min_battery_percent": 40}, {"battery_percent": 40.0}, None),
        ({"min_battery_percent": 40}, {"battery_percent": 39.0}, "battery_low"),
        ({"hours": "22:00-06:00"}, {"minute": 22 * 60}, None),
        ({"hours": "22:00-06:00"}, {"minute": 5 * 60 + 59}, None),
        ({"hours": "22:00-06:00"}, {"minute": 6 * 60}, "not_at_this_hour"),
        ({"hours": "09:30-17:00"}, {"minute": 9 * 60 + 29}, "not_at_this_hour"),
        ({"hours": "09:30-17:00"}, {"minute": 9 * 60 + 30}, None),
    ],
)
def test_each_limit_forbids_what_is_beyond_it(limit: Any, conditions: Any, reason: str | None) -> None:
    assert reason_against(TrainingPolicy(**limit), Conditions(**conditions), None) == reason


def test_without_limits_nothing_is_forbidden_and_nothing_is_read() -> None:
    worst = Conditions(load=99.0, temperature_c=120.0, battery_percent=0.0, minute=0, examples=0)
    assert reason_against(TrainingPolicy(), worst, 0) is None
    assert not TrainingPolicy().looks_at_the_machine
    assert TrainingPolicy(hours="00:00-01:00").looks_at_the_machine


def test_the_limits_that_are_set_can_be_said_in_words() -> None:
    assert TrainingPolicy().in_words is None
    assert TrainingPolicy(max_temperature_c=70, hours="22:00-06:00").in_words == "at most 70 °C, 22:00-06:00"
    every = TrainingPolicy(
        min_new_examples=20, newest_version=True, max_versions_behind=5, max_load=0.5, min_battery_percent=40
    )
    assert every.in_words == (
        "20 new examples, the newest version, at most 5 versions behind, a load of at most 0.5, "
        "a battery of at least 40 %"
    )


def test_what_a_machine_does_not_report_forbids_nothing() -> None:
    strict = TrainingPolicy(
        max_load=0.1, max_temperature_c=1, min_battery_percent=100, hours="00:00-00:01", min_new_examples=9
    )
    assert reason_against(strict, Conditions(), 5) is None


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [(None, 1, None), (100, 109, "few_new_examples"), (100, 110, None), (100, 9, "few_new_examples"), (100, 10, None)],
)
def test_new_examples_are_those_since_the_last_training_or_all_of_a_file_that_was_replaced(
    before: int | None, now: int, reason: str | None
) -> None:
    assert reason_against(TrainingPolicy(min_new_examples=10), Conditions(examples=now), before) == reason


@pytest.mark.parametrize("hours", ["22-6", "24:00-01:00", "1:00-2:00", "01:00-02:60"])
def test_hours_that_no_clock_shows_are_refused(hours: str) -> None:
    with pytest.raises(ValidationError):
        TrainingPolicy(hours=hours)


def test_only_more_versions_than_allowed_are_too_far_behind() -> None:
    assert not is_too_far_behind(TrainingPolicy(), 0, 1000)
    assert not is_too_far_behind(TrainingPolicy(max_versions_behind=2), 3, 5)
    assert is_too_far_behind(TrainingPolicy(max_versions_behind=2), 3, 6)


def member_with(start_node: Any, coordinator: Any, **policy: Any) -> Any:
    node = start_node(policy=TrainingPolicy(**policy))
    node.joins(coordinator.terms())
    return node


def reads(node: Any, **conditions: Any) -> Any:
    return node.tell(ConditionsRead(node.now, Conditions(**conditions)))


def idle(node: Any) -> str | None:
    return node_metrics(node.state, node.now).idle


def test_a_busy_node_waits_says_why_and_trains_when_it_is_quiet(start_node: Any, coordinator: Any) -> None:
    node = member_with(start_node, coordinator, max_load=0.5)
    reads(node, load=3.0)
    assert not any(isinstance(effect, Train) for effect in node.receives(coordinator.version(3)))
    assert idle(node) == "busy"
    assert next_deadline(node.state) is None  # nothing to wake up for: the next reading comes by itself
    assert any(isinstance(effect, Train) for effect in reads(node, load=0.1))
    assert idle(node) is None


def test_a_node_says_in_its_birth_and_its_will_what_it_waits_for(start_node: Any, coordinator: Any) -> None:
    node = start_node(policy=TrainingPolicy(max_load=0.5))
    (birth,) = [effect.state for effect in node.connects() if isinstance(effect, PublishState)]
    will = farewell_of(node.state.identity)
    assert (birth.online, will.online) == (True, False)
    assert birth.limits == will.limits == "a load of at most 0.5"


def test_what_becomes_too_hot_is_not_begun_again_but_what_runs_goes_on(start_node: Any, coordinator: Any) -> None:
    node = member_with(start_node, coordinator, max_temperature_c=70)
    node.receives(coordinator.version(3))
    assert reads(node, temperature_c=90.0) == ()
    assert not any(isinstance(effect, Train) for effect in node.finishes(2.0))
    assert idle(node) == "hot"


def test_a_node_trains_again_after_so_many_new_examples(start_node: Any, coordinator: Any) -> None:
    node = member_with(start_node, coordinator, min_new_examples=10)
    reads(node, examples=50)
    node.receives(coordinator.version(3))
    reads(node, examples=55)  # while it trains
    node.finishes(2.0)
    assert idle(node) == "few_new_examples"
    assert any(isinstance(effect, Train) for effect in reads(node, examples=60))


def test_a_node_that_wants_the_newest_version_waits_until_it_is_there(start_node: Any, coordinator: Any) -> None:
    node = member_with(start_node, coordinator, newest_version=True)
    node.receives(coordinator.version(3))
    node.hears(GlobalHead(), coordinator.version(4, value=2.0).pointer)
    assert not any(isinstance(effect, Train) for effect in node.finishes(2.0))
    assert idle(node) == "newer_version_coming"
    (job,) = [e.job for e in node.receives(coordinator.version(4, value=2.0)) if isinstance(e, Train)]
    assert job.start.pointer.version == 4


def test_a_job_too_many_versions_behind_is_dropped_for_one_on_the_newest(start_node: Any, coordinator: Any) -> None:
    node = member_with(start_node, coordinator, max_versions_behind=1)
    node.receives(coordinator.version(3))
    assert AbortTraining() not in node.receives(coordinator.version(4, value=2.0))
    effects = node.receives(coordinator.version(5, value=3.0))
    order = [type(effect) for effect in effects if isinstance(effect, AbortTraining | Train)]
    assert order == [AbortTraining, Train]
    assert node.state.training.job.start.pointer.version == 5
    assert Note("training on version 3 dropped: version 5 is there") in effects


def test_a_node_says_why_it_waits(start_node: Any, coordinator: Any) -> None:
    node = start_node(outbox_updates=1)
    assert idle(node) == "no_terms"
    node.joins(coordinator.terms(one_update_per_version=True))
    assert idle(node) == "no_version"
    node.receives(coordinator.version(3))
    assert idle(node) is None
    update = node.learns(2.0)
    assert idle(node) == "version_used"
    node.receives(coordinator.version(4, value=3.0))
    assert idle(node) == "outbox_full"
    node.is_told(update, "accepted")
    assert idle(node) is None
