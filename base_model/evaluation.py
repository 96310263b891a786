"""What a model with an adapter answers: loss on the expected answers, and the answers it writes by itself.

Greedy and batched, so the same model and examples give the same answers. It does not know what the answers mean.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from base_model.examples import Example
from base_model.features import hidden_states, prompt_features
from base_model.forward import forward
from base_model.language_model import LanguageModel
from base_model.tokens import Batch, Encoded, by_length, collate, collate_prompts
from base_model.training import losses_of
from schemas.adapter import Adapter

LOSS_BATCH = 8  # logits over the whole vocabulary: about 50 MB at this size
ANSWER_BATCH = 32
MORE_TOKENS = 8  # beyond the longest expected answer, before a written answer is cut

OnProgress = Callable[[int, int], None]
"""Called as on_progress(done, total) in examples; loss and answers count as two passes."""


@dataclass(frozen=True)
class Score:
    """How well answers match: mean loss in nats per answer token, share of exact matches, and the answers written."""

    loss: float
    exact_match: float
    answers: tuple[str, ...]


@dataclass(frozen=True)
class _Forced:
    """What the model makes of one expected answer: each token's loss in nats, and the token it would have written."""

    losses: NDArray[np.float64]
    greedy: list[int]


def evaluate(model: LanguageModel, adapter: Adapter, examples: Sequence[Example], on_progress: OnProgress) -> Score:
    """Score the model with this adapter on examples; answers come in the order of the examples."""
    model.apply(adapter)
    encoded = [model.encode(example) for example in examples]
    total = 2 * len(encoded)
    forced = _forced(model, encoded, lambda done: on_progress(done, total))
    written = _answers(model, encoded, forced, lambda done: on_progress(len(encoded) + done, total))
    pairs = zip(written, examples, strict=True)
    exact = [answer == example.completion.strip() for answer, example in pairs]
    return Score(_mean_loss(forced), sum(exact) / len(exact), tuple(written))


def losses(model: LanguageModel, adapter: Adapter, examples: Sequence[Example]) -> float:
    """Mean loss over all answer tokens of the examples, in nats: long answers count for more."""
    model.apply(adapter)
    return float(np.concatenate(_token_losses(model, examples)).mean())


def example_losses(model: LanguageModel, adapter: Adapter, examples: Sequence[Example]) -> tuple[float, ...]:
    """Mean loss of each example's answer tokens, in nats, in the order of the examples."""
    model.apply(adapter)
    return tuple(float(tokens.mean()) for tokens in _token_losses(model, examples))


def answers(model: LanguageModel, adapter: Adapter, examples: Sequence[Example]) -> tuple[str, ...]:
    """What the model writes greedily after each prompt, in the order of the examples; most of it without generating.

    One pass over the expected answer gives, at each of its tokens, the token that the model finds likeliest after the
    prompt and the expected tokens before. While all of those agree with the answer, greedy generation has seen just
    these tokens, by induction: so it writes the expected tokens up to the first disagreement, and there the token that
    the pass found. An answer without disagreement is therefore the greedy answer, and generation has only to go on
    after the first one. (Likeliest up to rounding, which is coarse in bfloat16: where two tokens are as good as equal,
    the pass and generation may differ, as two generations in other batches may.)
    """
    model.apply(adapter)
    encoded = [model.encode(example) for example in examples]
    return tuple(_answers(model, encoded, _forced(model, encoded, _unheard), _unheard))


def features(model: LanguageModel, adapter: Adapter, examples: Sequence[Example]) -> NDArray[np.float32]:
    """Features of each prompt, shape (examples, hidden): last hidden state, the mean over the prompt's tokens."""
    model.apply(adapter)
    rows = prompt_features(model, [model.encode(example) for example in examples]).cpu().numpy()
    return np.asarray(rows, dtype=np.float32)


def module_inputs(
    model: LanguageModel, adapter: Adapter, examples: Sequence[Example]
) -> dict[str, NDArray[np.float32]]:
    """What enters each adapted module: shape (tokens of all examples but each one's last, in_features), float32.

    Keys are the names of the layout's tensors up to `.lora_A.weight`; rows are the same tokens in every module.
    """
    model.apply(adapter)
    encoded = [model.encode(example) for example in examples]
    modules = model.adapted_modules()
    latest: dict[str, Tensor] = {}
    rows: dict[str, list[Tensor]] = {name: [] for name in modules}
    hooks = [module.register_forward_pre_hook(partial(_note, latest, name)) for name, module in modules.items()]
    try:
        with torch.no_grad():
            for chosen in _batches(model, encoded):
                passed = hidden_states(model, collate([encoded[index] for index in chosen], model.padding))
                for name in modules:
                    rows[name].append(latest[name][passed.packed.real].float().cpu())
    finally:
        for hook in hooks:
            hook.remove()
    return {name: np.asarray(torch.cat(seen).numpy(), dtype=np.float32) for name, seen in rows.items()}


