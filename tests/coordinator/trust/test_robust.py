"""What keeps one update, or one node, from deciding too much, in whole numbers."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from coordinator.trust.robust import (
    DeltaSize,
    HeadGuard,
    Measured,
    Standing,
    TrustStage,
    clip_factor,
    newest,
    size_of,
    standings_after,
    usual_size,
)
from schemas.adapter import Adapter
from schemas.products import Reach

MakeAdapter = Callable[..., Adapter]


def sized(norm: float, linear: float = 0, square: float = 0) -> DeltaSize:
    return DeltaSize(norm, Reach(linear, square))


def seen(cosine: float | None) -> Measured:
    return Measured(sized(1), cosine)


# --- size ---


def test_a_delta_as_long_as_usual_is_left_as_it_is() -> None:
    assert clip_factor(sized(2, 3), (1, 2), limit=2) == 1


def test_a_delta_longer_than_the_limit_is_made_as_long_as_usual() -> None:
    assert clip_factor(sized(8), (1, 1), limit=2) == 1 / 8


def test_a_delta_over_one_limit_is_within_the_usual_by_both_measures() -> None:
    over_by_norm = sized(12, linear=4, square=0)
    assert clip_factor(over_by_norm, (4, 1), limit=1.5) == 1 / 4
    over_by_reach = sized(2, linear=12, square=0)
    assert clip_factor(over_by_reach, (1, 4), limit=1.5) == 1 / 3


def test_a_delta_a_little_over_the_limit_is_shortened_a_little_and_a_longer_one_to_less() -> None:
    def left(length: float) -> float:
        return length * clip_factor(sized(length), (1, 1), limit=2)

    assert [left(length) for length in (1.9, 2, 2.5, 4, 100)] == pytest.approx([1.9, 2, 1.6, 1, 1])


def test_factors_that_are_short_apart_and_move_much_together_are_shortened_by_what_their_product_does() -> None:
    assert clip_factor(sized(1, linear=0, square=64), (1, 4), limit=1) == math.sqrt(4 / 64)
    share = clip_factor(sized(1, linear=3, square=4), (1, 1), limit=1)
    assert share * 3 + share**2 * 4 == pytest.approx(1)


@pytest.mark.parametrize("usual", [(0.0, 0.0), (1.0, 0.0), (1.0, 5e-324)])
@pytest.mark.parametrize("linear", [0.0, 3.0])
def test_where_most_nodes_send_nothing_nothing_is_left_of_the_others(linear: float, usual: tuple[float, float]) -> None:
    assert clip_factor(sized(1, linear=linear, square=1e-9), usual, limit=1) == pytest.approx(0, abs=1e-150)


def test_a_delta_that_overflows_is_shortened_to_nothing() -> None:
    assert clip_factor(sized(math.inf, math.inf, math.inf), (1, 1), limit=2) == 0


def test_deltas_that_are_all_zero_need_no_clipping() -> None:
    assert clip_factor(sized(0), (0, 0), limit=1) == 1


def test_every_node_has_one_vote_on_what_is_usual_however_often_it_sends() -> None:
    remembered = {node: Standing(sized(1, 10)) for node in "abc"}
    assert usual_size(remembered, ["x"] * 9, [sized(100, 1000)] * 9) == (1, 10)


def test_of_two_nodes_the_one_with_the_shorter_delta_is_the_measure() -> None:
    assert usual_size({}, ["a", "b"], [sized(1, 7), sized(100, 2)]) == (1, 2)


def test_the_latest_delta_of_a_node_is_its_vote() -> None:
    assert usual_size({"a": Standing(sized(5, 5))}, ["a"], [sized(1, 1)]) == (1, 1)


def test_what_is_absurd_beside_the_coordinators_own_delta_has_no_vote_and_that_has_one() -> None:
    tiny, honest, huge = sized(1e-3, 1e-3), sized(1, 10), sized(100, 1000)
    for others in ([tiny, tiny, honest], [tiny, tiny, tiny], [huge, huge, honest], [huge, huge, huge]):
        assert usual_size({}, list("abcd"), [honest, *others], own=honest) == (1, 10)
    assert usual_size({}, list("abc"), [huge, huge, huge], own=honest) == (1, 10)
    long = sized(10, 100)
    assert usual_size({}, list("abcd"), [long] * 4, own=honest) == (10, 100)


def test_of_less_than_three_nodes_the_coordinators_own_delta_is_no_measure() -> None:
    """How long a node trains is its owner's choice."""
    assert usual_size({}, ["a"], [sized(3, 30)], own=sized(1, 10)) == (3, 30)
    assert usual_size({}, ["a"], [sized(1, 10)], own=sized(5, 50)) == (1, 10)


def test_a_share_of_a_delta_moves_products_by_no_more_than_its_size_says(adapter: MakeAdapter) -> None:
    head, delta = adapter(2, -3), adapter(5, 7)
    reach = size_of(head, delta).reach
    scale = head.layout.lora.alpha / head.layout.lora.rank
    for share in np.linspace(0, 1, 11):
        moved = scale * ((-3 + share * 7) * (2 + share * 5) - -3 * 2)
        assert abs(moved) <= share * reach.linear + share**2 * reach.square + 1e-9


