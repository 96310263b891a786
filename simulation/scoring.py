"""How right written answers are: to the letter, and in the intent they name; and how even nodes are.

It knows text and JSON alone: neither the model that wrote the answers nor the homes that asked.
"""

import json
import math
from collections.abc import Sequence

from base_model.examples import Example


def scores(answers: Sequence[str], examples: Sequence[Example]) -> tuple[float, float | None]:
    """Share of answers that are right to the letter, and of those that name the expected intent.

    The second is taken over the examples whose completion names an intent; None when there is no such example.
    White space around an answer does not count. Raises ValueError unless there is one answer to each example.
    """
    if not examples:
        raise ValueError("there is nothing to score: give at least one example")
    if len(answers) != len(examples):
        raise ValueError(f"{len(answers)} answers do not belong to {len(examples)} examples")
    pairs = [(answer.strip(), example.completion.strip()) for answer, example in zip(answers, examples, strict=True)]
    exact = sum(given == expected for given, expected in pairs) / len(pairs)
    named = [(intent_of(given), intent) for given, expected in pairs if (intent := intent_of(expected)) is not None]
    return exact, sum(given == intent for given, intent in named) / len(named) if named else None


def intent_of(answer: str) -> str | None:
    """The intent an answer names; None when it is not a JSON object with the text "intent"."""
    try:
        parsed = json.loads(answer)
    except (ValueError, RecursionError):  # a model may write ten thousand brackets
        return None
    intent = parsed.get("intent") if isinstance(parsed, dict) else None
    return intent if isinstance(intent, str) else None


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness, (sum x)^2 / (n sum x^2): 1 when all are equal, 1/n when one has everything."""
    squares = math.fsum(value * value for value in values)
    return math.fsum(values) ** 2 / (len(values) * squares) if squares else 1.0
