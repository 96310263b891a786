"""Products of factors, against the same written out in full."""

import tracemalloc
from collections.abc import Mapping

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.products import mean_product, product_distance, reach, reach_at_most, stack, transplant, truncate, widen

Dense = dict[str, NDArray[np.float64]]

SHAPES = {"down": (20, 30), "up": (24, 12)}  # name: (out_features, in_features)
SEEDS = st.integers(0, 2**32 - 1)
SMALL_RIDGE = 1e-9


def layout(rank: int, alpha: int = 16, shapes: Mapping[str, tuple[int, int]] = SHAPES) -> Layout:
    factors = {f"{name}.lora_A.weight": (rank, in_features) for name, (_, in_features) in shapes.items()}
    factors |= {f"{name}.lora_B.weight": (out_features, rank) for name, (out_features, _) in shapes.items()}
    return Layout(lora=LoraConfig(rank=rank, alpha=alpha), tensors=tuple(sorted(factors.items())))


def random_adapter(of: Layout, seed: int, size: float = 1.0) -> Adapter:
    values = size * np.random.default_rng(seed).standard_normal(of.size)
    return Adapter(of, values.astype(np.float32))


def untrained(of: Layout, seed: int) -> Adapter:
    tensors = random_adapter(of, seed).tensors()
    return Adapter.from_tensors(of, {name: value * (".lora_A." in name) for name, value in tensors.items()})


def regauged(adapter: Adapter, seed: int) -> Adapter:
    """(B G, G^-1 A): other factors of the same products."""
    rank, tensors = adapter.layout.lora.rank, {}
    gauge = np.eye(rank) + 0.5 * np.linalg.qr(np.random.default_rng(seed).standard_normal((rank, rank)))[0]
    for name, value in adapter.tensors().items():
        turned = np.linalg.inv(gauge) @ value if ".lora_A." in name else value @ gauge
        tensors[name] = turned.astype(np.float32)
    return Adapter.from_tensors(adapter.layout, tensors)


def dense(adapter: Adapter) -> Dense:
    """alpha/rank B A of every module, in full."""
    tensors, lora = {name: value.astype(np.float64) for name, value in adapter.tensors().items()}, adapter.layout.lora
    return {
        name: lora.alpha / lora.rank * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        for name in SHAPES
    }


def minus(one: Dense, other: Dense) -> Dense:
    return {name: one[name] - other[name] for name in one}


def size(products: Dense) -> float:
    return float(np.sqrt(sum(np.sum(product**2) for product in products.values())))


def rank_error(products: Dense, rank: int) -> float:
    """How far the nearest products of this rank are, by a singular value decomposition in full."""
    tails = [np.linalg.svd(product, compute_uv=False)[rank:] for product in products.values()]
    return float(np.sqrt(sum(np.sum(tail**2) for tail in tails)))


# --- transplant ---


@given(SEEDS)
def test_other_factors_of_the_same_model_take_the_same_change(seed: int) -> None:
    base = random_adapter(layout(4), seed)
    head, delta = regauged(base, seed), random_adapter(layout(4), seed + 1, size=0.1)
    moved = transplant(head, base, delta, SMALL_RIDGE)
    change, wanted = minus(dense(head + moved), dense(head)), minus(dense(base + delta), dense(base))
    assert size(minus(change, wanted)) < 1e-4 * size(wanted)
    # what adding the factors' deltas up would have made of it
    assert size(minus(minus(dense(head + delta), dense(head)), wanted)) > 0.1 * size(wanted)


def test_a_stale_delta_comes_as_near_as_the_rank_allows() -> None:
    base, delta = random_adapter(layout(4), 0), random_adapter(layout(4), 1, size=0.1)
    head = base + random_adapter(layout(4), 2, size=0.1)
    wanted = minus(dense(base + delta), dense(base))
    aim = {name: dense(head)[name] + wanted[name] for name in SHAPES}
    for ridge, slack in [(SMALL_RIDGE, 1.01), (0.05, 1.2)]:
        found = dense(head + transplant(head, base, delta, ridge))
        assert size(minus(found, aim)) < slack * rank_error(aim, 4)
    assert rank_error(aim, 4) < 0.2 * size(wanted)


