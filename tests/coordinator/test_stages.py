"""The two stages that any strategy may add: an anchor on calibration data, and what nodes serve."""

import math
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from coordinator.questions import MeasuredLosses, MeasureLosses, Recall, TrainAnchor, TrainedAnchor, Unanswered
from coordinator.stages import AVERAGE, AnchorStage, ReleaseStage, conclude
from coordinator.updates import AdapterUpdate, Flush, GlobalAdapter, Release, Served
from schemas.adapter import Adapter, weighted_sum

MakeAdapter = Callable[..., Adapter]
MakeUpdate = Callable[..., AdapterUpdate]
MakeFlush = Callable[..., Flush]

FOLDS = {"anchor": 4, "gate": 8}
NOBODY = Recall(())  # answers nothing: whoever asks it fails
GATED = ReleaseStage(choose="gated")


def anchored(delta: Adapter, before: float = 2.5, after: float = 1.5) -> Recall:
    return Recall((TrainedAnchor(delta, before, after, 0),))


def measured(before: float, head: float, average: float) -> Recall:
    return Recall((MeasuredLosses((before, head, average), 0),))


# --- the anchor ---


@pytest.mark.parametrize(
    ("updates", "votes", "share"), [(1, 1.0, 1 / 2), (3, 1.0, 1 / 4), (3, 2.0, 2 / 5), (4, 0.5, 1 / 9)]
)
def test_the_anchor_counts_as_so_many_of_the_updates(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush, updates: int, votes: float, share: float
) -> None:
    given = flush(GlobalAdapter(2, adapter(7)), *(update(f"n{i}", 1, 2) for i in range(updates)), folds=FOLDS)
    moved, report = AnchorStage(votes=votes).step(given, adapter(10), anchored(adapter(1)))
    assert moved.values == pytest.approx([(1 - share) * 10 + share * 1] * 2)
    assert report is not None
    assert report.weight == pytest.approx(share)
    assert (report.loss_before, report.loss_after) == (2.5, 1.5)


