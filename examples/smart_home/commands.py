"""Homes and their commands: each home has its own rooms, devices and habits, so no two homes' data are alike.

A command is answered by Home Assistant's intent as compact JSON. Everything is drawn from seeds: the same seed gives
the same homes and the same commands on every machine. Nothing here knows models or federated learning.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from random import Random

import numpy as np

from base_model.examples import Example
from examples.smart_home import households
from examples.smart_home.sentences import INTENTS, Template, speak, templates

CONCENTRATION = 0.5  # of the Dirichlet mix of intents: the smaller, the more one-sided each home's habits
HELD_OUT_HOMES, CALIBRATION_HOMES = "held out", "calibration"
MAX_MISSES = 500  # commands in a row that were seen before: there are hardly any new ones


@dataclass(frozen=True)
class Home:
    """One household: its seed, the rooms and devices it has, and how often it uses each intent (sums to 1)."""

    seed: str
    rooms: tuple[str, ...]
    devices: tuple[tuple[str, tuple[str, ...]], ...]  # (domain, names)
    habits: tuple[tuple[str, float], ...]  # (intent, share of its commands)


def make_homes(count: int, seed: int) -> tuple[Home, ...]:
    """Homes that differ in rooms, device names and habits; the first homes stay the same when `count` grows."""
    return tuple(_home(f"{seed}/home {index}") for index in range(count))


def private_examples(home: Home, count: int) -> tuple[Example, ...]:
    """What this home says, in its own mix of intents; people repeat themselves, and so may these."""
    random = Random(f"{home.seed}/private")
    intents, shares = zip(*home.habits, strict=True)
    return tuple(_example(home, intent, random) for intent in random.choices(intents, shares, k=count))


def held_out_examples(count: int, seed: int, seen: Collection[Example]) -> tuple[Example, ...]:
    """Commands of homes that are no node's, every intent equally often, none of whose prompts is among `seen`."""
    return _of_other_homes(HELD_OUT_HOMES, count, seed, seen)


def calibration_examples(count: int, seed: int, seen: Collection[Example]) -> tuple[Example, ...]:
    """The coordinator's own commands: like the held-out ones, and of yet other homes."""
    return _of_other_homes(CALIBRATION_HOMES, count, seed, seen)


def _of_other_homes(homes: str, count: int, seed: int, seen: Collection[Example]) -> tuple[Example, ...]:
    known = {example.prompt for example in seen}
    examples: list[Example] = []
    misses = attempt = 0
    while len(examples) < count:
        home = _home(f"{seed}/{homes} {attempt}")
        example = _example(home, INTENTS[len(examples) % len(INTENTS)], Random(f"{home.seed}/private"))
        attempt += 1
        misses += 1
        if example.prompt not in known:
            known.add(example.prompt)
            examples.append(example)
            misses = 0
        if misses > MAX_MISSES:
            raise ValueError(f"only {len(examples)} of {count} commands were not seen before; ask for fewer")
    return tuple(examples)


def _home(seed: str) -> Home:
    random = Random(seed)
    shares = np.random.default_rng(random.getrandbits(64)).dirichlet([CONCENTRATION] * len(INTENTS))
    devices = (
        (domain, random.sample(names, households.DEVICES_PER_HOME[domain]))
        for domain, names in households.DEVICES.items()
    )
    return Home(
        seed=seed,
        rooms=tuple(random.sample(households.ROOMS, households.ROOMS_PER_HOME)),
        devices=tuple((domain, tuple(names)) for domain, names in devices),
        habits=tuple(zip(INTENTS, shares.tolist(), strict=True)),
    )


def _example(home: Home, intent: str, random: Random) -> Example:
    template = random.choice(templates(intent))
    prompt, slots = speak(template, random, partial(_draw, home, template, random))
    answer = {"intent": intent} | dict(sorted(slots.items()))
    return Example(prompt=prompt, completion=json.dumps(answer, separators=(",", ":")))


def _draw(home: Home, template: Template, random: Random, list_name: str) -> tuple[str, str | int]:
    """What is said for a slot list, and its value in the answer."""
    if list_name in households.SAYINGS:
        return random.choice(households.SAYINGS[list_name])
    if list_name in households.NUMBERS:
        number = random.choice(households.NUMBERS[list_name])
        return str(number), number
    if list_name == "area":
        word = random.choice(home.rooms)
    elif list_name == "name":
        devices = dict(home.devices)
        word = random.choice(devices[random.choice(template.domains)])
    else:
        word = random.choice(households.WORDS[list_name])
    return word, word
