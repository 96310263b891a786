"""The ceiling: one model trained on the examples of all nodes together, as if they were not private.

A step sees as many examples as a node's job, counts as one update, and takes the time of one job. AdamW goes on with a
constant learning rate; what is scored is the running average of the adapters, for a constant rate leaves them noisy.
"""

from collections.abc import Callable
from itertools import chain

from base_model.language_model import LanguageModel
from base_model.training import train
from coordinator.equations import ema_decay
from schemas.adapter import Adapter, weighted_sum
from simulation.result import Point
from simulation.seeds import seed_of
from simulation.settings import SimulationConfig
from simulation.task import Task

MEASURED_EVERY = 4  # updates: as often as a buffer of four makes a version
DECAY = 0.9  # of the running average: longer ones lag behind while much is still learnt

Measure = Callable[[Adapter], float]
"""Held-out loss, nats per answer token."""


def train_centrally(
    model: LanguageModel, config: SimulationConfig, task: Task, measure: Measure, on_point: Callable[[Point], None]
) -> Adapter:
    """Train for as long as the configuration says; the average at the end."""
    first = model.initial_adapter(config.lora, config.seed)
    training = config.training.model_copy(
        update={
            "steps": _steps(config),
            "batch_size": config.training.steps * config.training.batch_size,
            "seed": seed_of(config.seed, "centralised"),
        }
    )
    average, every = first, MEASURED_EVERY * config.measuring.every
    on_point(_point(0, measure(first), measure(first)))

    def after_step(step: int, _: float) -> None:
        nonlocal average
        adapter = model.read()
        kept = ema_decay(step, DECAY)
        average = weighted_sum([average, adapter], [kept, 1 - kept])
        if step % every == 0 or step == training.steps:
            on_point(_point(step, measure(average), measure(adapter)))
            model.apply(adapter)  # measuring has put others on it

    pooled = list(chain.from_iterable(task.nodes.values()))
    train(model, first, pooled, training, after_step)
    return average


def _steps(config: SimulationConfig) -> int:
    limits = [limit for limit in (config.updates, config.time) if limit is not None]
    return max(1, int(min(limits)))


def _point(step: int, loss: float, head_loss: float) -> Point:
    return Point(time=float(step), updates=step, bytes=0, fetched=0, version=step, loss=loss, head_loss=head_loss)
