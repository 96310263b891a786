"""Which figures a comparison has."""

from collections.abc import Iterator, Mapping, Sequence

from simulation.comparison.colors import COLORS
from simulation.comparison.curves import curves
from simulation.comparison.document import Comparison
from simulation.comparison.dots import ablations, cost, harm, times
from simulation.comparison.drawing import Drawing
from simulation.comparison.fairness import node_losses, shares, staleness
from simulation.comparison.presets import ABLATIONS, OURS
from simulation.comparison.summary import MethodSummary
from simulation.comparison.verdicts import effect
from simulation.result import RunResult

MOST_CURVES = 6


def drawings(comparison: Comparison, results: Sequence[RunResult]) -> dict[str, Drawing]:
    """All figures that these runs give, by name."""
    every = list(_every(comparison, results))
    return {drawing.name: drawing for drawing in every}


def _every(comparison: Comparison, results: Sequence[RunResult]) -> Iterator[Drawing]:
    for regime, methods in comparison.regimes.items():
        runs = {name: [r for r in results if (r.regime, r.method) == (regime, name)] for name in methods}
        yield curves(regime, {name: runs[name] for name in _shown(methods)}, comparison.targets[regime])
    main = comparison.main
    methods = comparison.regimes[main]
    runs = {name: [r for r in results if (r.regime, r.method) == (main, name)] for name in methods}
    yield times(main, methods)
    yield shares(main, {name: runs[name] for name in _shown(methods)[:2]})
    yield node_losses(main, {name: runs[name] for name in _shown(methods)[:3]})
    yield harm(main, methods)
    yield staleness({name: [r for r in results if (r.regime, r.method) == (name, OURS)] for name in comparison.regimes})
    if any(effect(methods, ablation) for ablation in ABLATIONS):
        yield ablations(main, methods)
    yield cost(main, methods)


def _shown(methods: Mapping[str, MethodSummary]) -> list[str]:
    """The few methods that curves show: those with a colour of their own first."""
    named = [name for name in COLORS if name in methods]
    return (named + [name for name in methods if name not in COLORS])[:MOST_CURVES]
