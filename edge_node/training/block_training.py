"""Local training on a model of blocks: the same steps as base_model/training.py, in bounded memory.

A step's examples go through the model in portions, so that long ones cost time and not memory. It does not know where
examples come from, or what becomes of the result.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from base_model.descent import OnStep, TrainingResult, descend, learning, orders, result_of
from base_model.settings import TrainingConfig
from base_model.tokens import Encoded, collate
from edge_node.training.block_model import BlockModel
from schemas.adapter import Adapter

PORTION = 1024  # tokens that go through the model at once, or one example: about 50 kB each while a layer is run again


def train_blocks(
    model: BlockModel, adapter: Adapter, examples: Sequence[Encoded], config: TrainingConfig, on_step: OnStep
) -> TrainingResult:
    """Train a copy of `adapter` on the examples; the model is left with the trained adapter on it.

    The losses are those of the answers alone, without what `config` adds to stay near the start.
    """
    if not examples:
        raise ValueError("train_blocks needs at least one example")
    model.apply(adapter)
    steps = list(orders(len(examples), config))
    features = _features(model, examples, sorted(set(chain(*steps))), config)

    def leave_gradients(chosen: Sequence[int]) -> float:
        answer_tokens, loss = sum(len(examples[index].answer) for index in chosen), 0.0
        for portion in _portions(examples, chosen):
            batch = collate([examples[index] for index in portion], padding=0)
            then = torch.stack([features[index] for index in portion]) if features else None
            loss += model.leave_gradients(batch, answer_tokens, then, config.representation_penalty / len(chosen))
        return loss

    trained = learning(model.factors, config)
    for name, factor in model.factors.items():
        factor.requires_grad_(name in trained)
    losses = descend(trained, steps, leave_gradients, config, on_step)
    return result_of(model.read(), losses, config, len(examples))


def mean_loss(model: BlockModel, adapter: Adapter, examples: Sequence[Encoded]) -> float:
    """Mean loss over all answer tokens of the examples under this adapter, in nats: long answers count for more."""
    model.apply(adapter)
    portions = _portions(examples, range(len(examples)))
    found = [model.losses(collate([examples[index] for index in portion], padding=0)) for portion in portions]
    return torch.cat(found).double().mean().item()


def _features(
    model: BlockModel, examples: Sequence[Encoded], chosen: Sequence[int], config: TrainingConfig
) -> dict[int, Tensor]:
    """Features (hidden,) of each prompt as the job begins, if the penalty (AlignFed, equation 3) looks back at them."""
    found: dict[int, Tensor] = {}
    for portion in _portions(examples, chosen) if config.representation_penalty else []:
        rows = model.features(collate([examples[index] for index in portion], padding=0))
        found |= dict(zip(portion, rows, strict=True))
    return found


def _portions(examples: Sequence[Encoded], chosen: Sequence[int]) -> list[list[int]]:
    portions: list[list[int]] = []
    tokens = 0
    for index in chosen:
        tokens += len(examples[index])
        if not portions or tokens > PORTION:
            portions.append([])
            tokens = len(examples[index])
        portions[-1].append(index)
    return portions
