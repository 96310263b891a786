"""The plan gives every node a part in the run, whatever a person asks for."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignfed import DemoStrategy
from coordinator.strategies import AlignFed, FedAsync, FedAvg, FedBuff
from examples.smart_home.plan import FEWEST_UPDATES, STRATEGIES, ImpossiblePlan, make_plan
from examples.smart_home.recipe import RECIPE

BUFFERED = RECIPE.model_copy(update={"versions": 12, "strategy": FedBuff(buffer_size=4), "slowdowns": (1, 1.5, 3, 2)})


def test_the_last_node_comes_late_and_speeds_are_unequal():
    plan = make_plan(BUFFERED, nodes=4, versions=None, seed=0, strategy=None)
    assert [node.joins_at for node in plan.nodes] == [None, None, None, 2]
    assert [node.slowdown for node in plan.nodes] == [1, 1.5, 3, 2]


def test_with_few_versions_nobody_is_late_and_speeds_come_together():
    plan = make_plan(BUFFERED, nodes=4, versions=2, seed=0, strategy=None)
    assert all(node.joins_at is None for node in plan.nodes)
    assert max(node.slowdown for node in plan.nodes) < 1.5


def test_rounds_wait_for_every_node_so_nobody_is_late():
    plan = make_plan(BUFFERED, nodes=5, versions=None, seed=0, strategy="fedavg")
    assert plan.recipe.strategy == FedAvg(nodes_per_round=5)
    assert all(node.joins_at is None for node in plan.nodes)


def test_the_command_line_offers_what_there_is():
    assert get_args(DemoStrategy) == STRATEGIES


def test_another_strategy_gets_as_many_updates_in_all():
    plan = make_plan(BUFFERED, nodes=4, versions=None, seed=0, strategy="fedasync")
    assert (plan.recipe.strategy, plan.recipe.versions) == (FedAsync(), 48)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"nodes": 1}, "at least 2 nodes"),
        ({"seed": -1}, "seed"),
        ({"strategy": "median"}, "alignfed, fedbuff, fedasync"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_what_is_allowed(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_plan(BUFFERED, **{"nodes": 4, "versions": None, "seed": 0, "strategy": None} | wrong)


def test_a_run_of_the_recipe_s_strategy_has_the_recipe_s_settings_and_for_many_nodes_a_larger_buffer():
    recipe = RECIPE.model_copy(update={"strategy": AlignFed(buffer_size=3, step=1.5)})
    assert make_plan(recipe, 4, None, 0, "alignfed").recipe.strategy == AlignFed(buffer_size=3, step=1.5)
    assert make_plan(recipe, 12, None, 0, "alignfed").recipe.strategy == AlignFed(buffer_size=6, step=1.5)


@given(nodes=st.integers(2, 40), versions=st.integers(6, 40))
def test_the_slowest_node_can_expect_a_part_in_the_run(nodes, versions):
    plan = make_plan(BUFFERED, nodes, versions, seed=0, strategy=None)
    late = max(node.joins_at or 0 for node in plan.nodes)
    updates = (versions - late) * plan.recipe.strategy.buffer_size
    rates = [1 / node.slowdown for node in plan.nodes]
    fair = updates / nodes
    assert updates * min(rates) / sum(rates) >= min(FEWEST_UPDATES, 0.75 * fair)


def test_too_few_versions_for_everybody_to_have_a_part_are_refused_with_what_would_do():
    with pytest.raises(ImpossiblePlan, match=r"1 versions are too few for 4 homes .* ask for 2 or more"):
        make_plan(RECIPE, 4, 1, 0, None)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("nodes", [2, 4, 6, 12, 30])
def test_by_default_there_are_updates_enough_for_every_home(nodes: int, strategy: str):
    plan = make_plan(RECIPE, nodes, None, 0, strategy)
    chosen = plan.recipe.strategy
    per_version = getattr(chosen, "buffer_size", getattr(chosen, "nodes_per_round", 1))
    assert plan.recipe.versions * per_version >= FEWEST_UPDATES * nodes
