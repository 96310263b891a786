"""Whether an adapter that has just been switched to is worse than none: the last look before it stays. Then how good
it is.

What the coordinator has signed may be bad for this home alone, or its gate may be. The examples are held out: nothing
was ever trained on them here. They are compared with what the base model makes of them and not with the adapter before,
for an operator may have gone back to a worse one on purpose. It does not decide what is served next.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from base_model.chat_tokens import ChatTokens
from base_model.examples import Example
from edge_node.memory import give_back_memory
from edge_node.serving.inference import AdapterSlot, begin
from edge_node.serving.session import Session
from edge_node.settings import ProbeSettings

PIECE = 16  # tokens at once: their logits take three megabytes
LONGEST = 1024  # tokens of an example; training cuts the longer ones, and the look should be short


class Quality(NamedTuple):
    """How well a slot answers: mean loss over the tokens of so many answers, nats."""

    examples: int
    loss: float


@dataclass
class Probe:
    """Looks at slots with held-out examples, which `examples` gives: at most so many."""

    session: Session
    chat: ChatTokens
    examples: Callable[[int], Sequence[Example]]
    settings: ProbeSettings
    # losses by digest and example: those of the base model stay as they are, and a look's are a part of a measurement
    _known: dict[tuple[str | None, Example], NDArray[np.float64]] = field(default_factory=dict, init=False, repr=False)

    def complaint(self, slot: AdapterSlot) -> str | None:
        """Why this slot should not be served; None if all is well.

        It takes the model's work on every example, and the first time that of the base model without it, too.
        """
        examples = self.examples(self.settings.examples)
        kept = {(None, example) for example in examples}
        self._known = {about: losses for about, losses in self._known.items() if about in kept}
        if not examples:
            return None
        loss, without = self.loss(slot, examples), self.loss(None, examples)
        if loss <= (1 + self.settings.rise) * without + self.settings.slack:
            return None
        return (
            f"on {len(examples)} of this node's own examples its loss is {loss:.2f}, and that of the base model "
            f"without it {without:.2f}"
        )

    def loss(self, slot: AdapterSlot | None, examples: Sequence[Example]) -> float:
        """Mean over the answers' tokens, nats; infinite where an answer is impossible or not a number."""
        losses = np.concatenate([self._token_losses(slot, example) for example in examples])
        mean = float(losses.mean()) if losses.size else 0.0
        return mean if math.isfinite(mean) else math.inf

    def quality(self, slot: AdapterSlot, most: int, is_wanted: Callable[[], bool]) -> Quality | None:
        """How well a slot answers at most so many examples; None without any, or once that is wanted no more."""
        found = []
        for example in self.examples(most):
            if not is_wanted():
                return None
            found.append(self._token_losses(slot, example))
        losses = [one for one in found if one.size]
        return Quality(len(losses), float(np.concatenate(losses).mean())) if losses else None

    def _token_losses(self, slot: AdapterSlot | None, example: Example) -> NDArray[np.float64]:
        about = (slot.digest if slot is not None else None, example)
        if about not in self._known:
            self._known[about] = self._measured(slot, example)
            give_back_memory()  # what was served before is still here: this is when a node has most
        return self._known[about]

    def _measured(self, slot: AdapterSlot | None, example: Example) -> NDArray[np.float64]:
        """Of each token of the answer, its end included; none of an example that is too long."""
        prompt = self.chat.prompt([{"role": "user", "content": example.prompt}])
        tokens = [*prompt, *self.chat.answer(example.completion), self.chat.end]
        if len(tokens) > min(LONGEST, self.session.architecture.context):
            return np.empty(0)
        conversation, losses = begin(self.session, slot, len(tokens)), list[NDArray[np.float64]]()
        for start in range(0, len(tokens) - 1, PIECE):
            piece = tokens[start : min(start + PIECE, len(tokens) - 1)]
            rows = [place for place in range(len(piece)) if start + place >= len(prompt) - 1]
            following = tokens[start + rows[0] + 1 : start + len(piece) + 1] if rows else []
            # a graph gives at least one row; nothing holds this piece's logits when the next one's come
            losses.append(_losses(conversation.read(piece, rows or [0])[: len(rows)], following))
        return np.concatenate(losses)


def _losses(logits: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float64]:
    """Negative log likelihood of each token by its row of logits, nats."""
    # row by row: of all rows in float64 there would be tens of megabytes
    return np.array([_loss(row.astype(np.float64), token) for row, token in zip(logits, tokens, strict=True)])


def _loss(row: NDArray[np.float64], token: int) -> float:
    highest = row.max()
    return float(np.log(np.exp(row - highest).sum()) + highest - row[token])
