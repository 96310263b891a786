"""What we do in place of equation (6): carry over what an update did to the product B A, in closed form."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from coordinator.equations import server_step
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.products import mean_product, product_distance, transplant, truncate

MakeAdapter = Callable[..., Adapter]

ALMOST_NONE = 1e-12


@pytest.fixture
def scalar(adapter: MakeAdapter) -> MakeAdapter:
    """Make the adapter whose product is a * b, beside an input that is not used."""
    return lambda a, b: adapter(a, 0, b)


def test_a_fresh_delta_is_unchanged(adapter: MakeAdapter) -> None:
    delta = adapter(0.1, 1 / 3, 7)
    assert transplant(adapter(1, 2, 3), adapter(1, 2, 3), delta, ridge=0.05) is delta


def test_the_change_of_the_product_is_carried_over_not_that_of_the_factors(scalar: MakeAdapter) -> None:
    # 2 * 1 became 2 * 2: the product grew by 2. The head is the same product in other factors, 1 * 2
    moved = transplant(scalar(1, 2), scalar(2, 1), scalar(0, 1), ridge=ALMOST_NONE)
    assert moved.values == pytest.approx([0, 0, 2])  # 1 * 4


def test_the_ridge_holds_the_factors_near_the_node_s_own(scalar: MakeAdapter) -> None:
    # from (1, 2 + 1), aim 4, ridge 1: B = (4 + 3) / (1 + 1) = 7/2, then A = (4 * 7/2 + 49/4) / (2 * 49/4) = 15/14
    moved = transplant(scalar(1, 2), scalar(2, 1), scalar(0, 1), ridge=1, sweeps=1)
    assert moved.values == pytest.approx([1 / 14, 0, 3 / 2])


def test_at_the_start_where_b_is_zero_a_change_of_a_does_nothing_and_is_not_invented(scalar: MakeAdapter) -> None:
    moved = transplant(scalar(1, 3), scalar(1, 0), scalar(5, 0), ridge=ALMOST_NONE)
    after = scalar(1, 3) + moved
    assert product_distance(after, scalar(1, 3)) == pytest.approx(0, abs=1e-6)


def test_the_mean_of_products_is_not_the_product_of_means(scalar: MakeAdapter) -> None:
    head, updates = scalar(1, 1), [(scalar(0, 1), 0.5), (scalar(2, 2), 0.5)]
    # factor by factor: (1 + 1)(1 + 3/2) = 5; the products 2 and 9 grew by 1 and 8: 1 + 9/2 = 11/2
    by_factor = server_step(head, [delta for delta, _ in updates], [weight for _, weight in updates])
    assert by_factor == scalar(2, 2.5)
    exact, residual = mean_product(head, [(head, delta, weight) for delta, weight in updates], ridge=ALMOST_NONE)
    a, _, b = exact.values
    assert a * b == pytest.approx(11 / 2)
    assert residual == pytest.approx(0, abs=1e-6)


def test_one_fresh_update_of_weight_one_is_taken_as_it_is(adapter: MakeAdapter) -> None:
    head, delta = adapter(1, 2, 3), adapter(0.5, -1, 0.25)
    after, residual = mean_product(head, [(head, delta, 1.0)], ridge=0.05)
    assert after.values == pytest.approx((head + delta).values)
    assert residual == pytest.approx(0, abs=1e-6)


def test_an_update_that_did_nothing_leaves_the_head(adapter: MakeAdapter) -> None:
    head = adapter(1, 2, 3)
    after, residual = mean_product(head, [(adapter(3, 2, 1), adapter(0, 0, 0), 1.0)], ridge=0.05)
    assert after.values == pytest.approx(head.values)
    assert residual == 0


@pytest.fixture
def diagonal() -> MakeAdapter:
    """Make an adapter of rank 2 with two inputs and outputs whose product is the diagonal matrix of two numbers."""
    tensors = (("x.lora_A.weight", (2, 2)), ("x.lora_B.weight", (2, 2)))
    layout = Layout(lora=LoraConfig(rank=2, alpha=2), tensors=tensors)
    return lambda x, y: Adapter(layout, np.array([1, 0, 0, 1, x, 0, 0, y], dtype=np.float32))


RANK_1 = Layout(lora=LoraConfig(rank=1, alpha=1), tensors=(("x.lora_A.weight", (1, 2)), ("x.lora_B.weight", (2, 1))))


def test_of_two_directions_the_larger_is_kept_and_shared_evenly_between_the_factors(diagonal: MakeAdapter) -> None:
    cut = truncate(diagonal(4, 1), RANK_1)
    assert cut.values == pytest.approx([2, 0, 2, 0])  # A = (2 0), B = (2 0)
    assert product_distance(cut, diagonal(4, 1)) == pytest.approx(1 / math.sqrt(4**2 + 1**2))


def test_what_one_rank_cannot_hold_is_reported(diagonal: MakeAdapter) -> None:
    # a rank-2 node adds 3 in the first direction and 4 in the second, to a head of rank 1 that is zero
    head, base = Adapter(RANK_1, np.array([1, 1, 0, 0], dtype=np.float32)), diagonal(0, 0)
    delta = diagonal(3, 4) - diagonal(0, 0)
    after, residual = mean_product(head, [(base, delta, 1.0)], ridge=ALMOST_NONE, sweeps=200)
    assert product_distance(after, diagonal(0, 4)) == pytest.approx(0, abs=1e-5)
    assert residual == pytest.approx(3 / 5)
