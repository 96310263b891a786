"""Equation (3): a node pays for moving its features away from the snapshot it was sent."""

import pytest

from coordinator.equations import representation_penalty


def test_the_penalty_is_the_mean_over_examples_of_the_squared_distance() -> None:
    local, dispatched = [[1, 2], [0, 0]], [[0, 0], [0, 2]]
    # 1 + 4 = 5 and 0 + 4 = 4; their mean is 9/2
    assert representation_penalty(local, dispatched, strength=1) == 9 / 2
    assert representation_penalty(local, dispatched, strength=0.5) == 9 / 4


def test_a_model_that_has_not_moved_pays_nothing() -> None:
    assert representation_penalty([[3, -1]], [[3, -1]], strength=7) == 0


def test_moving_twice_as_far_costs_four_times_as_much() -> None:
    near, far = (representation_penalty([[x, 0]], [[0, 0]], strength=0.3) for x in (1.5, 3))
    assert far == pytest.approx(4 * near)