def _note(latest: dict[str, Tensor], name: str, module: torch.nn.Module, inputs: tuple[Tensor]) -> None:
    latest[name] = inputs[0]


def _unheard(done: int) -> None:
    """Nobody watches."""


def _mean_loss(forced: list[_Forced]) -> float:
    return float(np.concatenate([one.losses for one in forced]).mean())


@torch.inference_mode()
def _token_losses(model: LanguageModel, examples: Sequence[Example]) -> list[NDArray[np.float64]]:
    """The loss of each answer token of each example."""
    encoded = [model.encode(example) for example in examples]
    made: dict[int, NDArray[np.float64]] = {}
    for chosen, batch, logits in _passes(model, encoded):
        made |= zip(chosen, _by_example(losses_of(logits, batch).double(), chosen, encoded), strict=True)
    return [made[index] for index in range(len(encoded))]


@torch.inference_mode()
def _forced(model: LanguageModel, encoded: list[Encoded], on_done: Callable[[int], None]) -> list[_Forced]:
    """One pass over each expected answer."""
    made: dict[int, _Forced] = {}
    for chosen, batch, logits in _passes(model, encoded):
        found = _by_example(losses_of(logits, batch).double(), chosen, encoded)
        greedy = _by_example(logits.argmax(dim=-1), chosen, encoded)
        for index, loss, tokens in zip(chosen, found, greedy, strict=True):
            made[index] = _Forced(loss, tokens.tolist())
        on_done(len(made))
    return [made[index] for index in range(len(encoded))]


def _passes(model: LanguageModel, encoded: list[Encoded]) -> Iterator[tuple[list[int], Batch, Tensor]]:
    """Batch by batch: which examples, their batch, and the logits (answer tokens, vocabulary) that predict them."""
    for chosen in _batches(model, encoded):
        batch = collate([encoded[index] for index in chosen], model.padding)
        yield chosen, batch, forward(model, batch, batch.predicting).logits


def _batches(model: LanguageModel, encoded: list[Encoded]) -> list[list[int]]:
    lengths = [len(example) for example in encoded]
    return by_length(lengths, model.batch_size(lengths, LOSS_BATCH))


def _by_example(values: Tensor, chosen: list[int], encoded: list[Encoded]) -> list[NDArray[Any]]:
    """Values of answer tokens, cut into those of each example."""
    lengths = [len(encoded[index].answer) for index in chosen]
    return [part.numpy() for part in torch.split(values.cpu(), lengths)]


@torch.inference_mode()
def _answers(
    model: LanguageModel, encoded: list[Encoded], forced: list[_Forced], on_done: Callable[[int], None]
) -> list[str]:
    """Greedy answers, stopped at end of text or a little after the longest expected answer."""
    limit = max(len(example.answer) for example in encoded) + MORE_TOKENS
    end = model.tokenizer.eos_token_id
    known = [_agreed(example.answer, one.greedy, end) for example, one in zip(encoded, forced, strict=True)]
    unended = [index for index, tokens in enumerate(known) if tokens[-1] != end]
    done = len(encoded) - len(unended)
    if done:
        on_done(done)
    # a batch takes as many steps as its longest answer: the expected lengths tell which will be long
    for batch in by_length([len(encoded[index].answer) - len(known[index]) for index in unended], ANSWER_BATCH):
        chosen = [unended[number] for number in batch]
        longest = limit - min(len(known[index]) for index in chosen)
        written = _written(model, [encoded[index].prompt + known[index] for index in chosen], longest)
        for index, tokens in zip(chosen, written, strict=True):
            known[index] += tokens
        done += len(chosen)
        on_done(done)
    texts = model.tokenizer.batch_decode([tokens[:limit] for tokens in known], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _agreed(answer: list[int], greedy: list[int], end: int) -> list[int]:
    """The greedy tokens up to the first one that is not the answer's or ends it, that one included."""
    pairs = enumerate(zip(answer, greedy, strict=True), start=1)
    return greedy[: next((count for count, (expected, token) in pairs if token != expected or token == end), None)]


def _written(model: LanguageModel, prompts: list[list[int]], limit: int) -> list[list[int]]:
    ids, mask = collate_prompts(prompts, model.padding)
    written = model.network.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=limit,
        do_sample=False,
        pad_token_id=model.padding,
        eos_token_id=model.tokenizer.eos_token_id,
    )
    tokens: list[list[int]] = written[:, ids.shape[1] :].tolist()
    return tokens
