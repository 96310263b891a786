"""Each strategy's arithmetic, worked by hand on adapters of two parameters."""

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import get_args

import pytest
from pydantic import TypeAdapter

import coordinator.strategies
from coordinator.questions import (
    AlignDeltas,
    AlignedDeltas,
    Answer,
    Recall,
    Unanswered,
)
from coordinator.stages import AnchorStage, ReleaseStage
from coordinator.strategies import (
    AlignFed,
    CalibrationOnly,
    FedAsync,
    FedAvg,
    FedBuff,
    FedEx,
    FedSALora,
    FFALora,
    FLoRA,
    Strategy,
)
from coordinator.updates import AdapterUpdate, Aggregate, AnchorUpdate, Buffer, Flush, GlobalAdapter
from schemas.adapter import Adapter, weighted_sum

MakeUpdate = Callable[..., AdapterUpdate]
MakeAdapter = Callable[..., Adapter]
MakeFlush = Callable[..., Flush]

STRATEGIES = get_args(get_args(Strategy)[0])


def buffer_of(*updates: AdapterUpdate) -> Buffer:
    buffer = Buffer()
    for update in updates:
        buffer = buffer.with_update(update)
    return buffer


def made(strategy: Strategy, flush: Flush, *answers: Answer) -> Aggregate:
    """What the strategy makes when the base model answers so; it may ask nothing more."""
    return strategy.aggregate(flush, Recall(answers))


def alike(deltas: tuple[Adapter, ...]) -> AlignedDeltas:
    return AlignedDeltas(deltas, residual_before=2.0, residual_after=1.0, seconds=0)


# --- buffers ---


def test_a_buffer_groups_its_updates_by_base_version_oldest_first(update: MakeUpdate) -> None:
    buffer = buffer_of(update("b", 1, base_version=4), update("a", 1, base_version=2), update("a", 1, base_version=4))
    grouped = [(group.base_version, [u.node for u in group.updates]) for group in buffer.groups]
    assert grouped == [(2, ["a"]), (4, ["a", "b"])]


def test_a_weighted_sum_needs_a_weight_for_every_delta(adapter: MakeAdapter) -> None:
    with pytest.raises(ValueError, match="zip"):
        weighted_sum([adapter(1), adapter(2)], [1.0])


# --- FedBuff ---


