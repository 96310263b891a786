"""AlignFed's arithmetic, as read literally and as we build it, worked by hand on adapters of two parameters."""

import math
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from coordinator.questions import (
    AlignDeltas,
    AlignedDeltas,
    Answer,
    Recall,
    Unanswered,
)
from coordinator.stages import AnchorStage, ReleaseStage
from coordinator.strategies import AlignFed, AlignFedLiteral, FedBuff, Strategy
from coordinator.trust.robust import HeadGuard, Standing, TrustStage, size_of
from coordinator.updates import AdapterUpdate, Aggregate, AnchorUpdate, Flush, GlobalAdapter
from schemas.adapter import Adapter

MakeUpdate = Callable[..., AdapterUpdate]
MakeAdapter = Callable[..., Adapter]
MakeFlush = Callable[..., Flush]

PLAIN = AlignFed(
    step=1,
    staleness_exponent=0.5,
    participation=False,
    norm_limit=None,
    largest_share=None,
    trust=None,
    anchor=None,
    release=ReleaseStage(),
)  # every stage off


def made(strategy: Strategy, flush: Flush, *answers: Answer) -> Aggregate:
    """What the strategy makes when the base model answers so; it may ask nothing more."""
    return strategy.aggregate(flush, Recall(answers))


def asked(strategy: Strategy, flush: Flush, *answers: Answer) -> object:
    """What the strategy asks after these answers."""
    with pytest.raises(Unanswered) as caught:
        strategy.aggregate(flush, Recall(answers))
    return caught.value.question


def alike(deltas: tuple[Adapter, ...]) -> AlignedDeltas:
    return AlignedDeltas(deltas, residual_before=2.0, residual_after=1.0, seconds=0)


def product(adapter: Adapter) -> float:
    """B times A, without the scale."""
    a, b = map(float, adapter.values)
    return b * a


# --- AlignFed, read literally ---