# --- trust ---

FLEET = {node: Standing(sized(1), agreement=0.5, compared=3) for node in "abcd"}


def factor(standings: dict[str, Standing], cosine: float | None, probation: bool = False, **settings: float) -> float:
    """What is left of the weight of one more update of x."""
    (left,) = TrustStage(**settings).factors(standings, ["x"], [seen(cosine)], probation)  # type: ignore[arg-type]
    return left


def test_a_node_that_always_turns_against_the_anchor_is_left_out_from_its_second_update_on() -> None:
    assert factor(FLEET, -0.2) == 1
    assert factor(FLEET | {"x": Standing(sized(1)).after(seen(-0.2))}, -0.2) == 0


def test_an_update_that_points_backwards_is_left_out_at_once() -> None:
    assert factor(FLEET, -0.31) == 0
    assert factor(FLEET | {"x": Standing(sized(1)).after(seen(0.9))}, -0.31) == 0
    assert factor(FLEET, -0.31, backwards=-1) == 1


def test_the_first_buffer_may_be_of_liars_but_for_one_update() -> None:
    first = TrustStage().factors({}, list("abcd"), [seen(-0.6), seen(0.6), seen(-0.6), seen(-0.6)], False)
    assert first == [0, 1, 0, 0]


def test_where_nobody_agrees_with_the_anchor_nothing_points_backwards() -> None:
    assert TrustStage().factors({}, list("abcd"), [seen(-0.6)] * 4, False) == [1] * 4


def test_a_minority_that_agrees_shuts_nobody_out_who_goes_on_pointing_elsewhere() -> None:
    """A calibration set like a quarter of the fleet, or a quarter of the fleet that agrees with it on purpose."""
    against = {node: Standing(sized(1), agreement=-0.5, compared=3) for node in "mnopqrstu"}
    assert factor(FLEET | against, -0.5) == 1
    barely = {node: Standing(sized(1), agreement=0.06, compared=3) for node in "abcd"}
    assert factor(barely, -0.31) == 1


def test_one_update_that_turns_against_the_anchor_is_forgiven_a_node_that_learns_the_same() -> None:
    assert factor(FLEET | {"x": Standing(sized(1)).after(seen(0.6))}, -0.3) == 1


def test_where_most_nodes_turn_against_the_anchor_the_anchor_is_in_doubt_and_no_node() -> None:
    against = {node: Standing(sized(1), agreement=-0.5, compared=3) for node in "xyz"}
    assert factor({"a": FLEET["a"], "b": FLEET["b"]} | against, -0.2) == 1
    assert factor(against, -0.5, probation=True, caution=0.25) == 0.25


def test_a_node_that_was_left_out_can_mend_its_ways() -> None:
    standing, updates = Standing(sized(1)), 0
    for _ in range(20):
        standing = standing.after(seen(-0.5))
    while factor(FLEET | {"x": standing}, 0.5) == 0:
        standing, updates = standing.after(seen(0.5)), updates + 1
    assert 1 < updates <= 8


def test_without_an_anchor_of_its_base_version_nothing_is_held_against_an_update() -> None:
    standing = Standing(sized(1)).after(seen(None)).after(seen(None))
    assert standing.compared == 0
    assert factor(FLEET | {"x": standing}, None) == 1


def test_on_probation_an_update_counts_by_its_own_cosine_and_cautiously_where_there_is_none() -> None:
    assert [factor(FLEET, cosine, probation=True, caution=0.25) for cosine in (0.6, -0.2, None)] == [0.6, 0, 0.25]


def test_standings_grow_in_the_order_given_and_leave_other_nodes_alone() -> None:
    before = {"a": Standing(sized(1), agreement=0.5, compared=1), "z": Standing(sized(9))}
    after = standings_after(before, ["a", "b", "a"], [seen(0.3), seen(0.2), seen(0.4)])
    assert (after["a"].agreement, after["a"].compared) == (pytest.approx(0.4), 3)
    assert (after["b"].agreement, after["b"].compared) == (0.2, 1)
    assert after["z"] == before["z"]


def test_only_the_newest_anchors_are_kept(adapter: MakeAdapter) -> None:
    assert list(newest({3: adapter(1), 1: adapter(2), 7: adapter(3)}, 2)) == [3, 7]


# --- the guard ---


def test_the_guard_alarms_beyond_five_percent_and_a_hundredth() -> None:
    guard = HeadGuard()
    assert [guard.alarms(2.0, candidate) for candidate in (1.0, 2.11, 2.12, math.inf, math.nan)] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_what_is_served_with_an_infinite_loss_is_nothing_to_go_back_to() -> None:
    assert not HeadGuard().alarms(math.inf, math.inf)


def test_probation_doubles_with_every_return_that_follows_soon_after_another() -> None:
    assert [HeadGuard(probation=4).probation_after(returns) for returns in (1, 2, 3, 20)] == [4, 8, 16, 256]
