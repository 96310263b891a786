"""The two stages that any strategy may add: an anchor on calibration data, and what nodes serve."""

import math
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from coordinator.questions import MeasuredLosses
from coordinator.stages import AnchorStage, ReleaseStage, conclude, passes_gate
from coordinator.updates import AdapterUpdate, AnchorUpdate, Flush, GlobalAdapter
from schemas.adapter import Adapter, weighted_sum

MakeAdapter = Callable[..., Adapter]
MakeUpdate = Callable[..., AdapterUpdate]
MakeFlush = Callable[..., Flush]


def trained(delta: Adapter, base_version: int, before: float = 2.5, after: float = 1.5) -> AnchorUpdate:
    return AnchorUpdate(base_version, delta, before, after, seconds=0.5)


# --- the anchor ---


@pytest.mark.parametrize(
    ("updates", "votes", "share"), [(1, 1.0, 1 / 2), (3, 1.0, 1 / 4), (3, 2.0, 2 / 5), (4, 0.5, 1 / 9)]
)
def test_a_fresh_anchor_counts_as_so_many_of_the_updates(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush, updates: int, votes: float, share: float
) -> None:
    sent = (update(f"n{i}", 1, 2) for i in range(updates))
    given = flush(GlobalAdapter(2, adapter(7)), *sent, anchor=trained(adapter(1), 2))
    moved, report = AnchorStage(votes=votes).step(given, adapter(10))
    assert moved.values == pytest.approx([(1 - share) * 10 + share * 1] * 2)
    assert report is not None
    assert report.weight == pytest.approx(share)
    assert (report.base_version, report.loss_before, report.loss_after, report.seconds) == (2, 2.5, 1.5, 0.5)


@pytest.mark.parametrize(
    ("base_version", "exponent", "votes"), [(5, 0.5, 1.0), (2, 0.5, 0.5), (2, 0, 1.0), (4, 1, 0.5)]
)
def test_a_stale_anchor_counts_for_less_as_a_stale_update_does(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush, base_version: int, exponent: float, votes: float
) -> None:
    given = flush(GlobalAdapter(5, adapter(7)), update("a", 1, 5), anchor=trained(adapter(1), base_version))
    _, report = AnchorStage(staleness_exponent=exponent).step(given, adapter(10))
    assert report is not None
    assert report.weight == pytest.approx(votes / (1 + votes))
    assert report.base_version == base_version


def test_without_an_anchor_the_mean_is_left_as_it_is(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    given = flush(GlobalAdapter(0, adapter(0)), update("a", 1))
    assert AnchorStage().step(given, adapter(3)) == (adapter(3), None)


def test_an_anchor_whose_loss_was_infinite_says_so_without_a_number(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    diverged = trained(adapter(0), 0, before=math.inf, after=math.nan)
    _, report = AnchorStage().step(flush(GlobalAdapter(0, adapter(0)), update("a", 1), anchor=diverged), adapter(0))
    assert report is not None
    assert (report.loss_before, report.loss_after) == (None, None)


@pytest.mark.parametrize("votes", [0, -1, 101, math.inf, math.nan])
def test_an_anchor_has_some_votes_and_not_all_of_them(votes: float) -> None:
    with pytest.raises(ValidationError):
        AnchorStage(votes=votes)


# --- what is served ---


def test_the_running_average_keeps_more_from_version_to_version(adapter: MakeAdapter) -> None:
    stage, average = ReleaseStage(choose="average", decay=0.6), adapter(8)
    heads = [adapter(value) for value in (1, 2, 4, 16, 3)]
    for version, (head, kept) in enumerate(zip(heads, (2 / 5, 3 / 6, 4 / 7, 0.6, 0.6), strict=True), start=1):
        expected = weighted_sum([average, head], [kept, 1 - kept])
        average = stage.average(average, head, version)
        assert average == expected


def test_with_decay_zero_the_average_is_the_head(adapter: MakeAdapter) -> None:
    assert ReleaseStage(choose="average", decay=0).average(adapter(100), adapter(5), 4) == adapter(5)


@pytest.mark.parametrize(
    ("choose", "folds", "asks"),
    [
        ("gated", {"anchor": 4, "gate": 8}, True),
        ("gated", {"gate": 8}, True),
        ("gated", {"anchor": 4, "gate": 0}, False),
        ("gated", {}, False),
        ("average", {"gate": 8}, False),
        ("head", {"gate": 8}, False),
    ],
)
def test_only_a_gate_with_examples_asks(choose: str, folds: dict[str, int], asks: bool) -> None:
    assert ReleaseStage(choose=choose).asks(folds) == asks


@pytest.mark.parametrize(
    ("before", "candidate", "passes"),
    [
        (3.0, 2.0, True),
        (2.0, 2.0, True),
        (2.0, 2.0001, False),
        (math.inf, 2.0, True),
        (math.nan, 2.0, True),
        (2.0, math.inf, False),
        (2.0, math.nan, False),
        (math.inf, math.inf, False),
        (math.nan, math.nan, False),
        (0.0, 1e-300, False),
    ],
)
def test_the_gate_lets_pass_what_is_no_worse_and_nothing_infinite(
    before: float, candidate: float, passes: bool
) -> None:
    assert passes_gate(MeasuredLosses((before, candidate), 0)) == passes


# --- after a mean delta ---


def test_the_step_goes_along_the_anchored_mean_and_the_weights_are_absolute(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    sent = update("a", 2), update("b", 6), update("c", 1)
    given = flush(GlobalAdapter(0, adapter(1)), *sent, anchor=trained(adapter(3), 0))
    weights = (1 / 3, 1 / 6, 0)
    aggregate = conclude(given, adapter(2 / 3 + 1), weights, step=2, anchor=AnchorStage(votes=1))
    assert aggregate.weights == pytest.approx((2 * 3 / 4 / 3, 2 * 3 / 4 / 6, 0))
    assert aggregate.anchor is not None
    assert aggregate.anchor.weight == pytest.approx(2 / 4)
    parts = [(2, aggregate.weights[0]), (6, aggregate.weights[1]), (3, aggregate.anchor.weight)]
    assert aggregate.adapter.values == pytest.approx([1 + sum(delta * weight for delta, weight in parts)] * 2)


def test_a_strategy_without_the_stage_leaves_an_anchor_alone(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    given = flush(GlobalAdapter(0, adapter(1)), update("a", 2), anchor=trained(adapter(3), 0))
    aggregate = conclude(given, adapter(2), [1.0], step=1, anchor=None)
    assert (aggregate.adapter, aggregate.weights, aggregate.anchor) == (adapter(3), (1.0,), None)
