"""One simulated run, from its configuration to its record."""

import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from statistics import median

from base_model.language_model import Dtype, LanguageModel
from base_model.reference import default_cache, resolve
from coordinator.calibration import CalibrationSet
from coordinator.calibrator import Calibrator
from coordinator.privacy.terms import fitted
from coordinator.state import CalibrationTerms, FederationConfig, Limits
from coordinator.strategies import Strategy
from simulation.centralised import train_centrally
from simulation.federation import Federation, Fleet, Released, Version
from simulation.judge import Judge
from simulation.learner import Learner, ranks_of
from simulation.record import HARM, Record, by_stage, harmful, shares, staleness
from simulation.result import Final, Point, RunResult
from simulation.schedule import presences
from simulation.server import ModelServer
from simulation.settings import SimulationConfig
from simulation.task import Task

FEDERATION = "simulated"
FROZEN_CACHE_MB = 1024

OnProgress = Callable[[float], None]
"""Called often with the share of the run that is done, 0 to 1; it may raise to abandon the run."""


def simulate(config: SimulationConfig, task: Task, on_progress: OnProgress) -> RunResult:
    """Do the run on the base model it names, which stays loaded for the next one. Raises what `resolve` raises.

    The same configuration and task give the same record, but for what is measured of processor and wall clock.
    """
    return simulate_on(_loaded(config.base_model, config.dtype), config, task, on_progress)


def simulate_on(model: LanguageModel, config: SimulationConfig, task: Task, on_progress: OnProgress) -> RunResult:
    """Do the run on this model, whatever the configuration names; it needs to be on one thread to be repeatable."""
    began, cpu_began = time.perf_counter(), time.process_time()
    if config.strategy is None:
        outcome = _centralised(model, config, task, on_progress)
    else:
        outcome = _federated(model, config, config.strategy, task, on_progress)
    record = outcome.record
    return RunResult(
        method=config.method,
        preset=config.preset,
        regime=config.regime,
        seed=config.seed,
        config=config.model_dump(mode="json"),
        task=digest_of(task),
        commit=commit(),
        points=tuple(record.points),
        final=outcome.final,
        harmful=harmful(record.points, HARM),
        harmful_any=harmful(record.points, 1),
        shares=shares(outcome.uploads, record.weights, presences(config.schedule, list(task.nodes), config.seed)),
        staleness=staleness(record.stale),
        receipts=dict(outcome.receipts),
        releases=dict(record.releases),
        server_time=by_stage(record.server_time),
        server_seconds=by_stage(record.server_seconds),
        job_seconds=outcome.job_seconds,
        cpu_seconds={**outcome.cpu_seconds, "all": time.process_time() - cpu_began},
        seconds=time.perf_counter() - began,
        ended=outcome.ended,
    )


def digest_of(task: Task) -> str:
    """SHA-256 (hex) of every example of a task, and of whose it is."""
    common = {"calibration": task.calibration, "held out": task.held_out}
    private = {f"node {node}": examples for node, examples in task.nodes.items()}
    tests = {f"test {node}": examples for node, examples in task.tests.items()}
    digest = sha256()
    for name, examples in (common | private | tests).items():
        lines = (example.model_dump_json() for example in examples)
        digest.update("\n".join([name, *lines, ""]).encode())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def commit() -> str:
    """The commit of this program, with a plus sign where files have changed since; unknown outside of a checkout.

    Earlier runs that are kept there are no part of the program.
    """
    try:
        program = ("--", ":/", ":(top,exclude)results")
        head, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no", *program)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+" if changed else head


@dataclass
class _Outcome:
    """What a run came to; a federation's, or central training's, which has no traffic."""

    record: Record
    final: Final
    job_seconds: float
    cpu_seconds: dict[str, float]
    ended: str
    uploads: Mapping[str, int] = field(default_factory=dict)
    receipts: Mapping[str, int] = field(default_factory=dict)