def test_fedbuff_takes_a_step_along_the_mean_of_fresh_deltas(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    aggregate = made(FedBuff(step=2), flush(GlobalAdapter(0, adapter(10)), update("a", 1), update("b", 3)))
    assert aggregate.adapter == adapter(10 + 2 * (1 + 3) / 2)
    assert aggregate.weights == (1, 1)


def test_fedbuff_discounts_a_stale_delta_without_enlarging_the_others(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    stale, fresh = update("slow", 8, base_version=0), update("fast", 2, base_version=3)
    aggregate = made(FedBuff(staleness_exponent=0.5), flush(GlobalAdapter(3, adapter(0)), fresh, stale))
    assert aggregate.weights == (0.25, 0.5)  # (1 + 3)^-0.5 / 2 and 1 / 2: absolute, they do not sum to one
    assert aggregate.adapter == adapter(8 * 0.25 + 2 * 0.5)


def test_a_buffer_of_equally_stale_updates_is_discounted_as_a_whole(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    aggregate = made(FedBuff(), flush(GlobalAdapter(3, adapter(0)), update("a", 4), update("b", 4)))
    assert aggregate.adapter == adapter(2)


def test_fedbuff_with_an_anchor_is_its_own_step_with_the_anchor_as_one_more_update(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    anchor = AnchorUpdate(5, adapter(6), 2.5, 1.5, 0)
    given = flush(GlobalAdapter(5, adapter(1)), update("a", 2, 5), update("b", 4, 5), anchor=anchor)
    aggregate = made(FedBuff(step=3, anchor=AnchorStage()), given)
    assert aggregate.adapter == adapter(1 + 3 * (2 + 4 + 6) / 3)
    assert aggregate.weights == pytest.approx((1, 1))  # 3 / 3, and 3 / 3 for the anchor
    assert aggregate.anchor is not None
    assert aggregate.anchor.weight == pytest.approx(1)
    assert (aggregate.anchor.loss_before, aggregate.anchor.loss_after) == (2.5, 1.5)


# --- FedAvg ---


def test_fedavg_weighs_by_examples_and_its_weights_sum_to_one(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    updates = update("a", 1, examples=1), update("b", 5, examples=3)
    aggregate = made(FedAvg(), flush(GlobalAdapter(0, adapter(0)), *updates))
    assert aggregate.weights == (0.25, 0.75)
    assert aggregate.adapter == adapter(4)


def test_fedavg_takes_a_step_of_its_own_length(update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush) -> None:
    aggregate = made(FedAvg(step=2), flush(GlobalAdapter(0, adapter(1)), update("a", 1), update("b", 3)))
    assert aggregate.adapter == adapter(1 + 2 * 2)
    assert aggregate.weights == (1, 1)


def test_fedavg_waits_for_distinct_nodes_not_for_many_updates(update: MakeUpdate) -> None:
    strategy = FedAvg(nodes_per_round=2)
    eager = buffer_of(update("a", 1), update("a", 1, sequence=1))
    assert not strategy.is_ready(eager)
    assert strategy.is_ready(eager.with_update(update("b", 1)))


# --- FedAsync ---


def test_fedasync_mixes_in_the_node_s_whole_adapter(update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush) -> None:
    head, bases = GlobalAdapter(1, adapter(4)), {0: adapter(2), 1: adapter(4)}
    stale = update("a", 6, base_version=0)
    aggregate = made(FedAsync(mixing=0.5, staleness_exponent=1), flush(head, stale, bases=bases))
    assert aggregate.weights == (0.25,)
    assert aggregate.adapter == adapter(0.75 * 4 + 0.25 * (2 + 6))


# --- one factor alone ---


def test_ffa_lora_takes_b_alone_whatever_a_node_says_of_a(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    head = GlobalAdapter(0, adapter(1, 1))
    aggregate = made(FFALora(step=2), flush(head, update("a", adapter(9, 2)), update("b", adapter(-7, 4))))
    assert aggregate.adapter == adapter(1, 1 + 2 * 3)
    assert (FFALora.trained_factors, FFALora.shared_factors) == ("B", "B")


def test_fedsa_lora_takes_a_alone_though_nodes_train_both(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    head = GlobalAdapter(3, adapter(1, 0))
    updates = update("a", adapter(8, 2), base_version=0), update("b", adapter(2, 4), base_version=3)
    aggregate = made(FedSALora(), flush(head, *updates))
    assert aggregate.adapter == adapter(1 + 8 / 4 + 2 / 2, 0)
    assert aggregate.weights == (0.25, 0.5)
    assert (FedSALora.trained_factors, FedSALora.shared_factors) == ("both", "A")


# --- FedEx ---


def product(adapter: Adapter) -> float:
    """B times A, without the scale."""
    a, b = map(float, adapter.values)
    return b * a


def test_fedex_goes_to_the_mean_of_the_products_where_the_mean_of_the_factors_is_another(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    head = GlobalAdapter(0, adapter(1, 0))
    given = flush(head, update("a", adapter(1, 1)), update("b", adapter(0, 0)), bases={0: head.adapter})
    products = 2 * 1 / 2 + 1 * 0 / 2
    factors = (2 + 1) / 2 * (1 + 0) / 2
    assert factors == 0.75 and products == 1
    assert product(made(FedBuff(), given).adapter) == factors
    assert product(made(FedEx(ridge=1e-6), given).adapter) == pytest.approx(products, abs=1e-3)
    pulled = product(made(FedEx(ridge=0.1), given).adapter)
    assert factors < pulled < products


def test_fedex_adds_what_a_stale_delta_did_to_the_products_of_its_base(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    base, head = adapter(1, 1), GlobalAdapter(1, adapter(2, 3))
    given = flush(head, update("a", adapter(1, 1), base_version=0), bases={0: base, 1: head.adapter})
    aggregate = made(FedEx(ridge=1e-6, staleness_exponent=0), given)
    assert product(aggregate.adapter) == pytest.approx(2 * 3 + (2 * 2 - 1 * 1), abs=1e-3)


# --- FLoRA ---


def test_flora_s_head_has_the_sum_of_the_weighted_products(
    update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    base, head = adapter(1, 1), GlobalAdapter(1, adapter(2, 3))
    updates = update("a", adapter(1, 1), base_version=0), update("b", adapter(0, 4), base_version=1)
    aggregate = made(FLoRA(staleness_exponent=1), flush(head, *updates, bases={0: base, 1: head.adapter}))
    assert aggregate.weights == (1 / 4, 1 / 2)
    assert product(aggregate.adapter) == pytest.approx(2 * 3 + (2 * 2 - 1 * 1) / 4 + (2 * 7 - 2 * 3) / 2)


# --- the control ---


def test_calibration_only_ignores_what_nodes_send(update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush) -> None:
    head, strategy = GlobalAdapter(7, adapter(1)), CalibrationOnly(step=2)
    for delta in (0, 5, -1000):
        sent = update("a", delta, 7), update("b", delta, 7)
        aggregate = made(strategy, flush(head, *sent, anchor=AnchorUpdate(7, adapter(3), 2.0, 1.0, 0)))
        assert aggregate.adapter == adapter(1 + 2 * 3)
        assert aggregate.weights == (0, 0)
        assert aggregate.anchor is not None and aggregate.anchor.weight == 2
        assert made(strategy, flush(head, *sent)).adapter == adapter(1)


# --- all of them ---


def answered(strategy: Strategy, flush: Flush) -> Aggregate:
    """What the strategy makes with a model that moves every delta by its base."""
    answers: list[Answer] = []
    while True:
        try:
            return strategy.aggregate(flush, Recall(tuple(answers)))
        except Unanswered as unanswered:
            match unanswered.question:
                case AlignDeltas(_, base, _, deltas):
                    answers.append(alike(tuple(delta + base for delta in deltas)))


EVERY_STAGE = {"anchor": AnchorStage(), "release": ReleaseStage(choose="gated")}
CASES = [
    *(strategy() for strategy in STRATEGIES),
    AlignFed(align="semantic", buffer_size=4),
    AlignFed(align="transplant", preset="unlabelled"),
    FedBuff.model_validate(EVERY_STAGE),
    FedAvg.model_validate(EVERY_STAGE),
    FedAsync(release=ReleaseStage(choose="gated")),
]


def name_of(strategy: Strategy) -> str:
    return strategy.name


@pytest.mark.parametrize("strategy", CASES, ids=name_of)
def test_the_order_of_arrival_changes_no_bit(
    strategy: Strategy, update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    updates = [update("a", 0.1), update("a", 0.7, sequence=1), update("b", 1 / 3, base_version=1), update("c", 1e-7)]
    parts = {
        "bases": {0: adapter(0.2), 1: adapter(0.3)},
        "participation": {"a": 2, "b": 5, "c": 1},
        "folds": {"anchor": 4, "gate": 8},
        "anchor": AnchorUpdate(0, adapter(0.7), 2.0, 1.0, 0),
    }
    head = GlobalAdapter(1, adapter(0.3))
    made = [answered(strategy, flush(head, **parts, buffer=buffer_of(*order))) for order in permutations(updates)]
    assert len({(aggregate.adapter.digest, aggregate.weights) for aggregate in made}) == 1


@pytest.mark.parametrize("strategy", CASES, ids=name_of)
def test_every_update_has_its_weight_whatever_the_strategy(
    strategy: Strategy, update: MakeUpdate, adapter: MakeAdapter, flush: MakeFlush
) -> None:
    updates = update("a", 1, 0), update("b", 2, 1), update("c", 3, 1)
    bases = {0: adapter(1), 1: adapter(2)}
    anchor = AnchorUpdate(1, adapter(3), 2.0, 1.0, 0)
    parts = {"bases": bases, "folds": {"anchor": 4, "gate": 8}, "anchor": anchor}
    aggregate = answered(strategy, flush(GlobalAdapter(1, adapter(2)), *updates, **parts))
    assert len(aggregate.weights) == len(updates)
    assert all(weight >= 0 for weight in aggregate.weights)
    assert aggregate.adapter.is_finite


@pytest.mark.parametrize("strategy", CASES, ids=name_of)
def test_a_strategy_is_read_back_from_its_journal_row(strategy: Strategy) -> None:
    assert TypeAdapter(Strategy).validate_json(strategy.model_dump_json()) == strategy


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda kind: kind.__name__)
def test_a_strategy_says_all_that_the_core_asks_of_it(strategy: type[Strategy]) -> None:
    facts = strategy()
    assert facts.timeout_s is None or facts.timeout_s > 0
    assert facts.max_staleness >= 0
    assert isinstance(facts.one_update_per_version, bool)
    assert isinstance(facts.needs_base_adapters, bool)
    assert facts.trained_factors in ("both", "A", "B")
    assert facts.shared_factors in ("both", "A", "B")
    assert facts.anchor is None or isinstance(facts.anchor, AnchorStage)
    assert isinstance(facts.release, ReleaseStage)
    assert not facts.is_ready(Buffer())


FILES = sorted(Path(coordinator.strategies.__file__).parent.glob("*.py"))
BASELINES = [path for path in FILES if path.stem not in ("__init__", "alignfed", "buffer_of_k")]


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_a_published_method_takes_less_than_fifty_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 50


def test_every_strategy_has_a_file_of_its_name() -> None:
    assert {kind.model_fields["name"].default for kind in STRATEGIES} <= {path.stem for path in FILES}
