"""What a set of runs says, method by method: everything in `summary.json`, and all that documents are written from.

It knows finished runs and numbers. What the numbers are asked to be is in verdicts.py.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

from pydantic import BaseModel, ConfigDict

from simulation.comparison.statistics import Interval, Number, interval
from simulation.result import ByStage, RunResult
from simulation.settings import Measuring

REFERENCES = ("fedbuff_2", "fedbuff_ema", "fedbuff_1")  # whose losses are the targets, unless they are given
TARGET_STEP = 0.05  # targets are rounded up to a multiple


class Settings(BaseModel):
    """What a summary needs of a run's configuration."""

    targets: tuple[float, ...] = ()
    measuring: Measuring = Measuring()


class TimeTo(BaseModel):
    """When the served loss was first at or below a target, in jobs of the fastest node; null: it never was."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    median: Number
    low: Number
    high: Number
    reached: int
    seeds: dict[int, Number]


class ServerSeconds(Interval):
    """CPU seconds of the coordinator per version, and the same by stage."""

    stages: dict[str, Interval]


class MethodSummary(BaseModel):
    """One method in one regime, over all its seeds. Losses are nats per answer token on held-out examples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seeds: int
    nodes: int
    every: int
    time_to: dict[str, TimeTo]
    head_time_to: dict[str, TimeTo]
    start_loss: Interval
    final_loss: Interval
    loss_at_equal_time: Interval
    worst_quarter: Interval
    worst_tenth: Interval
    slowest_quarter: Interval
    jain: Interval
    slow_share: Interval
    slow_upload_share: Interval
    harmful: Interval
    intent_accuracy: Interval | None
    exact_match: Interval | None
    server_seconds: ServerSeconds
    server_in_jobs: Interval
    staleness: Interval
    bytes: Interval
    updates: Interval
    end_time: Interval
    seconds: Interval


Regimes = dict[str, dict[str, MethodSummary]]


def summarise(runs: Iterable[RunResult], targets: Mapping[str, Sequence[float]]) -> Regimes:
    """Every regime's methods, in the order of the runs. `targets` are losses by regime."""
    ordered: dict[str, dict[str, dict[int, RunResult]]] = {}
    for run in runs:
        ordered.setdefault(run.regime, {}).setdefault(run.method, {})[run.seed] = run
    return {
        regime: {
            method: _method(by_seed, targets[regime], _equal_times(methods)) for method, by_seed in methods.items()
        }
        for regime, methods in ordered.items()
    }


def reference_of(runs: Sequence[RunResult]) -> str:
    """The method whose losses are a regime's targets: the first of REFERENCES that was run, else the first method."""
    methods = list(dict.fromkeys(run.method for run in runs))
    return next((name for name in REFERENCES if name in methods), methods[0])


def fixed_targets(runs: Sequence[RunResult]) -> tuple[float, ...]:
    """The losses that were set for one regime before it was run; nothing where none were."""
    return Settings.model_validate(runs[0].config).targets


def derive_targets(runs: Sequence[RunResult]) -> tuple[float, ...]:
    """Two losses of one regime: what its reference serves after half of its run, and at the end.

    Medians over its seeds, rounded up.
    """
    its = [run for run in runs if run.method == reference_of(runs)]
    half = median([loss_at(run, run.points[-1].time / 2) for run in its])
    end = median([run.points[-1].loss for run in its])
    return tuple(dict.fromkeys(math.ceil(loss / TARGET_STEP - 1e-9) * TARGET_STEP for loss in (half, end)))


def first_time(points: Iterable[tuple[float, float]], target: float) -> float:
    """The first time of a (time, loss) whose loss is at or below the target; infinite when there is none.

    Losses change in steps, from version to version, so nothing is interpolated: at that time the nodes had it.
    """
    return next((time for time, loss in points if loss <= target), math.inf)


def served(run: RunResult) -> list[tuple[float, float]]:
    """The loss of what nodes serve, over time."""
    return [(point.time, point.loss) for point in run.points]


def head(run: RunResult) -> list[tuple[float, float]]:
    """The loss of what nodes train from, over time."""
    return [(point.time, point.head_loss) for point in run.points]


