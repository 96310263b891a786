"""Local LoRA training: an adapter and private examples in, a better adapter out.

Only the factors learn. Every run is seeded and touches no global random state, so a job can be repeated exactly. It
does not know versions, deltas or the network.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from base_model.examples import Example
from base_model.features import pooled, prompt_features
from base_model.forward import forward
from base_model.language_model import LanguageModel
from base_model.loss import cross_entropies
from base_model.settings import TrainingConfig
from base_model.tokens import Batch, collate
from schemas.adapter import A_SUFFIX, B_SUFFIX, Adapter

OnStep = Callable[[int, float], None]
"""Called after each step with its number, from 1, and its loss; it may raise to abandon the run."""


@dataclass(frozen=True)
class TrainingResult:
    """What a job made: the adapter at its end, its losses (nats per answer token), and how much it saw."""

    adapter: Adapter
    mean_loss: float
    last_loss: float
    steps: int
    examples_seen: int


def train(
    model: LanguageModel, adapter: Adapter, examples: Sequence[Example], config: TrainingConfig, on_step: OnStep
) -> TrainingResult:
    """Train a copy of `adapter` on the examples; the model is left with the trained adapter on it.

    The losses are those of the answers alone, without what `config` adds to stay near the start.
    """
    if not examples:
        raise ValueError("train needs at least one example")
    model.apply(adapter)
    orders = list(_orders(len(examples), config))
    start = _start(model, [examples[index] for index in dict.fromkeys(chain(*orders))], config)
    losses = []
    with _trained_factors(model, config) as parameters:
        optimizer = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, weight_decay=0.0)
        for step, chosen in enumerate(orders, start=1):
            losses.append(_backward(model, [examples[index] for index in chosen], start, config))
            _pull_back(parameters, start, config)
            torch.nn.utils.clip_grad_norm_(parameters.values(), config.gradient_clip)
            optimizer.step()
            optimizer.zero_grad()
            on_step(step, losses[-1])
    return TrainingResult(
        adapter=model.read(),
        mean_loss=float(np.mean(losses)),
        last_loss=losses[-1],
        steps=config.steps,
        examples_seen=config.steps * min(config.batch_size, len(examples)),
    )


def answer_losses(model: LanguageModel, batch: Batch) -> Tensor:
    """Loss in nats of every answer token of the batch, shape (answer tokens,), over the whole vocabulary."""
    return losses_of(forward(model, batch, batch.predicting).logits, batch)


def losses_of(logits: Tensor, batch: Batch) -> Tensor:
    """Loss in nats of every answer token of the batch, shape (answer tokens,), from their logits."""
    return cross_entropies(logits, batch.targets.to(logits.device))


@dataclass(frozen=True)
class _Start:
    """The snapshot a job began with, as far as the options look back at it."""

    factors: dict[str, Tensor]
    features: dict[Example, Tensor]  # (hidden,) of each prompt


def _start(model: LanguageModel, examples: Sequence[Example], config: TrainingConfig) -> _Start:
    factors = {name: factor.detach().clone() for name, factor in model.factors.items()} if config.proximal else {}
    features: dict[Example, Tensor] = {}
    if config.representation_penalty:
        rows = prompt_features(model, [model.encode(example) for example in examples])
        features = dict(zip(examples, rows, strict=True))
    return _Start(factors, features)


@contextmanager
def _trained_factors(model: LanguageModel, config: TrainingConfig) -> Iterator[dict[str, Parameter]]:
    """The factors that learn; the others take no gradient meanwhile, and so cost none."""
    fixed = {"both": None, "A": B_SUFFIX, "B": A_SUFFIX}[config.trained_factors]
    trained = {name: f for name, f in model.factors.items() if fixed is None or not name.endswith(fixed)}
    for name, factor in model.factors.items():
        factor.requires_grad_(name in trained)
    try:
        yield trained
    finally:
        for factor in model.factors.values():
            factor.grad = None
            factor.requires_grad_(True)


def _backward(model: LanguageModel, examples: Sequence[Example], start: _Start, config: TrainingConfig) -> float:
    """Leave the gradients of this step on the factors; the loss in nats per answer token, penalty not counted."""
    batch = collate([model.encode(example) for example in examples], model.padding)
    passed = forward(model, batch, batch.predicting)
    loss = objective = losses_of(passed.logits, batch).mean()
    if config.representation_penalty:  # AlignFed, equation (3)
        then = torch.stack([start.features[example] for example in examples])
        distances = (pooled(passed.hidden, batch) - then).square().sum(dim=-1)
        objective = loss + config.representation_penalty * distances.mean()
    objective.backward()  # type: ignore[no-untyped-call]
    return loss.item()


def _pull_back(parameters: dict[str, Parameter], start: _Start, config: TrainingConfig) -> None:
    """Add the gradient of mu/2 ||theta - theta_start||^2 (FedProx, arXiv 1812.06127, equation 2)."""
    if config.proximal:
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            parameter.grad.add_(parameter.detach() - start.factors[name], alpha=config.proximal)


def _orders(count: int, config: TrainingConfig) -> Iterator[list[int]]:
    """Indices of each step's examples: every example once, in a seeded order, before any comes again."""
    generator = np.random.default_rng(config.seed)
    waiting: list[int] = []
    size = min(config.batch_size, count)
    for _ in range(config.steps):
        if len(waiting) < size:
            waiting = generator.permutation(count).tolist()
        yield waiting[:size]
        waiting = waiting[size:]
