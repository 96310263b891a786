"""What a home answered while it learned, told by the version that answered. Pure arithmetic on an interview."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from examples.smart_home.outcome import LiveAnswer
from examples.smart_home.wording import verdict

STORIES = 4
LONGEST = 160  # characters of an answer: what is no command yet may ramble


class VersionAnswers(NamedTuple):
    """How right one version's answers were; `version` None is the base model alone."""

    version: int | None
    asked: int
    exact: float
    right_intent: float  # or exact


class Change(NamedTuple):
    """Of so many commands, how many answers were exact when each was asked first, and when it was asked last."""

    commands: int
    at_first: int
    at_last: int


class Said(NamedTuple):
    """An answer, and the first and the last version that gave it, as a person would write them."""

    versions: str
    answer: str


class Story(NamedTuple):
    """One command and how its answer changed."""

    prompt: str
    expected: str
    said: tuple[Said, ...]


def by_version(answers: Sequence[LiveAnswer]) -> tuple[VersionAnswers, ...]:
    """The share of right answers of each version that answered, oldest first."""
    return tuple(_version_answers(version, list(some)) for version, some in _grouped(answers))


def change(answers: Sequence[LiveAnswer]) -> Change:
    """How the answers to all commands changed; a version alone may have been asked but one of them."""
    first = {answer.prompt: answer for answer in reversed(answers)}
    last = {answer.prompt: answer for answer in answers}
    return Change(len(last), _exact(first.values()), _exact(last.values()))


def stories(answers: Sequence[LiveAnswer], count: int = STORIES) -> tuple[Story, ...]:
    """The first few commands that were asked, chosen by nobody, with their answers from version to version."""
    prompts = list(dict.fromkeys(answer.prompt for answer in answers))[:count]
    return tuple(_story([answer for answer in answers if answer.prompt == prompt]) for prompt in prompts)


def version_name(version: int | None) -> str:
    """A version as an axis or a label says it."""
    return "base" if version is None else str(version)


def _grouped(answers: Sequence[LiveAnswer]) -> Iterator[tuple[int | None, Iterator[LiveAnswer]]]:
    def order(answer: LiveAnswer) -> int:
        return -1 if answer.version is None else answer.version

    for number, some in groupby(sorted(answers, key=order), key=order):
        yield (None if number < 0 else number), some


def _version_answers(version: int | None, answers: Sequence[LiveAnswer]) -> VersionAnswers:
    verdicts = [verdict(answer.answer, answer.expected) for answer in answers]
    exact, named = verdicts.count("exact"), verdicts.count("right intent")
    return VersionAnswers(version, len(answers), exact / len(answers), (exact + named) / len(answers))


def _exact(answers: Iterable[LiveAnswer]) -> int:
    return sum(verdict(answer.answer, answer.expected) == "exact" for answer in answers)


def _story(answers: Sequence[LiveAnswer]) -> Story:
    said = []
    for text, same in groupby(answers, key=lambda answer: answer.answer):
        first, *_, last = [one.version for one in same] * 2
        span = version_name(first) if first == last else f"{version_name(first)}-{version_name(last)}"
        said.append(Said(span, text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"))
    return Story(answers[0].prompt, answers[0].expected, tuple(said))