def loss_at(run: RunResult, time: float) -> float:
    """The loss that was served at a time: the last point's at or before it."""
    return [point.loss for point in run.points if point.time <= time][-1]


def slow_nodes(run: RunResult) -> tuple[str, ...]:
    """The slowest quarter of the nodes, at least one; among equals those named first."""
    by_duration = sorted(run.shares, key=lambda node: (-run.shares[node].speed, node))
    return tuple(by_duration[: max(1, len(by_duration) // 4)])


def _equal_times(methods: Mapping[str, Mapping[int, RunResult]]) -> dict[int, float]:
    """For each seed, the time at which its first run ended: until then every method has a loss."""
    times: dict[int, float] = {}
    for by_seed in methods.values():
        for seed, run in by_seed.items():
            times[seed] = min(times.get(seed, math.inf), run.points[-1].time)
    return times


def _method(
    by_seed: Mapping[int, RunResult], targets: Sequence[float], equal_times: Mapping[int, float]
) -> MethodSummary:
    def over(value: Callable[[RunResult], float]) -> Interval:
        return interval({seed: value(run) for seed, run in by_seed.items()})

    return MethodSummary(
        seeds=len(by_seed),
        nodes=min(len(run.final.nodes) for run in by_seed.values()),
        every=max(Settings.model_validate(run.config).measuring.every for run in by_seed.values()),
        time_to={_key(target): _time_to(over(_reaching(served, target))) for target in targets},
        head_time_to={_key(target): _time_to(over(_reaching(head, target))) for target in targets},
        start_loss=over(lambda run: run.points[0].loss),
        final_loss=over(lambda run: run.final.loss),
        loss_at_equal_time=over(lambda run: loss_at(run, equal_times[run.seed])),
        worst_quarter=over(lambda run: run.final.worst_quarter),
        worst_tenth=over(lambda run: run.final.worst_tenth),
        slowest_quarter=over(lambda run: run.final.slowest_quarter),
        jain=over(lambda run: run.final.jain),
        slow_share=over(lambda run: math.fsum(run.shares[node].weight for node in slow_nodes(run))),
        slow_upload_share=over(lambda run: math.fsum(run.shares[node].uploads for node in slow_nodes(run))),
        harmful=over(lambda run: run.harmful),
        intent_accuracy=_accuracy(by_seed, lambda run: run.final.intent_accuracy),
        exact_match=_accuracy(by_seed, lambda run: run.final.exact_match),
        server_seconds=_server_seconds(over),
        server_in_jobs=over(lambda run: sum(_stages(run).values()) / run.job_seconds if run.job_seconds else 0.0),
        staleness=over(lambda run: run.staleness.mean or 0.0),
        bytes=over(lambda run: run.points[-1].bytes),
        updates=over(lambda run: run.points[-1].updates),
        end_time=over(lambda run: run.points[-1].time),
        seconds=over(lambda run: run.seconds),
    )


def _reaching(curve: Callable[[RunResult], list[tuple[float, float]]], target: float) -> Callable[[RunResult], float]:
    return lambda run: first_time(curve(run), target)


def _time_to(times: Interval) -> TimeTo:
    reached = sum(math.isfinite(time) for time in times.values.values())
    return TimeTo(median=times.median, low=times.low, high=times.high, reached=reached, seeds=times.values)


def _accuracy(by_seed: Mapping[int, RunResult], value: Callable[[RunResult], float | None]) -> Interval | None:
    known = {seed: accuracy for seed, run in by_seed.items() if (accuracy := value(run)) is not None}
    return interval(known) if known else None


def _server_seconds(over: Callable[[Callable[[RunResult], float]], Interval]) -> ServerSeconds:
    total = over(lambda run: math.fsum(_stages(run).values()))
    stages = {stage: over(_in_stage(stage)) for stage in ByStage.model_fields}
    return ServerSeconds(**dict(total), stages=stages)


def _in_stage(stage: str) -> Callable[[RunResult], float]:
    return lambda run: _stages(run)[stage]


def _stages(run: RunResult) -> dict[str, float]:
    return run.server_seconds.model_dump()


def _key(target: float) -> str:
    return f"{target:g}"
