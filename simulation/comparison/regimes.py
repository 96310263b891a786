"""The conditions under which methods are compared: who the nodes are, how fast, for how long, with what calibration.

A regime says what differs from the base and leaves the rest alone. It does not know which methods meet it.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from simulation.schedule import Schedule, Turnover
from simulation.settings import Measuring


@dataclass(frozen=True)
class TaskSpec:
    """What a generator of tasks is asked for. The smaller the concentration, the more one-sided each node's data."""

    name: Literal["narrow", "wide"] = "narrow"
    homes: int = 16
    concentration: float = 0.2
    examples_per_home: int = 64
    tests_per_home: int = 16
    calibration: int = 128
    held_out: int = 192
    calibration_kind: Literal["in-domain", "missing-intents", "other-rooms"] = "in-domain"
    seed: int = 0

    @property
    def folder(self) -> str:
        """A folder's name that no other task has."""
        return (
            f"{self.name}-{self.homes}x{self.examples_per_home}-dirichlet{self.concentration:g}"
            f"-tests{self.tests_per_home}-held{self.held_out}-calibration{self.calibration}-{self.calibration_kind}"
            f"-{self.seed}"
        )


@dataclass(frozen=True)
class Regime:
    """One set of conditions. `updates` end a run; FedAvg's rounds are slow, so it may take `patience` times as many."""

    name: str
    about: str
    task: TaskSpec = TaskSpec()
    schedule: Schedule = field(default_factory=Schedule)
    updates: int = 120
    anchor_examples: int = 32
    gate_examples: int = 64
    measuring: Measuring = field(default_factory=lambda: Measuring(generated=64))

    def but(self, name: str, about: str, **changes: object) -> "Regime":
        """The same with some fields changed."""
        return replace(self, name=name, about=about, **changes)  # type: ignore[arg-type]


BASE = Regime("base", "16 homes, one-sided data (Dirichlet 0.2), speeds 15 times apart")

CALIBRATION = (
    BASE.but(
        "calibration-missing-intents",
        "calibration lacks half of the intents",
        task=replace(BASE.task, calibration_kind="missing-intents"),
    ),
    BASE.but(
        "calibration-other-rooms",
        "calibration from homes whose rooms and devices nobody in the fleet has",
        task=replace(BASE.task, calibration_kind="other-rooms"),
    ),
    BASE.but(
        "calibration-8", "8 calibration examples: 4 to train on, 4 to judge by", anchor_examples=4, gate_examples=4
    ),
    BASE.but("calibration-unlabelled", "no labelled calibration at all", anchor_examples=0, gate_examples=0),
)

SPEEDS_AND_DATA = (
    BASE.but("uniform-speed", "all homes equally fast", schedule=Schedule(spread=1)),
    BASE.but("wide-speed", "speeds 100 times apart", schedule=Schedule(spread=100)),
    BASE.but("iid", "every home has the same habits", task=replace(BASE.task, concentration=math.inf)),
    BASE.but("skewed", "very one-sided data (Dirichlet 0.1)", task=replace(BASE.task, concentration=0.1)),
    BASE.but(
        "high-staleness",
        "64 homes feed a buffer of 4, so updates are many versions old",
        task=replace(BASE.task, homes=64),
        updates=240,
        measuring=Measuring(every=2, generated=64),
    ),
    BASE.but(
        "dropouts",
        "a third of the homes vanish on the way",
        schedule=Schedule(lost=Turnover(share=1 / 3, first=4, last=16)),
    ),
    BASE.but(
        "late-joiners",
        "a third of the homes join late",
        schedule=Schedule(late=Turnover(share=1 / 3, first=4, last=16)),
    ),
    BASE.but("harder", "more intents, rooms, devices and ways to say it", task=replace(BASE.task, name="wide")),
)

LONG = BASE.but(
    "long",
    "2,000 updates, 256 examples in every home",
    task=replace(BASE.task, examples_per_home=256),
    updates=2000,
    measuring=Measuring(every=10, generated=192),
)

THOUSAND = BASE.but(
    "thousand",
    "a thousand homes, 16 updates to a version",
    task=replace(BASE.task, homes=1000, examples_per_home=16, tests_per_home=4),
    updates=1000,
    measuring=Measuring(every=10, generated=64, own_tests=4),
)

REGIMES = {regime.name: regime for regime in (BASE, *CALIBRATION, *SPEEDS_AND_DATA, LONG, THOUSAND)}
