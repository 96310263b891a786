"""Medians, intervals and paired comparisons of a handful of seeds, by hand-checked numbers."""

import math

import numpy as np
import pytest

from simulation.comparison.statistics import (
    Interval,
    difference,
    interval,
    paired,
    range_coverage,
    times_less,
)


def test_the_interval_of_five_seeds_is_their_range():
    # a resample of five has the least value as its median with probability 0.058, more than the tail's 0.025
    measured = interval({10: 3.0, 11: 1.0, 12: 2.0, 13: 5.0, 14: 4.0})
    assert (measured.median, measured.low, measured.high) == (3, 1, 5)


def test_the_interval_of_many_seeds_is_narrower_than_their_range():
    values = dict(enumerate(np.linspace(0, 1, 41)))
    measured = interval(values)
    assert measured.median == 0.5
    assert 0.2 < measured.low < 0.5 < measured.high < 0.8


def test_the_range_holds_the_median_unless_all_draws_are_on_one_side_of_it():
    assert range_coverage(1) == 0
    assert range_coverage(2) == 0.5
    assert range_coverage(5) == 1 - 2 / 2**5


def test_one_seed_has_no_width_and_none_has_no_interval():
    assert interval({0: 2.0}).high == interval({0: 2.0}).low == 2
    with pytest.raises(ValueError, match="at least one seed"):
        interval({})


def test_the_bootstrap_draws_the_same_every_time():
    values = {seed: math.sin(seed) for seed in range(20)}
    assert interval(values) == interval(values)


def test_differences_are_taken_seed_by_seed_over_the_seeds_that_both_have():
    measured = paired({1: 1.0, 2: 2.0, 3: 3.0}, {2: 1.5, 3: 1.0, 4: 9.0}, difference)
    assert measured is not None
    assert measured.values == {2: 0.5, 3: 2.0}
    assert measured.median == 1.25
    assert paired({1: 1.0}, {2: 1.0}, difference) is None


def test_a_rival_that_never_reached_the_target_is_infinitely_slower():
    assert times_less(10, 25) == 2.5
    assert times_less(10, math.inf) == math.inf
    assert times_less(math.inf, 10) == 0


def test_a_seed_in_which_neither_reached_the_target_says_nothing():
    measured = paired({1: math.inf, 2: 4.0}, {1: math.inf, 2: 8.0}, times_less)
    assert measured is not None
    assert measured.values == {2: 2.0}


def test_a_median_is_infinite_when_most_seeds_never_reached_the_target():
    assert interval({1: 3.0, 2: math.inf, 3: math.inf}).median == math.inf
    assert interval({1: 3.0, 2: 5.0, 3: math.inf}).median == 5


def test_infinity_is_null_in_json_and_comes_back():
    measured = interval({1: 3.0, 2: math.inf, 3: math.inf})
    assert '"median":null' in measured.model_dump_json()
    assert Interval.model_validate_json(measured.model_dump_json()) == measured