def test_the_anchor_starts_from_the_head_with_a_seed_of_its_version(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    given = flush(GlobalAdapter(5, adapter(7)), update("a", 1, 5), folds=FOLDS, served=Served(3, "average", adapter(9)))
    with pytest.raises(Unanswered) as asked:
        AnchorStage().step(given, adapter(1), NOBODY)
    assert asked.value.question == TrainAnchor(adapter(7), seed=5)


@pytest.mark.parametrize("folds", [{}, {"anchor": 0, "gate": 8}, {"gate": 8}])
def test_without_an_anchor_fold_there_is_no_question_and_no_anchor(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush, folds: dict[str, int]
) -> None:
    given = flush(GlobalAdapter(0, adapter(0)), update("a", 1), folds=folds)
    assert AnchorStage().step(given, adapter(3), NOBODY) == (adapter(3), None)


def test_an_anchor_whose_loss_was_infinite_says_so_without_a_number(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    given = flush(GlobalAdapter(0, adapter(0)), update("a", 1), folds=FOLDS)
    _, report = AnchorStage().step(given, adapter(0), anchored(adapter(0), before=math.inf, after=math.nan))
    assert report is not None
    assert (report.loss_before, report.loss_after) == (None, None)


@pytest.mark.parametrize("votes", [0, -1, 101, math.inf, math.nan])
def test_an_anchor_has_some_votes_and_not_all_of_them(votes: float) -> None:
    with pytest.raises(ValidationError):
        AnchorStage(votes=votes)


# --- what is served ---


def test_to_serve_the_head_asks_nothing_and_remembers_nothing(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    given = flush(GlobalAdapter(0, adapter(0)), update("a", 1), folds=FOLDS)
    decision = ReleaseStage(choose="head").decide(given, adapter(5), NOBODY)
    assert (decision.release, decision.average, decision.memory) == (Release("head"), None, {})


def test_the_running_average_begins_with_the_first_head_and_keeps_more_from_version_to_version(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    stage, memory, average = ReleaseStage(choose="average", decay=0.6), {}, adapter(8)
    heads = [adapter(value) for value in (8, 1, 2, 4, 16, 3)]
    for version, kept in enumerate((2 / 5, 3 / 6, 4 / 7, 0.6, 0.6)):  # (1 + t) / (4 + t) of version t, 0.6 at most
        given = flush(GlobalAdapter(version, heads[version]), update("a", 1, version), memory=memory)
        decision = stage.decide(given, heads[version + 1], NOBODY)
        average = weighted_sum([average, heads[version + 1]], [kept, 1 - kept])
        assert decision.average == average
        assert decision.release == Release("average")
        memory = decision.memory
    assert memory == {AVERAGE: average}


def test_with_decay_zero_the_average_is_the_head(update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush) -> None:
    given = flush(GlobalAdapter(3, adapter(1)), update("a", 1, 3), memory={AVERAGE: adapter(100)})
    assert ReleaseStage(choose="average", decay=0).decide(given, adapter(5), NOBODY).average == adapter(5)


@pytest.mark.parametrize("folds", [{}, {"anchor": 4, "gate": 0}, {"anchor": 4}])
def test_without_a_gate_fold_there_is_no_question_and_the_average_is_served(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush, folds: dict[str, int]
) -> None:
    given = flush(GlobalAdapter(0, adapter(0)), update("a", 1), folds=folds)
    decision = GATED.decide(given, adapter(5), NOBODY)
    assert (decision.release, decision.average) == (Release("average"), adapter(3))


def test_the_gate_measures_what_is_served_the_head_and_the_average(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    memory = {AVERAGE: adapter(10)}
    served = Served(2, "average", adapter(9))
    given = flush(GlobalAdapter(5, adapter(1)), update("a", 1, 5), folds=FOLDS, served=served, memory=memory)
    with pytest.raises(Unanswered) as asked:
        GATED.decide(given, adapter(5), NOBODY)
    assert asked.value.question == MeasureLosses("gate", (adapter(9), adapter(5), adapter(0.6 * 10 + 0.4 * 5)))


@pytest.mark.parametrize(
    ("before", "head", "average", "choice"),
    [
        (3.0, 2.0, 1.0, "average"),
        (3.0, 1.0, 2.0, "head"),
        (1.0, 2.0, 3.0, "before"),
        (1.0, 1.0, 1.0, "average"),
        (1.0, 1.0, 2.0, "head"),
        (1.0, 2.0, 1.0, "average"),
        (2.0, 1.0, 1.0, "average"),
        (3.0, math.inf, math.inf, "before"),
        (math.inf, 3.0, math.inf, "head"),
        (math.inf, 3.0, math.nan, "head"),
        (math.inf, math.inf, 3.0, "average"),
        (math.nan, math.inf, math.inf, "average"),
        (0.0, 1e-300, math.inf, "before"),
    ],
)
def test_the_gate_serves_the_smallest_loss_the_newest_among_equals_and_nothing_infinite(
    update: MakeUpdate,
    adapter: MakeAdapter,
    flush: MakeFlush,
    before: float,
    head: float,
    average: float,
    choice: str,
) -> None:
    given = flush(GlobalAdapter(0, adapter(0)), update("a", 1), folds=FOLDS)
    decision = GATED.decide(given, adapter(5), measured(before, head, average))
    assert decision.release.choice == choice
    said = (decision.release.before, decision.release.head, decision.release.average)
    assert said == tuple(loss if math.isfinite(loss) else None for loss in (before, head, average))


@pytest.mark.parametrize("losses", [(1.0, 2.0, 3.0), (3.0, 1.0, 2.0), (3.0, 2.0, 1.0)])
def test_the_average_goes_on_whatever_is_served(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush, losses: tuple[float, float, float]
) -> None:
    given = flush(GlobalAdapter(0, adapter(0)), update("a", 1), folds=FOLDS)
    assert GATED.decide(given, adapter(5), measured(*losses)).memory == {AVERAGE: adapter(3)}


# --- both, after a mean delta ---


def test_the_step_goes_along_the_anchored_mean_and_the_weights_are_absolute(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    given = flush(GlobalAdapter(0, adapter(1)), update("a", 2), update("b", 6), update("c", 1), folds=FOLDS)
    weights = (1 / 3, 1 / 6, 0)
    aggregate = conclude(
        given,
        adapter(2 / 3 + 1),
        weights,
        anchored(adapter(3)),
        step=2,
        anchor=AnchorStage(votes=1),
        release=ReleaseStage(),
    )
    assert aggregate.weights == pytest.approx((2 * 3 / 4 / 3, 2 * 3 / 4 / 6, 0))
    assert aggregate.anchor is not None
    assert aggregate.anchor.weight == pytest.approx(2 / 4)
    parts = [(2, aggregate.weights[0]), (6, aggregate.weights[1]), (3, aggregate.anchor.weight)]
    assert aggregate.adapter.values == pytest.approx([1 + sum(delta * weight for delta, weight in parts)] * 2)


def test_the_gate_measures_the_anchored_head(update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush) -> None:
    given = flush(GlobalAdapter(0, adapter(0)), update("a", 2), folds=FOLDS)
    with pytest.raises(Unanswered) as asked:
        conclude(given, adapter(2), [1.0], anchored(adapter(8)), step=1, anchor=AnchorStage(), release=GATED)
    assert asked.value.question == MeasureLosses("gate", (adapter(0), adapter(5), adapter(3)))