def test_the_literal_reading_makes_no_progress_from_a_group_of_one(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    head = GlobalAdapter(1, adapter(2))
    given = flush(head, update("a", 6, 0), update("b", 6, 1), bases={0: adapter(1), 1: adapter(2)})
    aggregate = made(AlignFedLiteral(), given)
    assert aggregate.adapter == head.adapter
    assert sum(aggregate.weights) == pytest.approx(1)


def test_the_literal_reading_makes_no_progress_from_equally_weighted_deltas(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    head = GlobalAdapter(0, adapter(2))
    given = flush(head, update("a", 5), update("b", 7), bases={0: adapter(2)}, participation={"a": 3, "b": 3})
    aggregate = made(AlignFedLiteral(), given)
    assert aggregate.weights == pytest.approx((0.5, 0.5))
    assert aggregate.adapter == head.adapter


def test_the_literal_reading_moves_towards_the_node_that_was_heard_less(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    given = flush(
        GlobalAdapter(0, adapter(0)),
        *(update("a", 5), update("b", 7)),
        bases={0: adapter(0)},
        participation={"a": 3, "b": 8},
    )
    aggregate = made(AlignFedLiteral(), given)
    # 1 / sqrt(4) and 1 / sqrt(9), over their sum; the deltas less their mean are -1 and 1
    assert aggregate.weights == pytest.approx((0.6, 0.4))
    assert aggregate.adapter.values == pytest.approx([-0.2, -0.2])


def test_the_literal_reading_asks_for_maps_of_the_centred_deltas_of_a_stale_group(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    bases = {0: adapter(1), 1: adapter(2)}
    updates = update("a", 5, 0), update("b", 7, 0), update("c", 9, 1)
    given = flush(GlobalAdapter(1, adapter(2)), *updates, bases=bases, folds={"anchor": 4})
    strategy = AlignFedLiteral(gamma=0)
    centred = adapter(-1), adapter(1)
    assert asked(strategy, given) == AlignDeltas("literal", adapter(1), adapter(2), centred)
    mapped = made(strategy, given, alike((adapter(2), adapter(4))))
    # equal uploads: the weights are as 1/|-1| to 1/|1|, and c's delta is nothing with nearly all of the weight
    assert mapped.weights[0] == mapped.weights[1] < 1e-6
    assert mapped.weights[2] == pytest.approx(1)
    assert (mapped.adapter - adapter(2)).values == pytest.approx([0, 0], abs=1e-6)


def test_without_an_anchor_fold_the_literal_reading_aligns_nothing(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    bases = {0: adapter(1), 1: adapter(2)}
    updates = update("a", 5, 0), update("b", 7, 0)
    given = flush(GlobalAdapter(1, adapter(2)), *updates, bases=bases, participation={"a": 3, "b": 8})
    assert made(AlignFedLiteral(), given).adapter.values == pytest.approx([1.8, 1.8])


# --- AlignFed ---


def test_alignfed_with_every_stage_off_is_fedbuff(update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush) -> None:
    given = flush(
        GlobalAdapter(3, adapter(1)),
        *(update("a", 8, 0), update("b", 2, 3), update("b", 5, 3, sequence=1)),
        participation={"a": 1, "b": 9},
        folds={"anchor": 4, "gate": 8},
    )
    ours, theirs = made(PLAIN, given), made(FedBuff(), given)
    assert ours.adapter == theirs.adapter
    assert ours.weights == theirs.weights


def test_alignfed_weighs_a_node_more_that_was_heard_less(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    strategy = PLAIN.model_copy(update={"participation": True})
    heard = {"a": 1, "b": 31, "c": 1, "d": 1, "e": 1}  # 7 on average
    given = flush(GlobalAdapter(0, adapter(0)), update("a", 1), update("b", 8), participation=heard)
    aggregate = made(strategy, given)
    assert aggregate.weights == (2 / 2, 0.5 / 2)  # sqrt(8 / 2) and sqrt(8 / 32), over two updates
    assert aggregate.adapter == adapter(1 + 8 / 4)


def test_alignfed_shortens_a_delta_that_is_much_longer_than_what_the_fleet_sends(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    strategy = PLAIN.model_copy(update={"norm_limit": 2.0})
    # on a large head what a delta does to products is linear, as its norm is
    given = flush(GlobalAdapter(0, adapter(1e6)), update("a", 1), update("b", 1), update("c", 8))
    aggregate = made(strategy, given)
    assert aggregate.weights == pytest.approx((1 / 3, 1 / 3, 1 / 3 * 1 / 8), rel=1e-4)
    assert aggregate.adapter.values == pytest.approx([1e6 + 1, 1e6 + 1])


def test_alignfed_remembers_what_the_fleet_sends_when_a_buffer_is_one_long_delta(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    strategy = PLAIN.model_copy(update={"norm_limit": 2.0})
    head = GlobalAdapter(0, adapter(1e6))
    standings = {node: Standing(size_of(head.adapter, adapter(1))) for node in "abd"}
    assert made(strategy, flush(head, update("c", 8), standings=standings)).weights == pytest.approx((1 / 8,), rel=1e-4)
    assert made(strategy, flush(head, update("c", 8))).weights == (1,)


def test_alignfed_gives_no_node_more_than_its_share(update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush) -> None:
    strategy = PLAIN.model_copy(update={"largest_share": 0.5})
    eager = [update("a", 3, sequence=sequence) for sequence in range(3)]
    aggregate = made(strategy, flush(GlobalAdapter(0, adapter(0)), *eager, update("b", 8)))
    assert aggregate.weights == pytest.approx((1 / 12, 1 / 12, 1 / 12, 1 / 4))
    assert aggregate.adapter.values == pytest.approx([3 / 4 + 8 / 4] * 2)


def test_alignfed_transplants_what_a_stale_delta_did_at_its_base_and_leaves_fresh_ones(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    strategy = PLAIN.model_copy(update={"align": "transplant", "ridge": 1e-6, "staleness_exponent": 0.0})
    base, head = adapter(1, 0), adapter(2, 1)
    bases = {0: base, 1: head}
    stale = made(strategy, flush(GlobalAdapter(1, head), update("a", adapter(0, 3), 0), bases=bases))
    assert product(stale.adapter) == pytest.approx(2 * 1 + 1 * 3, abs=1e-3)  # the plain sum's product would be 8
    fresh = made(strategy, flush(GlobalAdapter(1, head), update("a", adapter(0, 3), 1), bases=bases))
    assert fresh.adapter == adapter(2, 4)


def test_alignfed_asks_to_align_each_stale_group_and_no_fresh_one(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    strategy = PLAIN.model_copy(update={"align": "semantic", "staleness_exponent": 0.0})
    bases = {0: adapter(10), 1: adapter(20), 2: adapter(30)}
    updates = update("a", 1, 0), update("b", 2, 1), update("c", 4, 1), update("d", 8, 2)
    given = flush(GlobalAdapter(2, adapter(30)), *updates, bases=bases, folds={"anchor": 4})
    oldest, older = alike((adapter(100),)), alike((adapter(200), adapter(400)))
    assert asked(strategy, given) == AlignDeltas("semantic", adapter(10), adapter(30), (adapter(1),))
    assert asked(strategy, given, oldest) == AlignDeltas("semantic", adapter(20), adapter(30), (adapter(2), adapter(4)))
    aggregate = made(strategy, given, oldest, older)
    assert aggregate.adapter == adapter(30 + (100 + 200 + 400 + 8) / 4)
    assert [(group.base_version, group.updates) for group in aggregate.groups] == [(0, 1), (1, 2), (2, 1)]
    assert [group.residual_after for group in aggregate.groups] == [1.0, 1.0, None]


@pytest.mark.parametrize("after", [2.0, 3.0, math.inf])
def test_alignfed_keeps_the_plain_deltas_where_alignment_makes_nothing_better(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush, after: float
) -> None:
    strategy = PLAIN.model_copy(update={"align": "semantic", "staleness_exponent": 0.0})
    bases = {0: adapter(10), 1: adapter(20)}
    given = flush(GlobalAdapter(1, adapter(20)), update("a", 1, 0), bases=bases, folds={"anchor": 4})
    worse = AlignedDeltas((adapter(100),), residual_before=2.0, residual_after=after, seconds=0)
    assert made(strategy, given, worse).adapter == adapter(21)


def test_alignfed_without_an_anchor_fold_asks_for_no_alignment(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    strategy = PLAIN.model_copy(update={"align": "semantic", "staleness_exponent": 0.0})
    given = flush(GlobalAdapter(1, adapter(20)), update("a", 1, 0), bases={0: adapter(10), 1: adapter(20)})
    assert made(strategy, given).adapter == adapter(21)


def test_alignfed_reports_how_far_a_group_agrees(update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush) -> None:
    updates = update("a", adapter(1, 0), 0), update("b", adapter(0, 1), 0), update("c", 1, 1)
    aggregate = made(PLAIN, flush(GlobalAdapter(1, adapter(0)), *updates))
    apart, alone = aggregate.groups
    assert apart.cosine == pytest.approx(math.sqrt(0.5))
    assert alone.cosine is None


def test_alignfed_as_it_comes_steps_twice_as_far_with_its_anchor_and_asks_nothing(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    anchor = AnchorUpdate(0, adapter(6), 2.0, 1.0, 0)
    given = flush(GlobalAdapter(0, adapter(1)), update("a", 3), update("b", 3), anchor=anchor)
    aggregate = made(AlignFed(), given)
    assert aggregate.adapter == adapter(1 + 2 * (3 + 3 + 6) / 3)
    assert aggregate.weights == pytest.approx((2 / 3, 2 / 3))
    assert aggregate.anchor is not None and aggregate.anchor.weight == pytest.approx(2 / 3)
    assert aggregate.groups[0].cosine == pytest.approx(1)


def test_the_presets_of_alignfed_are_defaults_that_any_setting_overrides() -> None:
    fast, patient, unlabelled = (AlignFed(preset=preset) for preset in ("fast", "patient", "unlabelled"))
    assert (fast.wait, fast.anchor, fast.release.choose) == (False, AnchorStage(), "gated")
    assert (patient.wait, patient.anchor, patient.release.choose) == (True, AnchorStage(), "gated")
    assert (unlabelled.wait, unlabelled.anchor, unlabelled.release.choose) == (False, None, "average")
    assert AlignFed(preset="patient", wait=False).wait is False
    assert AlignFed(preset="unlabelled", anchor=AnchorStage(votes=2)).anchor == AnchorStage(votes=2)
    with pytest.raises(ValidationError, match="preset"):
        AlignFed.model_validate({"preset": "cautious"})


def test_a_preset_that_is_not_even_a_name_is_refused_like_any_other() -> None:
    with pytest.raises(ValidationError, match="preset"):
        AlignFed.model_validate({"preset": ["fast"]})


def test_only_a_patient_alignfed_makes_nodes_wait_and_only_an_aligning_one_looks_back() -> None:
    assert [AlignFed(preset=preset).one_update_per_version for preset in ("fast", "patient")] == [False, True]
    assert [AlignFed(align=align).needs_base_adapters for align in ("none", "transplant", "semantic")] == [
        False,
        True,
        True,
    ]


def test_a_huge_delta_is_shortened_and_takes_no_weight_from_the_others(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    strategy = PLAIN.model_copy(update={"norm_limit": 1.0, "largest_share": 0.5})
    given = flush(GlobalAdapter(0, adapter(1e6)), update("a", 1), update("m", -1000))
    assert made(strategy, given).weights == pytest.approx((1 / 2, 1 / 2 / 1000), rel=1e-3)


def test_alignfed_measures_a_stale_update_against_the_anchor_of_its_own_base_version(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    strategy = PLAIN.model_copy(update={"trust": TrustStage(after=1)})
    anchors = {0: adapter(1, 0), 1: adapter(-1, 0)}
    updates = update("a", adapter(3, 0), 0), update("c", adapter(3, 0), 0), update("b", adapter(3, 0), 1)
    aggregate = made(strategy, flush(GlobalAdapter(1, adapter(1)), *updates, anchors=anchors))
    assert aggregate.distrusted == {updates[2].update_id}
    assert [one.cosine for one in aggregate.measured] == pytest.approx([1, 1, -1])
    assert aggregate.weights[1] > 0 and aggregate.weights[2] == 0


def test_only_a_trusting_alignfed_with_an_anchor_keeps_anchors() -> None:
    assert AlignFed().kept_anchors == 16
    assert AlignFed(trust=None).kept_anchors == AlignFed(anchor=None).kept_anchors == 0


def test_the_gated_presets_guard_the_head_and_half_a_release_keeps_the_guard() -> None:
    assert AlignFed().release.guard == AlignFed(preset="patient").release.guard == HeadGuard()
    assert AlignFed.model_validate({"release": {"decay": 0.5}}).release.guard == HeadGuard()
    assert AlignFed(preset="unlabelled").release.guard is None
