"""Local LoRA training: an adapter and private examples in, a better adapter out.

Only the factors learn. Every run is seeded and touches no global random state, so a job can be repeated exactly. It
does not know versions, deltas or the network.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor
from torch.nn import Parameter

from base_model.descent import OnStep, TrainingResult, descend, learning, orders, result_of
from base_model.examples import Example
from base_model.features import prompt_features
from base_model.forward import forward
from base_model.language_model import LanguageModel
from base_model.loss import cross_entropies
from base_model.settings import TrainingConfig
from base_model.tokens import Batch, collate, pooled
from schemas.adapter import Adapter


def train(
    model: LanguageModel, adapter: Adapter, examples: Sequence[Example], config: TrainingConfig, on_step: OnStep
) -> TrainingResult:
    """Train a copy of `adapter` on the examples; the model is left with the trained adapter on it.

    The losses are those of the answers alone, without what `config` adds to stay near the start.
    """
    if not examples:
        raise ValueError("train needs at least one example")
    model.apply(adapter)
    steps = list(orders(len(examples), config))
    features = _features(model, [examples[index] for index in dict.fromkeys(chain(*steps))], config)

    def leave_gradients(chosen: Sequence[int]) -> float:
        return _backward(model, [examples[index] for index in chosen], features, config)

    with _trained_factors(model, config) as parameters:
        losses = descend(parameters, steps, leave_gradients, config, on_step)
    return result_of(model.read(), losses, config, len(examples))


def answer_losses(model: LanguageModel, batch: Batch) -> Tensor:
    """Loss in nats of every answer token of the batch, shape (answer tokens,), over the whole vocabulary."""
    return losses_of(forward(model, batch, batch.predicting).logits, batch)


def losses_of(logits: Tensor, batch: Batch) -> Tensor:
    """Loss in nats of every answer token of the batch, shape (answer tokens,), from their logits."""
    return cross_entropies(logits, batch.targets.to(logits.device))


def _features(model: LanguageModel, examples: Sequence[Example], config: TrainingConfig) -> dict[Example, Tensor]:
    """Features (hidden,) of each prompt as the job begins, if the penalty looks back at them."""
    if not config.representation_penalty:
        return {}
    rows = prompt_features(model, [model.encode(example) for example in examples])
    return dict(zip(examples, rows, strict=True))


@contextmanager
def _trained_factors(model: LanguageModel, config: TrainingConfig) -> Iterator[dict[str, Parameter]]:
    """The factors that learn; the others take no gradient meanwhile, and so cost none."""
    trained = learning(model.factors, config)
    for name, factor in model.factors.items():
        factor.requires_grad_(name in trained)
    try:
        yield trained
    finally:
        for factor in model.factors.values():
            factor.grad = None
            factor.requires_grad_(True)


def _backward(
    model: LanguageModel, examples: Sequence[Example], features: dict[Example, Tensor], config: TrainingConfig
) -> float:
    """Leave the gradients of this step on the factors; the loss in nats per answer token, penalty not counted."""
    batch = collate([model.encode(example) for example in examples], model.padding)
    passed = forward(model, batch, batch.predicting)
    loss = objective = losses_of(passed.logits, batch).mean()
    if config.representation_penalty:  # AlignFed, equation (3)
        then = torch.stack([features[example] for example in examples])
        distances = (pooled(passed.hidden, batch) - then).square().sum(dim=-1)
        objective = loss + config.representation_penalty * distances.mean()
    objective.backward()  # type: ignore[no-untyped-call]
    return loss.item()
