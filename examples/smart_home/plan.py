"""Who takes part in a run: names, speeds and arrival, chosen so that every node has time to contribute.

Pure: the same options give the same plan.
"""

import math
from dataclasses import dataclass

from coordinator.strategies import (
    AlignFed,
    AlignFedLiteral,
    CalibrationOnly,
    FedAsync,
    FedAvg,
    FedBuff,
    FedEx,
    FFALora,
    FLoRA,
    Strategy,
)
from coordinator.strategies.buffer_of_k import BufferOfK
from examples.smart_home.recipe import Recipe

FEWEST_UPDATES = 3  # that the slowest node can be expected to have in time
SMALL_BUFFER = 2  # a version for every four updates comes too late in so short a run
USUAL: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        AlignFed(),
        FedBuff(buffer_size=SMALL_BUFFER),
        FedAsync(),
        FedAvg(),
        FedEx(buffer_size=SMALL_BUFFER),
        FLoRA(buffer_size=SMALL_BUFFER),
        FFALora(buffer_size=SMALL_BUFFER),
        CalibrationOnly(buffer_size=SMALL_BUFFER),
        AlignFedLiteral(buffer_size=SMALL_BUFFER),
    )
}
# not fedsa_lora: what it shares answers like the base model, and the report would show no change
STRATEGIES = tuple(USUAL)


class ImpossiblePlan(ValueError):
    """Options with which a run could not succeed; the text says what would do."""


@dataclass(frozen=True)
class NodePlan:
    """One node: `slowdown` is how many times slower than full speed it works, `joins_at` the version it waits for."""

    name: str
    slowdown: float
    joins_at: int | None = None  # None: from the beginning


@dataclass(frozen=True)
class Plan:
    """One run: the recipe with this run's versions and strategy, and the nodes."""

    recipe: Recipe
    seed: int
    nodes: tuple[NodePlan, ...]


def make_plan(recipe: Recipe, nodes: int, versions: int | None, seed: int, strategy: str | None) -> Plan:
    """The plan for these options; without `versions` and `strategy` the recipe's. Raises ImpossiblePlan."""
    if nodes < 2:
        raise ImpossiblePlan(f"a federation needs at least 2 nodes, got {nodes}")
    if seed < 0:
        raise ImpossiblePlan(f"the seed must not be negative, got {seed}")
    chosen = _strategy(recipe, strategy or recipe.strategy.name, nodes)
    # without a number of versions, as many updates as the recipe uses in all
    usual = recipe.versions * _updates_per_version(recipe.strategy) // _updates_per_version(chosen)
    enough = math.ceil(FEWEST_UPDATES * nodes / _updates_per_version(chosen))
    recipe = recipe.model_copy(update={"versions": versions or max(usual, enough), "strategy": chosen})
    if recipe.versions * _updates_per_version(chosen) < nodes:
        fewest = math.ceil(nodes / _updates_per_version(chosen))
        raise ImpossiblePlan(
            f"{recipe.versions} versions are too few for {nodes} homes to each have a part: ask for {fewest} or more"
        )
    names = [f"home-{number}" for number in range(1, nodes + 1)]
    joins_at = _late_version(recipe)
    paces = slowdowns(nodes, recipe, joins_at)
    late = {names[-1]: joins_at} if joins_at else {}
    return Plan(recipe, seed, tuple(NodePlan(n, pace, late.get(n)) for n, pace in zip(names, paces, strict=True)))


def slowdowns(nodes: int, recipe: Recipe, joins_at: int) -> tuple[float, ...]:
    """The recipe's speeds, brought closer together until the slowest node can expect enough updates in time."""
    pattern = [recipe.slowdowns[index % len(recipe.slowdowns)] for index in range(nodes)]
    updates = (recipe.versions - joins_at) * _updates_per_version(recipe.strategy)
    for spread in (1.0, 0.75, 0.5, 0.25, 0.1):
        paces = [1 + spread * (pace - 1) for pace in pattern]
        expected = updates / max(paces) / sum(1 / pace for pace in paces)
        if expected >= FEWEST_UPDATES:
            break
    return tuple(paces)


def _late_version(recipe: Recipe) -> int:
    """After which version the last node comes, to show that it gets the newest; 0 where it has to be there at once."""
    if recipe.strategy.one_update_per_version:  # a round waits for everybody
        return 0
    return recipe.versions // 6


def _strategy(recipe: Recipe, name: str, nodes: int) -> Strategy:
    if name not in STRATEGIES:
        raise ImpossiblePlan(f"there is no strategy {name}; there are {', '.join(STRATEGIES)}")
    chosen = recipe.strategy if name == recipe.strategy.name else USUAL[name]
    match chosen:
        case BufferOfK():
            # for many nodes a larger buffer, or most would not be heard before the end
            return chosen.model_copy(update={"buffer_size": max(chosen.buffer_size, nodes // 2)})
        case FedAvg():
            return chosen.model_copy(update={"nodes_per_round": nodes})
        case FedAsync():
            return chosen


def _updates_per_version(strategy: Strategy) -> int:
    match strategy:
        case BufferOfK():
            return strategy.buffer_size
        case FedAvg():
            return strategy.nodes_per_round
        case FedAsync():
            return 1
