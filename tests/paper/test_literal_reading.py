"""Why equations (5), (7) and (8), read literally, cannot learn: what the nodes agree on is subtracted."""

from collections.abc import Callable, Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given

from coordinator.equations import apply_maps, centre, literal_weights, server_step
from schemas.adapter import Adapter

MakeAdapter = Callable[..., Adapter]

WHOLE = st.integers(-1000, 1000)
DELTAS = st.lists(st.tuples(WHOLE, WHOLE, WHOLE), min_size=1, max_size=5)


def literal_step(head: Adapter, groups: Sequence[Sequence[Adapter]], weights: Sequence[float]) -> Adapter:
    """Equations (5) and (8): one group for each base version, the weights in the order of the updates."""
    return server_step(head, [residual for group in groups for residual in centre(group)], weights)


def test_updates_of_different_base_versions_change_nothing_at_all(adapter: MakeAdapter) -> None:
    head = adapter(1, 2, 3)
    groups = [[adapter(5, 5, 5)], [adapter(-7, 1, 0)], [adapter(0.1, 0.2, 0.3)]]
    assert literal_step(head, groups, [0.5, 0.3, 0.2]) == head


def test_two_updates_of_equal_weight_cancel(adapter: MakeAdapter) -> None:
    head = adapter(1, 2, 3)
    assert literal_step(head, [[adapter(5, 1, 2), adapter(3, 9, 4)]], [0.5, 0.5]) == head


def test_two_nodes_that_both_went_up_take_the_model_down(adapter: MakeAdapter) -> None:
    # deltas 1 and 3, mean 2, residuals -1 and +1; by (7) with norms 1 and 3 they weigh 3/4 and 1/4
    weights = literal_weights([0, 0], norms=[1, 3], uploads=[0, 0], gamma=0.2, eps=0)
    assert weights == pytest.approx((3 / 4, 1 / 4))
    after = literal_step(adapter(0, 0, 0), [[adapter(1, 0, 0), adapter(3, 0, 0)]], weights)
    assert after.values == pytest.approx([-3 / 4 + 1 / 4, 0, 0])


@given(DELTAS, st.tuples(WHOLE, WHOLE, WHOLE))
def test_what_all_nodes_have_learnt_makes_no_difference(
    adapter: MakeAdapter, own: list[tuple[int, ...]], shared: tuple[int, ...]
) -> None:
    weights = [1.0 + number for number in range(len(own))]
    without = [adapter(*delta) for delta in own]
    together = [adapter(*delta) + adapter(*shared) for delta in own]
    head = adapter(0, 0, 0)
    lost, kept = (literal_step(head, [group], weights).values for group in (together, without))
    assert lost == pytest.approx(kept, abs=1e-2)  # of up to 1000: what float32 residuals are rounded by
    plain = server_step(head, together, weights) - server_step(head, without, weights)
    assert plain.values == pytest.approx([sum(weights) * value for value in shared], rel=1e-5, abs=1e-2)


def test_alignment_cannot_bring_back_what_centring_has_deleted(rank_2: MakeAdapter) -> None:
    (residual,) = centre([rank_2([[1], [2]], [[3, 4]])])
    maps = {"x.lora_A.weight": [[5, 1], [2, 7]], "x.lora_B.weight": [[1, 3], [9, 2]]}
    assert not apply_maps(residual, maps).values.any()
