"""What a run should cost, in seconds of one core of a common machine, before any like it was measured on this one.

The figures are fitted to the 132 undisturbed runs in results/full: SmolLM2-135M with adapters on its six topmost
layers, on a server's core that multiplies bfloat16 matrices by itself. An older core takes two or three times as long.
"""

from coordinator.strategies import FedAvg, Strategy
from simulation.settings import SimulationConfig

TRAINED_S = 0.032  # one example, forward and backward
PASS_S = 0.008  # one example forward
GENERATED_S = 0.25  # one answer
BEGIN_S = 13.0  # most of it what the frozen layers make of examples that were not seen before
UPDATES_PER_VERSION = 4


def estimate(config: SimulationConfig, nodes: int) -> float:
    """Seconds of one core for a run in a fleet of so many nodes."""
    updates, measuring = config.updates or 0, config.measuring
    versions = updates / _per_version(config.strategy)
    job = config.training.steps * config.training.batch_size
    trained = job * (updates + (versions if config.anchor_examples else 0))
    passes = versions * (_adapters(config.strategy) * measuring.held_out / measuring.every + config.gate_examples)
    passes += nodes * measuring.own_tests
    return BEGIN_S + trained * TRAINED_S + passes * PASS_S + measuring.generated * GENERATED_S


def _per_version(strategy: Strategy | None) -> int:
    return strategy.nodes_per_round if isinstance(strategy, FedAvg) else UPDATES_PER_VERSION


def _adapters(strategy: Strategy | None) -> int:
    """New ones in a version that may be measured: the head, and the average where that may be served."""
    release = getattr(strategy, "release", None)
    return 1 if release is None or release.choose == "head" else 2
