"""Examples as token batches: the tokenizer's chat template, limits, and which tokens are the answer.

It does not know how a batch lies in the model's memory, but for prompts that are to be gone on with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from base_model.examples import MAX_ANSWER_TOKENS, MAX_PROMPT_TOKENS, Example

if TYPE_CHECKING:  # a trainer that has a tokenizer of its own does without two seconds of importing
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """One example in tokens: the prompt as the model sees it, and the answer with its end-of-text token."""

    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Batch:
    """Examples that go through the model together. Masks are of its tokens, all examples' in one line.

    The last token of each example predicts nothing, so it is not among the tokens.
    """

    examples: tuple[Encoded, ...]
    padding: int

    @property
    def inputs(self) -> list[list[int]]:
        """The tokens of each example but its last."""
        return [(example.prompt + example.answer)[:-1] for example in self.examples]

    @property
    def lengths(self) -> list[int]:
        """How many tokens each example has here."""
        return [len(example) - 1 for example in self.examples]

    @property
    def predicting(self) -> Tensor:
        """Which tokens predict an answer token, (tokens,): the last of each prompt, and the answer's."""
        counts = ((len(example.prompt) - 1, len(example.answer)) for example in self.examples)
        return torch.tensor([answers for count in counts for answers in (False,) * count[0] + (True,) * count[1]])

    @property
    def targets(self) -> Tensor:
        """The answer tokens of all examples: what the `predicting` ones should predict."""
        return torch.tensor([token for example in self.examples for token in example.answer])


def encode(tokenizer: "PreTrainedTokenizerBase", example: Example) -> Encoded:
    """Tokens of one example; a prompt that is too long loses its beginning, an answer its end."""
    answer = tokenizer(example.completion, add_special_tokens=False)["input_ids"]
    return encoded(prompt_tokens(tokenizer, example.prompt), answer, tokenizer.eos_token_id)


def encoded(prompt: list[int], answer: list[int], end: int) -> Encoded:
    """An example's tokens within the limits, with the end-of-text token behind the answer."""
    return Encoded(prompt=prompt[-MAX_PROMPT_TOKENS:], answer=[*answer[: MAX_ANSWER_TOKENS - 1], end])


def prompt_tokens(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """The prompt as one user turn of the model's chat template, or as a plain line where there is none."""
    if tokenizer.chat_template is None:
        return list(tokenizer(prompt + "\n")["input_ids"])
    user = {"role": "user", "content": prompt}
    try:
        # an empty system turn: many templates otherwise insert a long one of their own, paid for in every example
        return _chat_tokens(tokenizer, [{"role": "system", "content": ""}, user])
    except TemplateError:  # templates without a system role say so by raising
        return _chat_tokens(tokenizer, [user])


def _chat_tokens(tokenizer: "PreTrainedTokenizerBase", turns: list[dict[str, str]]) -> list[int]:
    tokens: Any = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    return list(tokens)


def collate(examples: Sequence[Encoded], padding: int) -> Batch:
    """One batch of prompts with their answers."""
    return Batch(tuple(examples), padding)


def pooled(hidden: Tensor, batch: Batch) -> Tensor:
    """Features (examples, hidden) in float32 of hidden states (tokens, hidden)."""
    rows = zip(torch.split(hidden, batch.lengths), batch.examples, strict=True)
    return torch.stack([row[: len(example.prompt)].float().mean(dim=0) for row, example in rows])


def collate_prompts(prompts: Sequence[list[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Ids and mask (prompts, longest) for generation, padded on the left so that all go on in the next column."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[padding] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices of like lengths in batches of `size`, so that little is computed for the sake of the longest."""
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    return [order[start : start + size] for start in range(0, len(order), size)]