def make_federation(
    model: LanguageModel,
    config: SimulationConfig,
    strategy: Strategy,
    task: Task,
    on_news: Callable[[Version | Released], None],
    on_update: Callable[[int, float], None],
) -> Federation:
    """The federation that a configuration describes, before anything has happened; see Federation."""
    calibration = CalibrationSet.cut(task.calibration, config.anchor_examples, config.gate_examples)
    factors = {"trained_factors": strategy.trained_factors}
    training = config.training.model_copy(update=factors)
    anchor = (config.anchor_training or config.training).model_copy(update=factors)
    terms = FederationConfig(
        federation=FEDERATION,
        base_model=model.resolved.digest,
        base_model_name=config.base_model,
        layout=model.layout(config.lora),
        strategy=fitted(strategy) if config.privacy else strategy,
        privacy=config.privacy,
        limits=Limits(nodes=len(task.nodes)),
        calibration=CalibrationTerms(digest=calibration.digest, folds=calibration.folds, training=anchor),
        node_ranks=config.node_ranks,
    )
    nodes = list(task.nodes)
    stays = presences(config.schedule, nodes, config.seed)
    calibrator = Calibrator(model, calibration, anchor)
    return Federation(
        terms,
        Fleet(config.schedule, stays, task.nodes, config.seed),
        Learner(
            model,
            terms,
            training,
            config.seed,
            ranks_of(nodes, (config.lora.rank, *config.node_ranks), config.seed),
            tests=task.tests,
        ),
        ModelServer(calibrator, calibration.folds, training, anchor, config.schedule.server_speed),
        on_news,
        on_update,
    )


def _federated(
    model: LanguageModel, config: SimulationConfig, strategy: Strategy, task: Task, on_progress: OnProgress
) -> _Outcome:
    federation = make_federation(
        model,
        config,
        strategy,
        task,
        lambda news: record.hear(news),
        lambda updates, now: on_progress(_share(config, updates, now)),
    )
    learner = federation.learner
    judge = Judge(model, task, config.measuring, learner.works_with)
    record = Record(judge.loss, config.measuring.every)
    ended = federation.run(model.initial_adapter(config.lora, config.seed), config.updates, config.time)
    record.measure_newest()
    return _Outcome(
        record,
        judge.final(record.served, federation.fleet.presences),
        job_seconds=median(learner.cpu_seconds) if learner.cpu_seconds else 0.0,
        cpu_seconds=_by_part(sum(learner.cpu_seconds), record, judge),
        ended=ended,
        uploads=federation.traffic.uploads,
        receipts=federation.traffic.receipts,
    )


def _centralised(model: LanguageModel, config: SimulationConfig, task: Task, on_progress: OnProgress) -> _Outcome:
    judge = Judge(model, task, config.measuring, lambda _, adapter: adapter)
    record = Record(judge.loss, config.measuring.every)

    def on_point(point: Point) -> None:
        record.points.append(point)
        on_progress(_share(config, point.updates, point.time))

    begun = time.process_time()
    served = train_centrally(model, config, task, judge.loss, on_point)
    training = time.process_time() - begun - judge.cpu_seconds
    final = judge.final(served, presences(config.schedule, list(task.nodes), config.seed))
    return _Outcome(
        record,
        final,
        job_seconds=training / record.points[-1].updates,
        cpu_seconds=_by_part(training, record, judge),
        ended=f"{record.points[-1].updates} steps were made",
    )


def _share(config: SimulationConfig, updates: int, now: float) -> float:
    """How much of the run is over."""
    by_updates = updates / config.updates if config.updates else 0.0
    by_time = now / config.time if config.time else 0.0
    return min(1.0, max(by_updates, by_time))


def _by_part(jobs: float, record: Record, judge: Judge) -> dict[str, float]:
    """Processor seconds: of the nodes, the coordinator, and measuring."""
    server = sum(sum(costs.values()) for costs in record.server_seconds)
    return {"jobs": jobs, "server": server, "measuring": judge.cpu_seconds}


@lru_cache(maxsize=1)
def _loaded(name: str, dtype: Dtype) -> LanguageModel:
    return LanguageModel.load(resolve(name, default_cache()), dtype, threads=1, frozen_cache_mb=FROZEN_CACHE_MB)


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return done.stdout.strip()
