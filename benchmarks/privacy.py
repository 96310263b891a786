"""What client-level differential privacy costs: the loss of a small federation at several noise multipliers.

    python benchmarks/privacy.py [--updates 16] [--methods ffa_lora] [--json FILE]

Real training in virtual time, as `alignfed simulate` does it, without an anchor, in which no node has a part. Deltas
are shortened to the median norm of some first jobs. Losses are nats per answer token on held-out examples: of what is
served, and of the head that nodes train from. Epsilon is at most that of the node with the most updates.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from base_model.language_model import LanguageModel
from base_model.reference import DEFAULT_NAME, default_cache, resolve
from base_model.training import train
from coordinator.privacy.accounting import epsilon
from coordinator.privacy.terms import PrivacyTerms
from coordinator.strategies import FedBuff, FFALora, Strategy
from examples.smart_home.tasks import make_simulated_task
from schemas.adapter import LoraConfig
from simulation.comparison.regimes import TaskSpec
from simulation.run import simulate_on
from simulation.settings import Measuring, SimulationConfig
from simulation.task import Task

MULTIPLIERS = (None, 0.0, 0.1, 0.5, 1.0)
DELTA = 1e-5
NODES, BUFFER, PROBED = 16, 8, 2
STRATEGIES: Mapping[str, Strategy] = {
    "ffa_lora": FFALora(buffer_size=BUFFER, step=2),
    "fedbuff": FedBuff(buffer_size=BUFFER, step=2),
}
LORA = LoraConfig(rank=4, alpha=8, target_modules=("q_proj", "v_proj"), last_layers=6)


@dataclass(frozen=True)
class Outcome:
    """One run; no noise multiplier means no privacy at all, and no epsilon that nothing is promised."""

    method: str
    noise_multiplier: float | None
    clip_norm: float
    loss_before: float
    served_loss: float
    head_loss: float
    epsilon: float | None
    versions: int


def main() -> None:
    """Run all and print a table."""
    parser = argparse.ArgumentParser(description="What privacy costs.")
    parser.add_argument("--updates", type=int, default=16)
    parser.add_argument("--methods", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = LanguageModel.load(resolve(DEFAULT_NAME, default_cache()), "bfloat16", threads=1, frozen_cache_mb=256)
    task = make_simulated_task(TaskSpec(homes=NODES, seed=1))
    outcomes = []
    print("method    noise  clip norm  loss before  served    head  epsilon at 1e-05")
    for method in arguments.methods:
        strategy = STRATEGIES[method]
        clip_norm = usual_norm(model, strategy, task)
        for multiplier in MULTIPLIERS:
            outcome = run(model, task, method, strategy, clip_norm, multiplier, arguments.updates)
            outcomes.append(outcome)
            print(line(outcome), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")


def configuration(method: str, strategy: Strategy, privacy: PrivacyTerms | None, updates: int) -> SimulationConfig:
    """A short run, measured at its end."""
    measuring = Measuring(every=1000, held_out=64, generated=1, own_tests=1)
    return SimulationConfig(
        method=method,
        strategy=strategy,
        privacy=privacy,
        updates=updates,
        seed=1,
        lora=LORA,
        anchor_examples=0,
        gate_examples=0,
        measuring=measuring,
    )


def usual_norm(model: LanguageModel, strategy: Strategy, task: Task) -> float:
    """The median norm of the deltas of a few nodes' first jobs."""
    config = configuration("norms", strategy, None, 1)
    training = config.training.model_copy(update={"trained_factors": strategy.trained_factors})
    start = model.initial_adapter(LORA, config.seed)
    jobs = (train(model, start, task.nodes[node], training, lambda *_: None) for node in list(task.nodes)[:PROBED])
    return median((job.adapter - start).norm for job in jobs)


def run(
    model: LanguageModel,
    task: Task,
    method: str,
    strategy: Strategy,
    clip_norm: float,
    multiplier: float | None,
    updates: int,
) -> Outcome:
    """One federation."""
    privacy = None if multiplier is None else PrivacyTerms(clip_norm=clip_norm, noise_multiplier=multiplier)
    result = simulate_on(model, configuration(method, strategy, privacy, updates), task, lambda _: None)
    most = max(share.uploads for share in result.shares.values()) * result.points[-1].updates
    # at most: a node whose weight was below the heaviest has spent less
    spent = epsilon(most / multiplier**2, DELTA) if multiplier else None
    first, last = result.points[0], result.points[-1]
    return Outcome(method, multiplier, clip_norm, first.loss, last.loss, last.head_loss, spent, last.version)


def line(outcome: Outcome) -> str:
    """A row of the table."""
    noise = "off" if outcome.noise_multiplier is None else f"{outcome.noise_multiplier:g}"
    promise = "none" if outcome.epsilon is None else f"{outcome.epsilon:.3g}"
    losses = f"{outcome.loss_before:11.3f}  {outcome.served_loss:6.3f}  {outcome.head_loss:6.3f}"
    return f"{outcome.method:8}  {noise:>5}  {outcome.clip_norm:9.3f}  {losses}  {promise}"


if __name__ == "__main__":
    main()
