"""Tokens after a prompt, one by one, with one adapter from the first to the last. It does not know text."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_node.memory import give_back_memory
from edge_node.serving.inference import AdapterSlot, begin
from edge_node.serving.session import PIECE, Conversation, Session

if TYPE_CHECKING:
    from numpy.random import Generator  # megabytes that a node which always gives the likeliest answer never loads

CANDIDATES = 64  # looked at first for the likeliest tokens; doubled until they hold enough probability


class Cancelled(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: the likeliest at temperature 0, else drawn from the likeliest that hold `top_p`.

    The same seed, prompt and adapter give the same tokens on the same machine.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def generate(
    session: Session,
    slot: AdapterSlot | None,
    prompt: Sequence[int],
    sampling: Sampling,
    stops: frozenset[int],
    is_cancelled: Callable[[], bool],
) -> Iterator[int]:
    """Yield at most `max_tokens` tokens, and end before one of `stops`; the slot is held to the end.

    Raises Cancelled soon after `is_cancelled` says so: between tokens, and between pieces of a long prompt. An empty
    prompt, or one that leaves no room for the answer in the model's context, raises ValueError.
    """
    _check(session, prompt, sampling)
    random = np.random.default_rng(sampling.seed) if sampling.temperature else None
    conversation = begin(session, slot, len(prompt) + sampling.max_tokens)
    logits = _read(conversation, prompt, is_cancelled)
    for count in range(1, sampling.max_tokens + 1):
        token = _choose(logits, sampling, random)
        if token in stops:
            return
        yield token
        if count < sampling.max_tokens:
            if is_cancelled():
                raise Cancelled
            logits = _next(conversation, [token])


def _check(session: Session, prompt: Sequence[int], sampling: Sampling) -> None:
    context = session.architecture.context
    if not prompt:
        raise ValueError("the prompt has no token")
    if len(prompt) + sampling.max_tokens > context:
        raise ValueError(
            f"{len(prompt)} tokens of prompt and {sampling.max_tokens} of answer are more than the context of {context}"
        )


def _read(conversation: Conversation, prompt: Sequence[int], is_cancelled: Callable[[], bool]) -> NDArray[np.float32]:
    """The logits after the prompt; piece by piece, so that a stop need not wait for all of it."""
    for start in range(0, len(prompt), PIECE):
        if is_cancelled():
            raise Cancelled
        logits = _next(conversation, prompt[start : start + PIECE])
    give_back_memory()  # pieces take much more than the tokens after them
    return logits


def _next(conversation: Conversation, tokens: Sequence[int]) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = conversation.read(tokens, [len(tokens) - 1])[0]
    return logits


def _choose(logits: NDArray[np.float32], sampling: Sampling, random: "Generator | None") -> int:
    if random is None:
        return int(logits.argmax())
    scaled = (logits.astype(np.float64) - float(logits.max())) / sampling.temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    tokens = _nucleus(probabilities, sampling.top_p)
    chances = probabilities[tokens]
    return int(random.choice(tokens, p=chances / chances.sum()))


def _nucleus(probabilities: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """The fewest tokens, likeliest first, that together have at least this probability; all of them for 1."""
    size = probabilities.size
    if top_p >= 1:
        return np.arange(size)
    count = CANDIDATES
    while True:
        # sorting the whole vocabulary would cost more than a third of the model's own work
        some = np.argpartition(-probabilities, count - 1)[:count] if count < size else np.arange(size)
        ordered = some[np.lexsort((some, -probabilities[some]))]
        enough = int(np.searchsorted(np.cumsum(probabilities[ordered]), top_p)) + 1
        if enough <= len(ordered) or count >= size:
            return ordered[:enough]
        count *= 2
