"""/healthz of a node: what keeps it from its work is a fault, and a broker that is away is none."""

import time
from dataclasses import replace

import pytest

from edge_node.health import FAILED_TRAININGS, SILENT_S, Shown


@pytest.fixture
def shown():
    return Shown(has_examples=lambda: True)


def test_a_node_that_has_not_begun_is_not_healthy(shown):
    assert shown.look().faults == ("the node has not begun yet",)


def test_a_node_without_a_broker_works_on_and_says_so(shown, member):
    shown.show(replace(member.state, connected=False))
    told = shown.look()
    assert (told.faults, told.about["connected"]) == ((), False)
    shown.show(member.state)
    assert shown.look().about == {"connected": True, "version": None, "outbox": 0}


def test_a_loop_that_does_not_come_by_is_a_fault_until_it_does(shown, member):
    shown.show(member.state)
    later = time.monotonic() + 2 * SILENT_S
    (fault,) = shown.look(later).faults
    assert fault.startswith("the node's loop has not come by for 1")
    shown.show(member.state)
    assert shown.look().faults == ()


def test_trainings_that_come_to_nothing_are_a_fault_where_there_is_something_to_learn(shown, member):
    shown.show(replace(member.state, failures=FAILED_TRAININGS - 1))
    assert shown.look().faults == ()
    failing = replace(member.state, failures=FAILED_TRAININGS)
    shown.show(failing)
    assert shown.look().faults == ("the last 3 trainings came to nothing; the node's log says why",)
    waiting = Shown(has_examples=lambda: False)
    waiting.show(failing)
    assert waiting.look().faults == ()
