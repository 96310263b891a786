"""Federated tasks of smart-home commands: homes with their own words and habits, and the commons of the federation.

The hash of a prompt alone decides whether it may be private, a home's test, calibration or held out. So no prompt is
on two sides, whatever the sizes, and a task keeps its first homes and commands when it grows. It knows no model.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from random import Random
from typing import Literal

import numpy as np

from base_model.examples import Example
from examples.smart_home import sentences, wide
from examples.smart_home.sentences import Template
from examples.smart_home.wide import make_command
from examples.smart_home.wide_households import (
    ELSEWHERE,
    FLEET,
    NARROW_ELSEWHERE,
    NARROW_FLEET,
    NARROW_SIZES,
    WIDE_SIZES,
    Vocabulary,
    make_household,
)
from simulation.comparison.regimes import TaskSpec
from simulation.task import Examples, Task

TaskName = Literal["narrow", "wide"]
CalibrationKind = Literal["in-domain", "missing-intents", "other-rooms", "wrong"]
Side = Literal["private", "test", "calibration", "held out"]

SIDES: tuple[Side, ...] = ("private",) * 7 + ("test",) * 3 + ("calibration",) * 3 + ("held out",) * 3
NOW_AND_THEN = 0.01  # share of its commands for which even the most one-sided home may want anything
MAX_MISSES = 5_000  # commands in a row that were drawn before: there are hardly any new ones


@dataclass(frozen=True)
class Language:
    """What the homes of one task say, and the words they and homes unlike them have."""

    intents: tuple[str, ...]
    templates: Callable[[str], tuple[Template, ...]]
    fleet: Vocabulary
    elsewhere: Vocabulary
    sizes: Mapping[str, int]


LANGUAGES: Mapping[TaskName, Language] = {
    "narrow": Language(sentences.INTENTS, sentences.templates, NARROW_FLEET, NARROW_ELSEWHERE, NARROW_SIZES),
    "wide": Language(wide.INTENTS, wide.templates, FLEET, ELSEWHERE, WIDE_SIZES),
}


def make_simulated_task(spec: TaskSpec) -> Task:
    """The task that a simulation or a comparison asks for."""
    return make_task(**asdict(spec))


def make_task(
    name: TaskName,
    homes: int,
    concentration: float,
    examples_per_home: int,
    tests_per_home: int,
    calibration: int,
    held_out: int,
    seed: int,
    calibration_kind: CalibrationKind = "in-domain",
) -> Task:
    """A task of so many homes; the smaller the Dirichlet `concentration`, the more one-sided each home's habits.

    An infinite concentration gives every home the same habits. Calibration and held-out commands come from homes that
    are no node's, every intent equally often. With "missing-intents" calibration lacks half of the intents, with
    "other-rooms" nobody in the fleet has its rooms and devices, with "wrong" each of its commands has the answer to
    another one. Raises ValueError when there are not enough commands.
    """
    if not concentration > 0:
        raise ValueError(f"the concentration must be above 0, got {concentration}")
    language = LANGUAGES[name]
    owners = {f"home-{number:04d}": _Home(f"{seed}/home {number}", concentration) for number in range(1, homes + 1)}
    known, vocabulary = language.intents, language.fleet
    if calibration_kind == "missing-intents":
        known = tuple(sorted(Random(f"{seed}/known intents").sample(known, len(known) // 2)))
    elif calibration_kind == "other-rooms":
        vocabulary = language.elsewhere
    common = _common(language, known, vocabulary, "calibration", calibration, seed)
    return Task(
        nodes={node: _own(language, home, "private", examples_per_home, seed) for node, home in owners.items()},
        tests={node: _own(language, home, "test", tests_per_home, seed) for node, home in owners.items()},
        calibration=_with_answers_of_others(common, seed) if calibration_kind == "wrong" else common,
        held_out=_common(language, language.intents, language.fleet, "held out", held_out, seed),
    )


@dataclass(frozen=True)
class _Home:
    name: str
    concentration: float


def _own(language: Language, home: _Home, side: Side, count: int, seed: int) -> Examples:
    """What a home says on this side, in its own mix of intents; people repeat themselves, and so may these."""
    household = make_household(language.fleet, language.sizes, home.name)
    shares = _habits(home, len(language.intents))
    random = Random(f"{home.name}/{side}")

    def commands() -> Iterator[Example]:
        while True:
            intent = random.choices(language.intents, shares)[0]
            yield make_command(household, language.templates(intent), intent, random)

    return tuple(islice((command for command in commands() if _side(command.prompt, seed) == side), count))


def _habits(home: _Home, intents: int) -> list[float]:
    """The share of each intent in a home's commands; they sum to 1."""
    even = np.full(intents, 1 / intents)
    if math.isinf(home.concentration):
        return list(even.tolist())
    generator = np.random.default_rng(Random(f"{home.name}/habits").getrandbits(64))
    drawn = generator.dirichlet([home.concentration] * intents)
    return list(((1 - NOW_AND_THEN) * drawn + NOW_AND_THEN * even).tolist())


def _common(
    language: Language, intents: tuple[str, ...], vocabulary: Vocabulary, side: Side, count: int, seed: int
) -> Examples:
    """Commands of homes that are no node's, each of another home, every intent equally often, no prompt twice."""
    found: dict[str, Example] = {}
    misses = attempt = 0
    while len(found) < count:
        home = f"{seed}/{side} {attempt}"
        intent = intents[len(found) % len(intents)]
        household = make_household(vocabulary, language.sizes, home)
        command = make_command(household, language.templates(intent), intent, Random(f"{home}/said"))
        attempt += 1
        misses += 1
        if _side(command.prompt, seed) == side and command.prompt not in found:
            found[command.prompt] = command
            misses = 0
        if misses > MAX_MISSES:
            raise ValueError(f"there are only {len(found)} different commands of {count} ({side}); ask for fewer")
    return tuple(found.values())


def _with_answers_of_others(examples: Examples, seed: int) -> Examples:
    answers = [example.completion for example in examples]
    Random(f"{seed}/answers").shuffle(answers)
    return tuple(Example(prompt=one.prompt, completion=answer) for one, answer in zip(examples, answers, strict=True))


def _side(prompt: str, seed: int) -> Side:
    return SIDES[hashlib.sha256(f"{seed}/{prompt}".encode()).digest()[0] % len(SIDES)]
