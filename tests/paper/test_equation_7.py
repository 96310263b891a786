"""Equation (7), literally: weights by freshness, inverse norm and inverse uploads, normalised over the buffer."""

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from coordinator.equations import freshness, literal_weights

ENTRIES = st.lists(
    st.tuples(st.integers(0, 100_000), st.floats(1e-6, 1e6), st.integers(0, 1000)), min_size=1, max_size=8
)


def test_freshness_norm_and_uploads_each_lower_a_weight() -> None:
    # 1 / 1 / sqrt(1) = 1 beside (1/2) / 2 / sqrt(4) = 1/8: of nine eighths, eight and one
    weights = literal_weights([0, 1], norms=[1, 2], uploads=[0, 3], gamma=math.log(2), eps=0)
    assert weights == pytest.approx((8 / 9, 1 / 9))


@given(ENTRIES)
def test_the_weights_sum_to_one_however_old_the_buffer_is(entries: list[tuple[int, float, int]]) -> None:
    taus, norms, uploads = zip(*entries, strict=True)
    assert math.fsum(literal_weights(taus, norms, uploads, gamma=0.2)) == pytest.approx(1)


@pytest.mark.parametrize("tau", [1, 50, 100_000])
def test_the_discount_of_a_buffer_of_equally_stale_updates_cancels(tau: int) -> None:
    norms, uploads = [1.0, 2.0, 5.0], [0, 4, 9]
    stale, fresh = (literal_weights([age] * 3, norms, uploads, gamma=0.2) for age in (tau, 0))
    assert stale == fresh
    # ours: a buffer three versions old is worth half
    assert freshness(3, exponent=0.5) == 0.5


def test_a_lazy_node_gets_the_weight_that_an_honest_one_loses() -> None:
    # half the work, twice the weight: 1/1 beside 1/2
    assert literal_weights([0, 0], norms=[2, 1], uploads=[0, 0], gamma=0.2, eps=0) == pytest.approx((1 / 3, 2 / 3))
    # next to no work, nearly all the weight
    honest, idle = literal_weights([0, 0], norms=[1, 1e-6], uploads=[0, 0], gamma=0.2)
    assert idle > 0.99999
    assert honest < 0.00001


def test_nodes_that_did_the_same_weigh_the_same() -> None:
    assert literal_weights([2] * 4, norms=[3.0] * 4, uploads=[7] * 4, gamma=0.2) == (0.25,) * 4
