"""What a model with an adapter answers: loss on the expected answers, and the answers it writes by itself.

Greedy and batched, so the same model and examples give the same answers. It does not know what the answers mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from base_model.examples import Example
from base_model.language_model import LanguageModel
from base_model.tokens import Encoded, collate, collate_prompts, encode
from base_model.training import answer_losses
from schemas.adapter import Adapter

LOSS_BATCH = 8  # logits over the whole vocabulary: about 50 MB at this size
ANSWER_BATCH = 32

OnProgress = Callable[[int, int], None]
"""Called as on_progress(done, total) in examples; loss and answers count as two passes."""


@dataclass(frozen=True)
class Score:
    """How well answers match: mean loss in nats per answer token, share of exact matches, and the answers written."""

    loss: float
    exact_match: float
    answers: tuple[str, ...]


def evaluate(model: LanguageModel, adapter: Adapter, examples: Sequence[Example], on_progress: OnProgress) -> Score:
    """Score the model with this adapter on examples; answers come in the order of the examples."""
    model.apply(adapter)
    encoded = [encode(model.tokenizer, example) for example in examples]
    total = 2 * len(encoded)
    with torch.inference_mode():
        loss = _mean_loss(model, encoded, lambda done: on_progress(done, total))
        answers = _answers(model, encoded, lambda done: on_progress(len(encoded) + done, total))
    pairs = zip(answers, examples, strict=True)
    exact = [answer == example.completion.strip() for answer, example in pairs]
    return Score(loss, sum(exact) / len(exact), tuple(answers))


def _mean_loss(model: LanguageModel, encoded: list[Encoded], on_done: Callable[[int], None]) -> float:
    losses = []
    done = 0
    for chosen in _by_length(encoded, LOSS_BATCH):
        losses.append(answer_losses(model, collate([encoded[i] for i in chosen], model.padding)))
        done += len(chosen)
        on_done(done)
    return float(torch.cat(losses).double().mean())


def _answers(model: LanguageModel, encoded: list[Encoded], on_done: Callable[[int], None]) -> list[str]:
    """Greedy answers, stopped at end of text or a little after the longest expected answer."""
    limit = max(len(example.answer) for example in encoded) + 8
    answers = [""] * len(encoded)
    done = 0
    for chosen in _by_length(encoded, ANSWER_BATCH):
        batch = collate_prompts([encoded[i].prompt for i in chosen], model.padding)
        written = model.network.generate(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            max_new_tokens=limit,
            do_sample=False,
            pad_token_id=model.padding,
            eos_token_id=model.tokenizer.eos_token_id,
        )
        texts = model.tokenizer.batch_decode(written[:, batch.ids.shape[1] :], skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            answers[index] = text.strip()
        done += len(chosen)
        on_done(done)
    return answers


def _by_length(encoded: list[Encoded], size: int) -> list[list[int]]:
    """Indices in batches of rows of like length, so that little is computed on padding."""
    order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i].prompt) + len(encoded[i].answer), i))
    return [order[start : start + size] for start in range(0, len(order), size)]
