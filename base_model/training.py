"""Local LoRA training: an adapter and private examples in, a better adapter out.

Only the factors learn. Every run is seeded and touches no global random state, so a job can be repeated exactly. It
does not know versions, deltas or the network.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from base_model.examples import Example
from base_model.language_model import LanguageModel
from base_model.settings import TrainingConfig
from base_model.tokens import Batch, collate, encode
from schemas.adapter import Adapter

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
    """Train a copy of `adapter` on the examples; the model is left with the trained adapter on it."""
    if not examples:
        raise ValueError("train needs at least one example")
    model.apply(adapter)
    parameters = model.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
    losses = []
    for step, chosen in enumerate(_orders(len(examples), config), start=1):
        batch = collate([encode(model.tokenizer, examples[index]) for index in chosen], model.padding)
        loss = answer_losses(model, batch).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
        optimizer.step()
        losses.append(loss.item())
        on_step(step, losses[-1])
    optimizer.zero_grad()
    return TrainingResult(
        adapter=model.read(),
        mean_loss=float(np.mean(losses)),
        last_loss=losses[-1],
        steps=config.steps,
        examples_seen=config.steps * min(config.batch_size, len(examples)),
    )


def answer_losses(model: LanguageModel, batch: Batch) -> Tensor:
    """Loss in nats of every answer token of the batch, shape (answer tokens,), over the whole vocabulary."""
    answer_columns = batch.answer_mask.shape[1]
    with model.logits_only_at(batch.answer_mask):
        # the last token predicts nothing, and columns before the answers predict only the prompt
        logits = model.network(
            input_ids=batch.ids[:, :-1],
            attention_mask=batch.mask[:, :-1],
            position_ids=batch.positions[:, :-1],
            logits_to_keep=answer_columns,
            use_cache=False,
        ).logits[0]
    targets = batch.ids[:, -answer_columns:][batch.answer_mask]
    return cross_entropy(logits.float(), targets, reduction="none")


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
