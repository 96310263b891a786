"""What is doubtful about a node's examples, and what to do about it. Pure; it looks at texts and knows no model.

Warnings never quote an example: they end up in terminals, tickets and logs.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from base_model.examples import Example

SHORT_COMPLETION = 2  # characters
LONG_COMPLETION = 1000
UNIFORM_SHARE = 0.5
ENOUGH_TO_JUDGE = 20  # examples, before what is usual among them says anything
LITTLE_HELD_OUT = 8


@dataclass(frozen=True)
class QualityWarning:
    """Something doubtful: a name for programs, how many examples it is about, what it is, and what to do."""

    name: str
    examples: int
    found: str
    advice: str


def quality(training: Sequence[Example], held_out: int, one_job: int) -> tuple[QualityWarning, ...]:
    """What is doubtful; `one_job` is how many examples a job of this node sees."""
    found = (
        *_too_few(len(training), held_out, one_job),
        *_lengths(training),
        *_contradictions(training),
        *_uniformity(training),
    )
    return tuple(warning for warning in found if warning.examples)


def _too_few(training: int, held_out: int, one_job: int) -> tuple[QualityWarning, ...]:
    few, unmeasured = training < one_job, training >= one_job and held_out < LITTLE_HELD_OUT
    return (
        QualityWarning(
            "too_few",
            training if few else 0,
            f"{training} examples to train on, and one job sees {one_job}",
            "each is seen several times in a job, and learnt by heart: add examples, or lower edge.training.steps",
        ),
        QualityWarning(
            "little_held_out",
            max(held_out, 1) if unmeasured else 0,
            f"{held_out} examples are held out",
            f"a loss of so few says little: add examples, or raise edge.local_data.held_out (0 turns it off); "
            f"{LITTLE_HELD_OUT} or more are a beginning",
        ),
    )


def _lengths(training: Sequence[Example]) -> tuple[QualityWarning, ...]:
    short = sum(len(example.completion.strip()) < SHORT_COMPLETION for example in training)
    long = sum(len(example.completion) > LONG_COMPLETION for example in training)
    return (
        QualityWarning(
            "short_completions",
            short,
            f"{short} completions have fewer than {SHORT_COMPLETION} characters",
            "the model learns to say next to nothing: write the whole answer, or remove them",
        ),
        QualityWarning(
            "long_completions",
            long,
            f"{long} completions have more than {LONG_COMPLETION} characters",
            "they weigh more than many short ones, cost time and memory, and may be cut: split or shorten them",
        ),
    )


def _contradictions(training: Sequence[Example]) -> tuple[QualityWarning, ...]:
    completions: defaultdict[str, set[str]] = defaultdict(set)
    for example in training:
        completions[example.prompt].add(example.completion)
    several = sum(len(found) > 1 for found in completions.values())
    return (
        QualityWarning(
            "several_completions",
            several,
            f"{several} prompts have several different completions",
            "the model can only learn a mixture of them: keep the right one of each, or put what tells them apart "
            "into the prompt",
        ),
    )


def _uniformity(training: Sequence[Example]) -> tuple[QualityWarning, ...]:
    if len(training) < ENOUGH_TO_JUDGE:
        return ()
    completions = Counter(example.completion.strip() for example in training)
    ((_, most),) = completions.most_common(1)
    uniform = most > UNIFORM_SHARE * len(training)
    return (
        QualityWarning(
            "uniform_completions",
            most if uniform else 0,
            f"{most} of {len(training)} examples have the same completion",
            "the model learns to say it whatever it is asked: add examples of other answers, or remove some of these",
        ),
    )
