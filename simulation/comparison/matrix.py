"""Which runs a comparison consists of: methods times regimes times seeds, each with all that decides it.

Runs that would compute the same are found here, so that they are computed once: a method that never asks the base
model does not notice what calibration there is. It runs nothing.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import JsonValue

from coordinator.strategies import AlignFed, AlignFedLiteral, CalibrationOnly, FedAsync, FedAvg, FLoRA, Strategy
from simulation.comparison.costs import estimate
from simulation.comparison.presets import CLOSELY, PRESETS, Preset
from simulation.comparison.regimes import REGIMES, Regime, TaskSpec
from simulation.methods import METHODS, strategy_of
from simulation.settings import Measuring, SimulationConfig

Thing = TypeVar("Thing")

ROUNDS_TAKE = 2  # times the updates: in the time of a round others make many versions
PER_VERSION = 4  # updates, of most methods
LABELS = ("preset", "regime", "method", "targets")  # of a configuration: they decide nothing


class ImpossibleComparison(ValueError):
    """What was asked for cannot be compared; the text says what can."""


@dataclass(frozen=True)
class Choice:
    """What a person may choose; None leaves it to the preset. `settings` change every run's configuration."""

    preset: str
    methods: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    regimes: tuple[str, ...] | None = None
    data: "Data | None" = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """A task of the user's own, in place of the generated ones."""

    folder: Path
    nodes: int


@dataclass(frozen=True)
class PlannedRun:
    """One run: its configuration, its task, and what it is expected to cost in CPU seconds."""

    config: SimulationConfig
    task: TaskSpec | Path
    estimate: float

    @property
    def name(self) -> str:
        """Of its file."""
        config = self.config
        return f"{config.preset}-{config.regime}-{config.method}-{config.seed}"

    @property
    def computation(self) -> str:
        """Equal for runs that compute the same."""
        return json.dumps([deciding(self.config.model_dump(mode="json")), str(self.task)], sort_keys=True)


def plan(choice: Choice) -> tuple[PlannedRun, ...]:
    """All runs, regime by regime and seed by seed. Raises ImpossibleComparison for names that there are not."""
    preset = _known(choice.preset, PRESETS, "preset")
    for method in choice.methods or ():
        _known(method, METHODS, "method")
    return tuple(
        _planned(preset, regime, method, seed, choice)
        for regime in _regimes(preset, choice)
        for method, seed in _pairs(preset, regime, choice)
    )


def deciding(config: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """A configuration without its labels, and without what is off: a file of before there was such a setting counts."""
    return {key: _on(value) for key, value in config.items() if key not in LABELS and value is not None}


def _on(value: JsonValue) -> JsonValue:
    match value:
        case dict():
            return {key: _on(one) for key, one in value.items() if one is not None}
        case list():
            return [_on(one) for one in value]
    return value


def _regimes(preset: Preset, choice: Choice) -> list[Regime]:
    """The regimes at the preset's size; with the user's own data, those that change no generated data."""
    names = choice.regimes or (("base",) if choice.data else tuple(preset.meetings))
    regimes = [preset.sized(_known(name, REGIMES, "regime")) for name in names]
    if choice.data:
        usual = preset.regime("base").task
        if other := [regime.name for regime in regimes if regime.task != usual]:
            raise ImpossibleComparison(f"the regime {other[0]} is about generated data; leave it out, or --data")
    return regimes


def _pairs(preset: Preset, regime: Regime, choice: Choice) -> Iterator[tuple[str, int]]:
    """Methods with seeds, one seed after the other: a comparison that is stopped early has some seeds of everything."""
    seeds = choice.seeds or preset.seeds
    for place, seed in enumerate(seeds):
        if choice.methods:
            yield from ((method, seed) for method in choice.methods)
            continue
        for entry in preset.meeting(regime.name):
            yield from ((method, seed) for method in entry.methods if place < entry.seeds)


def _planned(preset: Preset, regime: Regime, method: str, seed: int, choice: Choice) -> PlannedRun:
    nodes = choice.data.nodes if choice.data else regime.task.homes
    strategy = strategy_of(method, nodes)
    asks = strategy is not None and _asks(strategy)
    config = {
        "method": method,
        "strategy": strategy,
        "preset": preset.name,
        "regime": regime.name,
        "targets": () if choice.data else regime.targets,
        "seed": seed,
        "updates": regime.updates * (ROUNDS_TAKE if isinstance(strategy, FedAvg) else 1),
        "schedule": regime.schedule,
        "anchor_examples": regime.anchor_examples if asks else 0,
        "gate_examples": regime.gate_examples if asks else 0,
        "measuring": _measuring(preset, regime, method, strategy),
        "node_ranks": regime.node_ranks if strategy is not None else (),
        "training": SimulationConfig.model_fields["training"].default.model_copy(update={"steps": regime.job_steps}),
    }
    task: TaskSpec | Path = choice.data.folder if choice.data else _task(regime.task, seed, asks)
    wanted = SimulationConfig(**{**config, **choice.settings})
    return PlannedRun(wanted, task, estimate(wanted, nodes))


def _asks(strategy: Strategy) -> bool:
    """Whether a strategy ever asks the base model, and so notices what calibration there is."""
    match strategy:
        case AlignFedLiteral() | CalibrationOnly():
            return True
        case AlignFed(align="semantic"):
            return True
        case FLoRA():
            return False
        case FedAsync():
            return strategy.release.choose == "gated"
    return strategy.anchor is not None or strategy.release.choose == "gated"


def _task(task: TaskSpec, seed: int, asks: bool) -> TaskSpec:
    """The task of a seed; who does not ask gets the usual calibration set, which leaves all else as it is."""
    return replace(task, seed=seed, calibration_kind=task.calibration_kind if asks else TaskSpec.calibration_kind)


def _measuring(preset: Preset, regime: Regime, method: str, strategy: Strategy | None) -> Measuring:
    """As often as the others per update, for a method that makes a version of every update, or of a round's."""
    measuring = CLOSELY if preset.is_measured_closely(regime.name, method) else regime.measuring
    if isinstance(strategy, FedAsync):
        return measuring.model_copy(update={"every": PER_VERSION * measuring.every})
    if isinstance(strategy, FedAvg):
        return measuring.model_copy(update={"every": 1})
    return measuring


def _known(name: str, things: Mapping[str, Thing], kind: str) -> Thing:
    if name not in things:
        raise ImpossibleComparison(f"there is no {kind} {name!r}; choose from {', '.join(things)}")
    return things[name]
