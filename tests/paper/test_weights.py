"""What we weigh by in place of equation (7): freshness and participation, absolute, with bounds."""

import math
from collections import defaultdict
from itertools import permutations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from coordinator.equations import (
    absolute_weights,
    cap_shares,
    cap_totals,
    exponential_freshness,
    freshness,
    participation_factor,
)

FRACTIONS = st.floats(0.01, 1)
SHARES = st.lists(st.tuples(st.sampled_from("abcdef"), FRACTIONS), min_size=1, max_size=12)


# --- freshness ---


def test_freshness_halves_after_three_versions_and_exponentially_after_log_two_over_gamma() -> None:
    assert freshness(3, exponent=0.5) == 1 / 2
    assert exponential_freshness(5, gamma=math.log(2) / 5) == pytest.approx(1 / 2)
    assert exponential_freshness(10, gamma=math.log(2) / 5) == pytest.approx(1 / 4)


def test_the_paper_s_freshness_forgets_what_ours_still_hears() -> None:
    assert exponential_freshness(20, gamma=0.2) < 0.02
    assert freshness(20, exponent=0.5) > 0.2


# --- participation ---


@pytest.mark.parametrize(
    ("count", "mean_count", "factor"),
    [
        (3, 3, 1),
        (0, 2.24, 1.8),  # sqrt(3.24 / 1)
        (8, 3, 2 / 3),  # sqrt(4 / 9)
        (0, 99, 2),  # sqrt(100) is too much
        (99, 0, 1 / 2),  # sqrt(1 / 100) is too little
    ],
)
def test_a_node_heard_less_than_the_mean_counts_more_within_bounds(
    count: int, mean_count: float, factor: float
) -> None:
    assert participation_factor(count, mean_count) == pytest.approx(factor)


# --- weights ---


def test_weights_are_freshness_times_participation_over_the_number_of_updates() -> None:
    assert absolute_weights([1, 0.5], [0.5, 2]) == (1 / 4, 1 / 2)


@given(st.lists(FRACTIONS, min_size=1, max_size=8), st.integers(0, 50))
def test_equal_participation_reduces_to_freshness(freshnesses: list[float], count: int) -> None:
    factors = [participation_factor(count, count)] * len(freshnesses)
    assert absolute_weights(freshnesses, factors) == tuple(fresh / len(freshnesses) for fresh in freshnesses)


@given(FRACTIONS, st.integers(1, 8))
def test_a_buffer_of_equally_stale_updates_takes_a_smaller_step(fresh: float, updates: int) -> None:
    assert math.fsum(absolute_weights([fresh] * updates, [1] * updates)) == pytest.approx(fresh)


@given(st.lists(st.tuples(FRACTIONS, FRACTIONS), min_size=2, max_size=8))
def test_what_else_is_in_the_buffer_does_not_change_a_weight(entries: list[tuple[float, float]]) -> None:
    weights = absolute_weights(*zip(*entries, strict=True))
    others = [(1.0, 1.0)] * (len(entries) - 1)
    assert absolute_weights(*zip(entries[0], *others, strict=True))[0] == weights[0]


# --- bounds ---


def test_a_node_with_most_of_the_weight_is_cut_to_its_share_of_what_is_left() -> None:
    # a may hold half: as much as b and c together
    assert cap_shares("abc", [10, 1, 1], cap=1 / 2) == (2, 1, 1)
    # a and b may hold 2/5 each: twice what c holds
    assert cap_shares("abc", [5, 4, 1], cap=2 / 5) == pytest.approx((2, 2, 1))


def test_a_node_that_sends_twice_has_one_share() -> None:
    assert cap_shares("aabc", [3, 3, 2, 2], cap=1 / 2) == (2, 2, 2, 2)


def test_too_few_nodes_for_the_cap_weigh_as_much_as_the_least() -> None:
    assert cap_shares("ab", [0.5, 0.1], cap=0.2) == (0.1, 0.1)
    assert cap_shares("a", [0.5], cap=0.2) == (0.5,)


def test_a_total_above_the_most_is_lowered_and_no_other_is() -> None:
    assert cap_totals("aab", [0.3, 0.1, 0.2], 0.2) == pytest.approx((0.15, 0.05, 0.2))
    assert cap_totals("a", [0.5], 0.2) == (0.2,)


def test_a_node_without_weight_takes_none_from_those_that_keep_to_the_cap() -> None:
    nodes, weights = [str(node) for node in range(50)], [1.0] * 49 + [0.0]
    assert cap_shares(nodes, weights, cap=1 / 49) == pytest.approx(weights)


@given(SHARES, st.floats(0.01, 1))
def test_no_node_holds_more_than_the_cap_and_no_weight_grows(entries: list[tuple[str, float]], cap: float) -> None:
    nodes, weights = zip(*entries, strict=True)
    capped = cap_shares(nodes, weights, cap)
    held: defaultdict[str, float] = defaultdict(float)
    for node, weight in zip(nodes, capped, strict=True):
        held[node] += weight
    assert max(held.values()) <= max(cap, 1 / len(held)) * math.fsum(capped) * (1 + 1e-9)
    assert all(0 < now <= before * (1 + 1e-12) for now, before in zip(capped, weights, strict=True))


@given(SHARES)
def test_a_cap_that_nobody_exceeds_changes_nothing(entries: list[tuple[str, float]]) -> None:
    nodes, weights = zip(*entries, strict=True)
    assert cap_shares(nodes, weights, cap=1) == weights


def test_the_order_of_the_buffer_does_not_matter_to_a_weight() -> None:
    entries = [("a", 8.0), ("b", 4.0), ("c", 2.0), ("d", 2.0)]
    found = set()
    for order in permutations(entries):
        nodes, weights = zip(*order, strict=True)
        found.add(tuple(sorted(zip(nodes, cap_shares(nodes, weights, cap=1 / 4), strict=True))))
    assert found == {(("a", 2.0), ("b", 2.0), ("c", 2.0), ("d", 2.0))}
