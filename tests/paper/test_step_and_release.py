"""What we add to equation (8): the server's own delta in the step, and a running average to serve."""

from collections.abc import Callable

import pytest

from coordinator.equations import absolute_weights, anchor_share, anchored_step, ema_decay
from schemas.adapter import Adapter, weighted_sum

MakeAdapter = Callable[..., Adapter]


def test_the_anchor_counts_as_one_more_fresh_update(adapter: MakeAdapter) -> None:
    mean = weighted_sum([adapter(3, 0, 6), adapter(0, 9, 3)], absolute_weights([1, 1], [1, 1]))
    # two fresh updates of weight 1/2 and the anchor: a third each
    assert anchor_share(updates=2) == 1 / 3
    step = anchored_step(mean, adapter(6, 3, 0), anchor_share(updates=2))
    assert step == adapter((3 + 0 + 6) / 3, (0 + 9 + 3) / 3, (6 + 3 + 0) / 3)


def test_an_old_buffer_leaves_the_anchor_its_weight(adapter: MakeAdapter) -> None:
    mean = weighted_sum([adapter(3, 3, 3)] * 2, absolute_weights([0.5, 0.5], [1, 1]))
    # freshness 1/2 and weights 1/4: 2/3 (3/4 + 3/4) + 1/3 6
    assert anchored_step(mean, adapter(6, 6, 6), anchor_share(updates=2)) == adapter(3, 3, 3)


def test_an_anchor_with_more_votes_counts_as_more_updates(adapter: MakeAdapter) -> None:
    assert anchor_share(updates=1, votes=3) == 3 / 4
    assert anchored_step(adapter(4, 0, 0), adapter(0, 8, 0), share=3 / 4) == adapter(1, 6, 0)


def test_an_anchor_without_a_vote_leaves_the_nodes_mean(adapter: MakeAdapter) -> None:
    mean = adapter(0.1, 1 / 3, 7)
    assert anchored_step(mean, adapter(5, 5, 5), anchor_share(updates=4, votes=0)) == mean


def test_an_anchor_that_agrees_with_fresh_nodes_changes_nothing(adapter: MakeAdapter) -> None:
    same = adapter(3, 6, 9)
    assert anchored_step(same, same, anchor_share(updates=2)) == same


@pytest.mark.parametrize(("version", "decay"), [(0, 1 / 4), (1, 2 / 5), (2, 3 / 6), (3, 4 / 7), (4, 0.6), (1000, 0.6)])
def test_the_average_forgets_the_untrained_start_quickly_and_then_keeps_its_limit(version: int, decay: float) -> None:
    assert ema_decay(version, limit=0.6) == decay
