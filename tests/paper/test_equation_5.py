"""Equation (5): updates of one base version, less their mean."""

from collections.abc import Callable
from itertools import permutations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from coordinator.equations import centre, consensus
from coordinator.updates import AdapterUpdate, Buffer
from schemas.adapter import Adapter, weighted_sum

MakeAdapter = Callable[..., Adapter]

NUMBERS = st.floats(-1e3, 1e3, width=32)
GROUPS = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=6)


def test_the_consensus_is_subtracted_from_each_delta_of_the_group(adapter: MakeAdapter) -> None:
    group = [adapter(2, 4, 0), adapter(4, 0, 6)]
    assert consensus(group) == adapter(3, 2, 3)
    assert centre(group) == (adapter(-1, 2, -3), adapter(1, -2, 3))


@given(st.tuples(NUMBERS, NUMBERS, NUMBERS))
def test_a_group_of_one_becomes_exactly_zero(adapter: MakeAdapter, delta: tuple[float, ...]) -> None:
    (residual,) = centre([adapter(*delta)])
    assert not residual.values.any()


@given(GROUPS)
def test_what_is_left_of_a_group_adds_up_to_nothing(adapter: MakeAdapter, group: list[tuple[float, ...]]) -> None:
    residuals = centre([adapter(*delta) for delta in group])
    total = weighted_sum(list(residuals), [1.0] * len(residuals)).values
    largest = max(1.0, *(abs(value) for delta in group for value in delta))
    assert np.abs(total).max() <= len(group) * largest * 1e-6


def test_the_order_of_arrival_changes_no_bit_of_what_is_left(adapter: MakeAdapter) -> None:
    arrivals = [("a", (0.1, 0.7, 1 / 3)), ("b", (1e-7, 3.3, -0.2)), ("c", (1e4, 0.3, 0.9))]
    left = set()
    for order in permutations(arrivals):
        buffer = Buffer()
        for node, delta in order:
            buffer = buffer.with_update(AdapterUpdate(node, node, 0, 0, 1, 0, adapter(*delta)))
        residuals = centre([update.delta for update in buffer.updates])
        left.add(tuple(residual.digest for residual in residuals))
    assert len(left) == 1


def test_a_group_of_different_adapters_is_refused(adapter: MakeAdapter, rank_2: MakeAdapter) -> None:
    with pytest.raises(ValueError, match="different layouts"):
        centre([adapter(1, 2, 3), rank_2([[1], [2]], [[3, 4]])])