def test_a_larger_ridge_keeps_the_factors_nearer_to_the_node_s_own() -> None:
    base, delta = random_adapter(layout(4), 0), random_adapter(layout(4), 1, size=0.1)
    head = regauged(base, 3)
    distances = [(transplant(head, base, delta, ridge) - delta).norm for ridge in (0.01, 0.1, 1.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.75 * distances[0]


@pytest.mark.parametrize("rank", [2, 3, 6])
@pytest.mark.parametrize("started", [True, False])
def test_a_node_of_another_rank_changes_the_head_as_it_changed_its_own_start(rank: int, started: bool) -> None:
    version = random_adapter(layout(4), 0) if started else untrained(layout(4), 0)
    start, delta = truncate(version, layout(rank)), random_adapter(layout(rank), 1, size=0.05)
    moved = transplant(version, version, delta, SMALL_RIDGE, sweeps=6)
    assert moved.layout == version.layout
    assert moved == transplant(version, start, delta, SMALL_RIDGE, sweeps=6)
    wanted = minus(dense(start + delta), dense(start))
    aim = {name: dense(version)[name] + wanted[name] for name in SHAPES}
    missed = size(minus(dense(version + moved), aim))
    assert missed <= 1.05 * rank_error(aim, 4) + 1e-5 * size(aim)
    assert missed < 0.8 * size(wanted)


def test_a_small_node_loses_nothing_when_training_has_just_begun() -> None:
    version = untrained(layout(8), 0)
    start, delta = truncate(version, layout(2)), random_adapter(layout(2), 1, size=0.05)
    after = version + transplant(version, start, delta, SMALL_RIDGE)
    assert product_distance(after, start + delta) < 1e-4


def test_while_b_is_zero_what_a_node_learnt_of_a_alone_is_kept_for_later() -> None:
    base, head = untrained(layout(4), 0), untrained(layout(4), 1)
    moved = transplant(head, base, untrained(layout(4), 2), ridge=0.05)
    assert moved.values == pytest.approx(untrained(layout(4), 2).values, abs=1e-6)


def test_the_ranks_scale_is_part_of_the_product() -> None:
    head = random_adapter(layout(4, alpha=4), 0)
    base = truncate(head, layout(4, alpha=32))
    delta = random_adapter(base.layout, 1, size=0.01)
    after = head + transplant(head, base, delta, SMALL_RIDGE)
    assert product_distance(after, base + delta) < 1e-5


# --- widen ---


@given(SEEDS, st.sampled_from([1, 2, 3]), st.booleans())
def test_what_a_node_of_a_smaller_rank_changed_is_exactly_what_the_head_changes_by(
    seed: int, rank: int, started: bool
) -> None:
    head = random_adapter(layout(4), seed) if started else untrained(layout(4), seed)
    start, delta = truncate(head, layout(rank, alpha=5)), random_adapter(layout(rank, alpha=5), seed + 1, size=0.05)
    wanted = minus(dense(start + delta), dense(start))
    change = minus(dense(head + widen(head, delta, 0.01)), dense(head))
    assert size(minus(change, wanted)) < 1e-5 * size(wanted)  # factors are float32
    near = minus(dense(head + transplant(head, head, delta, 0.01)), dense(head))
    assert size(minus(near, wanted)) > 1e-4 * size(wanted)


def test_a_change_of_rank_one_is_widened_by_hand() -> None:
    """The head is diag(9, 1) @ 1; its nearest product of rank 1 is (3, 0) (3, 0)^T, and the node moves both factors."""
    of_two, of_one = (layout(rank, alpha=rank, shapes={"x": (2, 2)}) for rank in (2, 1))

    def adapter(of: Layout, b: list[list[float]], a: list[list[float]]) -> Adapter:
        factors = {"x.lora_B.weight": np.array(b, np.float32), "x.lora_A.weight": np.array(a, np.float32)}
        return Adapter.from_tensors(of, factors)

    head = adapter(of_two, [[9, 0], [0, 1]], [[1, 0], [0, 1]])
    start = truncate(head, of_one)
    assert start.values == pytest.approx(adapter(of_one, [[3], [0]], [[3, 0]]).values)
    delta = adapter(of_one, [[1], [2]], [[0, 1]])  # (3 + 1, 2) (3, 1)^T - (3, 0) (3, 0)^T = (3 4; 6 2)
    after = (head + widen(head, delta, 0.01)).tensors()
    assert after["x.lora_B.weight"] @ after["x.lora_A.weight"] == pytest.approx(np.array([[9 + 3, 4], [6, 1 + 2]]))


def test_where_rows_of_the_head_depend_on_each_other_a_node_s_change_is_met_as_nearly_as_can_be() -> None:
    tensors = random_adapter(layout(4), 0).tensors()
    same = {name: np.repeat(a[:1], 4, axis=0) if ".lora_A." in name else a for name, a in tensors.items()}
    head, delta = Adapter.from_tensors(layout(4), same), random_adapter(layout(2), 1, size=0.05)
    assert widen(head, delta, 0.01) == transplant(head, head, delta, 0.01)


def test_what_the_federation_s_rank_cannot_hold_of_a_larger_node_is_lost_and_said() -> None:
    head, delta = random_adapter(layout(4), 0), random_adapter(layout(8), 1, size=0.1)
    start = truncate(head, layout(8))
    wanted = minus(dense(start + delta), dense(start))
    aim = {name: dense(head)[name] + wanted[name] for name in SHAPES}
    _, lost = mean_product(head, [(head, delta, 1.0)], 0.01)
    missed = size(minus(dense(head + transplant(head, head, delta, 0.01)), aim)) / size(wanted)
    assert missed == pytest.approx(lost, rel=1e-4)
    assert rank_error(aim, 4) / size(wanted) <= lost < 1.05 * rank_error(aim, 4) / size(wanted)
    assert lost > 0.05


# --- truncate ---


@given(SEEDS, st.integers(1, 5))
@settings(max_examples=50)
def test_no_other_adapter_of_that_rank_comes_nearer(seed: int, rank: int) -> None:
    whole = random_adapter(layout(6), seed)
    cut = truncate(whole, layout(rank, alpha=8))
    assert size(minus(dense(cut), dense(whole))) == pytest.approx(rank_error(dense(whole), rank), rel=1e-4)


def test_factors_share_the_size_evenly() -> None:
    cut = truncate(random_adapter(layout(6), 0), layout(2)).tensors()
    for name in SHAPES:
        rows = np.linalg.norm(cut[f"{name}.lora_A.weight"], axis=1)
        columns = np.linalg.norm(cut[f"{name}.lora_B.weight"], axis=0)
        assert rows == pytest.approx(columns, rel=1e-5)


def test_other_factors_of_the_same_product_are_cut_to_the_same_factors() -> None:
    whole = random_adapter(layout(6), 0)
    assert truncate(regauged(whole, 1), layout(3)).values == pytest.approx(truncate(whole, layout(3)).values, abs=1e-4)


def test_factors_of_very_different_sizes_are_cut_as_well() -> None:
    whole, tensors = random_adapter(layout(4), 0), {}
    sizes = np.array([1e-2, 1, 1e2, 1e3])
    for name, value in whole.tensors().items():
        scaled = value * sizes[:, None] if ".lora_A." in name else value / sizes
        tensors[name] = scaled.astype(np.float32)
    same = Adapter.from_tensors(whole.layout, tensors)
    assert truncate(same, layout(3)).values == pytest.approx(truncate(whole, layout(3)).values, abs=1e-4)


@pytest.mark.parametrize("head", [untrained(layout(8), 0), random_adapter(layout(8), 0)], ids=["untrained", "trained"])
def test_rounding_turns_no_factor_so_node_and_coordinator_start_alike(head: Adapter) -> None:
    noise = 1 + 1e-6 * random_adapter(head.layout, 1).values
    other = Adapter(head.layout, head.values * noise)
    assert truncate(other, layout(4)).values == pytest.approx(truncate(head, layout(4)).values, abs=1e-4)


@pytest.mark.parametrize("rank", [2, 4])
def test_an_untrained_adapter_is_cut_to_one_that_can_learn(rank: int) -> None:
    cut = truncate(untrained(layout(8), 0), layout(rank)).tensors()
    for name in SHAPES:
        assert not cut[f"{name}.lora_B.weight"].any()
        rows = cut[f"{name}.lora_A.weight"]
        assert rows @ rows.T == pytest.approx(np.eye(rank) / 3, abs=1e-6)  # apart, and as long as where training starts


def test_an_adapter_of_zeros_is_cut_to_one_that_can_learn() -> None:
    cut = truncate(Adapter.zeros(layout(8)), layout(2)).tensors()
    assert all(cut[f"{name}.lora_A.weight"].any(axis=1).all() for name in SHAPES)


@pytest.mark.parametrize("alpha", [16, 24])
def test_a_larger_rank_keeps_the_product_and_can_learn_more(alpha: int) -> None:
    whole = random_adapter(layout(4), 0)
    grown = truncate(whole, layout(7, alpha), seed=5)
    assert product_distance(grown, whole) < 1e-6
    for name in SHAPES:
        old, new = (adapter.tensors()[f"{name}.lora_A.weight"] for adapter in (whole, grown))
        assert np.array_equal(new[:4], old)
        bound = 1 / np.sqrt(old.shape[1])
        assert 0.5 * bound < np.abs(new[4:]).max() <= bound
        assert not grown.tensors()[f"{name}.lora_B.weight"][:, 4:].any()


def test_new_rows_come_from_the_seed_alone() -> None:
    grown = [
        truncate(random_adapter(layout(4), adapter), layout(7), seed) for adapter, seed in [(0, 1), (9, 1), (0, 2)]
    ]
    first, same, other = (adapter.tensors()["up.lora_A.weight"][4:] for adapter in grown)
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("rank", [4, 9])
def test_there_and_back_again_is_the_same_model(rank: int) -> None:
    whole = random_adapter(layout(4), 0)
    assert product_distance(truncate(truncate(whole, layout(rank)), layout(4)), whole) < 1e-6
    assert truncate(whole, layout(4)) is whole


# --- mean_product ---


def test_the_mean_of_products_comes_as_near_as_the_rank_allows_and_says_how_near() -> None:
    bases = {version: random_adapter(layout(4), version) for version in (0, 1)}
    head = bases[1] + random_adapter(layout(4), 2, size=0.1)
    small = random_adapter(layout(2), 5, size=0.1)
    updates = [
        (bases[0], random_adapter(layout(4), 3, size=0.1), 0.25),
        (bases[1], random_adapter(layout(4), 4, size=0.1), 0.5),
        (bases[1], small, 0.125),
    ]
    aim = dense(head)
    for base, delta, weight in updates:
        start = truncate(base, delta.layout)
        change = minus(dense(start + delta), dense(start))
        aim = {name: aim[name] + weight * change[name] for name in SHAPES}
    after, residual = mean_product(head, updates, SMALL_RIDGE, sweeps=6)
    missed, wanted = size(minus(dense(after), aim)), size(minus(aim, dense(head)))
    assert residual == pytest.approx(missed / wanted, rel=1e-4)
    assert missed < 1.02 * rank_error(aim, 4)


def test_the_mean_of_one_is_its_transplant() -> None:
    head, base = random_adapter(layout(4), 0), random_adapter(layout(4), 1)
    delta = random_adapter(layout(3), 2, size=0.1)
    after, _ = mean_product(head, [(base, delta, 1.0)], ridge=0.05)
    assert after.values == pytest.approx((head + transplant(head, base, delta, ridge=0.05)).values, abs=1e-6)


def test_a_fresh_update_of_weight_one_gives_head_plus_delta() -> None:
    head, delta = random_adapter(layout(4), 0), random_adapter(layout(4), 1, size=0.1)
    after, residual = mean_product(head, [(head, delta, 1.0)], ridge=0.05)
    assert after.values == pytest.approx((head + delta).values, abs=1e-6)
    assert residual < 1e-6


def test_equal_bases_count_as_one_though_they_are_two_objects() -> None:
    head, base = random_adapter(layout(4), 0), random_adapter(layout(4), 1)
    again = Adapter(base.layout, base.values.copy())
    deltas = [random_adapter(layout(4), seed, size=0.1) for seed in (2, 3)]
    one, other = ([(first, deltas[0], 0.5), (base, deltas[1], 0.5)] for first in (base, again))
    assert mean_product(head, one, ridge=0.05) == mean_product(head, other, ridge=0.05)


# --- distance, refusals, memory ---


def test_the_distance_is_that_of_the_products_in_full() -> None:
    x, y = random_adapter(layout(4), 0), random_adapter(layout(6, alpha=4), 1)
    expected = size(minus(dense(x), dense(y))) / max(size(dense(x)), size(dense(y)))
    assert product_distance(x, y) == pytest.approx(expected)
    assert product_distance(y, x) == pytest.approx(expected)
    assert product_distance(x, regauged(x, 3)) < 1e-6
    assert product_distance(x, Adapter.zeros(layout(2))) == pytest.approx(1)
    assert product_distance(Adapter.zeros(layout(4)), untrained(layout(4), 0)) == 0


@given(SEEDS, st.integers(1, 5), st.sampled_from([0.0, 1e-20, 1e-3, 1.0, 1e6, 1e18]))
@settings(max_examples=60)
def test_no_delta_reaches_further_than_the_lengths_alone_allow(seed: int, rank: int, size: float) -> None:
    head, delta = random_adapter(layout(rank), seed), random_adapter(layout(rank), seed + 1, size)
    assert reach(head, delta).whole <= reach_at_most(head, delta)
    # one module of rank 1 whose factors all point the same way comes as far as the bound says
    thin = layout(1, shapes={"down": (1, 1)})
    head, delta = Adapter(thin, np.ones(2, np.float32)), Adapter(thin, np.full(2, size, np.float32))
    assert reach(head, delta).whole == pytest.approx(reach_at_most(head, delta), rel=1e-5)


def test_adapters_of_different_modules_are_refused() -> None:
    here, elsewhere = random_adapter(layout(4), 0), Adapter.zeros(layout(4, shapes={"down": (20, 31), "up": (24, 12)}))
    with pytest.raises(ValueError, match="only rank and alpha may differ"):
        product_distance(here, elsewhere)
    with pytest.raises(ValueError, match="only rank and alpha may differ"):
        truncate(here, Layout(lora=LoraConfig(rank=2), tensors=layout(2).tensors[:2]))
    with pytest.raises(ValueError, match="only rank and alpha may differ"):
        transplant(here, here, elsewhere, ridge=0.05)


def test_without_a_ridge_there_may_be_no_solution_so_it_is_refused() -> None:
    head = random_adapter(layout(4), 0)
    with pytest.raises(ValueError, match="ridge must be above 0"):
        transplant(head, head, random_adapter(layout(2), 1), ridge=0)


def test_a_layer_is_never_multiplied_out() -> None:
    wide = {"down": (5000, 5000)}  # 200 MB as float64
    head, base, delta = (random_adapter(layout(2, shapes=wide), seed) for seed in (0, 1, 2))
    tracemalloc.start()
    try:
        mean_product(head, [(base, delta, 1.0)], ridge=0.05)
        transplant(head, base, delta, ridge=0.05)
        truncate(head, layout(1, shapes=wide))
        product_distance(head, base)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6


def test_a_stack_does_what_its_parts_do_together() -> None:
    one, other = random_adapter(layout(2), 1), random_adapter(layout(3), 2)
    together = stack([(one, 1.0), (other, -0.5)])
    assert together.layout.lora.rank == 5
    for name, product in dense(together).items():
        np.testing.assert_allclose(product, dense(one)[name] - 0.5 * dense(other)[name], atol=1e-4)
