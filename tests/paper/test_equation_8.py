"""Equation (8): the next adapter is the head plus the weighted deltas."""

from collections.abc import Callable

from coordinator.equations import server_step
from schemas.adapter import Adapter

MakeAdapter = Callable[..., Adapter]


def test_the_weighted_deltas_are_added_to_the_head(adapter: MakeAdapter) -> None:
    after = server_step(adapter(10, 20, 30), [adapter(4, 0, 8), adapter(0, 6, -2)], [0.25, 0.5])
    assert after == adapter(10 + 1, 20 + 3, 30 + 2 - 1)


def test_weights_need_not_sum_to_one(adapter: MakeAdapter) -> None:
    assert server_step(adapter(0, 0, 0), [adapter(1, 2, 3)], [0.5]) == adapter(0.5, 1, 1.5)


def test_the_sum_is_rounded_once(adapter: MakeAdapter) -> None:
    huge = [adapter(1e8, 0, 0), adapter(-1e8, 0, 0)]
    assert server_step(adapter(1, 0, 0), huge, [1, 1]) == adapter(1, 0, 0)  # in float32 the 1 would be lost
