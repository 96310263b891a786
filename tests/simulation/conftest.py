"""A federation of a few nodes that learn to greet, on the tiny model."""

from collections.abc import Callable
from pathlib import Path

import pytest

from base_model.examples import Example
from base_model.language_model import LanguageModel
from base_model.reference import resolve
from base_model.settings import TrainingConfig
from coordinator.strategies import AlignFed, FedBuff, Strategy
from schemas.adapter import LoraConfig
from simulation.federation import Released, Version
from simulation.result import RunResult
from simulation.run import make_federation, simulate_on
from simulation.schedule import Schedule
from simulation.settings import Measuring, SimulationConfig
from simulation.task import Task

PLACES = ("kitchen", "office", "hall", "cellar", "attic", "garden")
STEADY = Schedule(spread=4, jitter=0, latency=0, bytes_per_job=1e12, server_speed=1)

Simulate = Callable[..., RunResult]
News = Callable[..., list[Version | Released]]
Happen = Callable[..., list[Version]]
Decide = Callable[..., list[Released]]


@pytest.fixture(scope="session")
def tiny_model(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """The tiny model, loaded once: runs leave nothing on it that the next one sees."""
    return LanguageModel.load(resolve(str(tiny_model_dir), tmp_path_factory.mktemp("cache")))


def task_of(nodes: int) -> Task:
    """Every node talks of places; what it says there is its own."""
    homes = {f"n{number:04d}": examples_of(str(number), 4) for number in range(nodes)}
    return Task(
        nodes=homes,
        tests={node: examples_of(f"{node} test", 2) for node in homes},
        calibration=examples_of("calibration", 6),
        held_out=examples_of("held out", 6),
    )


def examples_of(voice: str, count: int) -> tuple[Example, ...]:
    """So many examples of one voice."""
    return tuple(
        Example(prompt=f"{voice} light in the {place}", completion=f'{{"intent":"TurnOn","area":"{place}"}}')
        for place in PLACES[:count]
    )


def config_of(strategy: Strategy | None, **settings: object) -> SimulationConfig:
    """A short run: two steps of two examples, four nodes' speeds four times apart, no jitter."""
    usual: dict[str, object] = {
        "method": strategy.name if strategy else "centralised",
        "strategy": strategy,
        "seed": 1,
        "updates": 8,
        "schedule": STEADY,
        "lora": LoraConfig(rank=2, alpha=4, last_layers=1),
        "training": TrainingConfig(steps=2, batch_size=2, learning_rate=0.02),
        "dtype": "float32",
        "anchor_examples": 2,
        "gate_examples": 4,
        "measuring": Measuring(held_out=4, generated=4),
    }
    return SimulationConfig.model_validate(usual | settings)


@pytest.fixture
def make_task() -> Callable[[int], Task]:
    """Make a task of so many nodes."""
    return task_of


@pytest.fixture
def make_config() -> Callable[..., SimulationConfig]:
    """Make the configuration of a short run: make_config(strategy, **settings)."""
    return config_of


@pytest.fixture
def simulate(tiny_model: LanguageModel) -> Simulate:
    """Run a strategy on the tiny task: simulate(strategy, nodes=4, **settings)."""

    def run(strategy: Strategy | None, nodes: int = 4, **settings: object) -> RunResult:
        return simulate_on(tiny_model, config_of(strategy, **settings), task_of(nodes), lambda share: None)

    return run


@pytest.fixture
def news(tiny_model: LanguageModel) -> News:
    """Versions and decisions as they come: news(strategy, nodes=4, **settings); with `hear` they are not kept."""

    def run(
        strategy: Strategy, nodes: int = 4, hear: Callable[[Version | Released], None] | None = None, **settings: object
    ) -> list[Version | Released]:
        config = config_of(strategy, **settings)
        heard: list[Version | Released] = []

        def count(updates: int, now: float) -> None:
            assert config.updates is None or updates <= config.updates, "nodes go on after the last update"

        federation = make_federation(tiny_model, config, strategy, task_of(nodes), hear or heard.append, count)
        federation.run(tiny_model.initial_adapter(config.lora, config.seed), config.updates, config.time)
        return heard

    return run


@pytest.fixture
def happen(news: News) -> Happen:
    """The versions that come out: happen(strategy, nodes=4, **settings)."""
    return lambda *words, **settings: [one for one in news(*words, **settings) if isinstance(one, Version)]


@pytest.fixture
def decide(news: News) -> Decide:
    """The decisions what nodes serve: decide(strategy, nodes=4, **settings)."""
    return lambda *words, **settings: [one for one in news(*words, **settings) if isinstance(one, Released)]


@pytest.fixture
def fedbuff() -> FedBuff:
    """A version for every two updates."""
    return FedBuff(buffer_size=2)


@pytest.fixture
def alignfed() -> AlignFed:
    """Ours, a version for every two updates."""
    return AlignFed(buffer_size=2)
