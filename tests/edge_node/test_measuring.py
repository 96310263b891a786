"""When a version is measured without a training, where the owner wants that."""

from typing import Any

import pytest

from edge_node.core import next_deadline, node_metrics
from edge_node.effects import AbortTraining, Measure, Train, Warn
from edge_node.events import ConditionsRead, HeldOutMeasured, MeasuringEnded, TrainingFailed
from edge_node.policy import Conditions, TrainingPolicy
from schemas.topics import CoordinatorStateOf

NIGHT, NOON = Conditions(minute=0), Conditions(minute=12 * 60)


@pytest.fixture
def by_night(start_node: Any, coordinator: Any) -> Any:
    """A node that trains at night alone and measures at any time; it is noon."""
    node = start_node(policy=TrainingPolicy(hours="22:00-06:00"), local_data={"measured": 12, "measured_idle": True})
    node.joins(coordinator.terms())
    node.tell(ConditionsRead(node.now, NOON))
    return node


def measured(effects: Any) -> list[Any]:
    return [effect.job for effect in effects if isinstance(effect, Measure)]


def ends(node: Any, job: Any, loss: float = 1.5) -> Any:
    """The trainer has measured what it should."""
    return (
        *node.tell(HeldOutMeasured(node.now, job.sequence, examples=7, loss=loss)),
        *node.tell(MeasuringEnded(node.now, job.sequence)),
    )


def test_each_new_version_is_measured_once_while_the_policy_blocks_training(by_night: Any, coordinator: Any) -> None:
    (job,) = measured(by_night.receives(coordinator.version(3)))
    assert (job.start.pointer.version, job.measured) == (3, 12)
    assert measured(ends(by_night, job)) == []
    told = node_metrics(by_night.state, by_night.now)
    assert (told.idle, told.held_out_version, told.held_out_loss) == ("not_at_this_hour", 3, 1.5)
    assert measured(by_night.waits(100)) == []
    (job,) = measured(by_night.receives(coordinator.version(4, value=2.0)))
    by_night.receives(coordinator.version(5, value=3.0))  # while 4 is measured
    (job,) = measured(ends(by_night, job))
    assert job.start.pointer.version == 5


def test_a_version_that_was_measured_is_not_measured_again_to_train_on_it(by_night: Any, coordinator: Any) -> None:
    (job,) = measured(by_night.receives(coordinator.version(3)))
    ends(by_night, job)
    (training,) = [e.job for e in by_night.tell(ConditionsRead(by_night.now, NIGHT)) if isinstance(e, Train)]
    assert (training.measured, training.sequence) == (0, job.sequence + 1)


def test_a_training_does_not_wait_for_a_measurement(by_night: Any, coordinator: Any) -> None:
    (job,) = measured(by_night.receives(coordinator.version(3)))
    effects = by_night.tell(ConditionsRead(by_night.now, NIGHT))
    order = [type(effect) for effect in effects if isinstance(effect, AbortTraining | Train)]
    assert order == [AbortTraining, Train]
    assert by_night.state.training.job.measured == 12
    ends(by_night, job)  # what was under way when it was ended
    assert by_night.state.held_out is None and by_night.state.training is not None


def test_without_the_setting_nothing_is_measured_beside_trainings(start_node: Any, coordinator: Any) -> None:
    node = start_node(policy=TrainingPolicy(hours="22:00-06:00"))
    node.joins(coordinator.terms())
    node.tell(ConditionsRead(node.now, NOON))
    assert measured(node.receives(coordinator.version(3))) == []


def test_a_machine_that_is_too_hot_to_train_is_too_hot_to_measure(start_node: Any, coordinator: Any) -> None:
    node = start_node(policy=TrainingPolicy(max_temperature_c=70), local_data={"measured_idle": True})
    node.joins(coordinator.terms())
    node.tell(ConditionsRead(node.now, Conditions(temperature_c=90)))
    assert measured(node.receives(coordinator.version(3))) == []


def test_the_last_version_of_a_federation_is_measured(by_night: Any, coordinator: Any) -> None:
    by_night.tell(ConditionsRead(by_night.now, NIGHT))
    by_night.receives(coordinator.version(3))
    effects = by_night.hears(CoordinatorStateOf(), coordinator.terms(finished=True))
    assert [type(effect) for effect in effects if isinstance(effect, AbortTraining | Measure)] == [
        AbortTraining,
        Measure,
    ]


def test_a_measurement_that_fails_is_tried_again_later(by_night: Any, coordinator: Any) -> None:
    (job,) = measured(by_night.receives(coordinator.version(3)))
    effects = by_night.tell(TrainingFailed(by_night.now, job.sequence, "out of memory"))
    assert any(isinstance(e, Warn) and "cannot measure a version: out of memory" in e.text for e in effects)
    assert measured(effects) == []
    pause_s = next_deadline(by_night.state) - by_night.now
    assert pause_s > 0
    assert len(measured(by_night.waits(pause_s))) == 1
