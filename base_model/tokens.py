"""Examples as token batches: the tokenizer's chat template, left padding, and which tokens are the answer.

Sequences are padded on the left, so that every answer ends in the last column: logits are then needed only for the
last few columns, and the same layout serves training, loss and generation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from base_model.examples import Example

MAX_PROMPT_TOKENS = 768
MAX_ANSWER_TOKENS = 256


@dataclass(frozen=True)
class Encoded:
    """One example in tokens: the prompt as the model sees it, and the answer with its end-of-text token."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Batch:
    """Left-padded tokens: ids and mask (batch, length), and where the answer is within the last columns."""

    ids: Tensor
    mask: Tensor
    answer_mask: Tensor  # (batch, longest answer), over the last columns of ids

    @property
    def positions(self) -> Tensor:
        """Position ids (batch, length) that count from the first real token of each row."""
        return (self.mask.cumsum(dim=-1) - 1).clamp(min=0)


def encode(tokenizer: PreTrainedTokenizerBase, example: Example) -> Encoded:
    """Tokens of one example; a prompt that is too long loses its beginning, an answer its end."""
    answer = tokenizer(example.completion, add_special_tokens=False)["input_ids"]
    return Encoded(
        prompt=prompt_tokens(tokenizer, example.prompt)[-MAX_PROMPT_TOKENS:],
        answer=[*answer[: MAX_ANSWER_TOKENS - 1], tokenizer.eos_token_id],
    )


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt as one user turn of the model's chat template, or as a plain line where there is none."""
    if tokenizer.chat_template is None:
        return list(tokenizer(prompt + "\n")["input_ids"])
    user = {"role": "user", "content": prompt}
    try:
        # an empty system turn: many templates otherwise insert a long one of their own, paid for in every example
        return _chat_tokens(tokenizer, [{"role": "system", "content": ""}, user])
    except TemplateError:  # templates without a system role say so by raising
        return _chat_tokens(tokenizer, [user])


def _chat_tokens(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> list[int]:
    tokens: Any = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    return list(tokens)


def collate(examples: Sequence[Encoded], padding: int) -> Batch:
    """One batch of prompts with their answers, as wide as its longest row."""
    rows = [example.prompt + example.answer for example in examples]
    ids, mask = _padded(rows, padding)
    _, answer_mask = _padded([example.answer for example in examples], padding)
    return Batch(ids, mask, answer_mask.bool())


def collate_prompts(prompts: Sequence[list[int]], padding: int) -> Batch:
    """One batch of prompts alone, for generation."""
    ids, mask = _padded(prompts, padding)
    return Batch(ids, mask, torch.zeros(len(prompts), 0, dtype=torch.bool))


def _padded(rows: Sequence[list[int]], padding: int) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([[padding] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask
