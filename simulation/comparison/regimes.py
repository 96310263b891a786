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

    name: Literal["narrow", "wide"] = "wide"
    homes: int = 16
    concentration: float = 0.2
    examples_per_home: int = 64
    tests_per_home: int = 16
    calibration: int = 128
    held_out: int = 192
    calibration_kind: Literal["in-domain", "missing-intents", "other-rooms", "wrong"] = "in-domain"
    seed: int = 0

    @property
    def folder(self) -> str:
        """A folder's name that no other task has."""
        return (
            f"{self.name}-{self.homes}x{self.examples_per_home}-dirichlet{self.concentration:g}"
            f"-tests{self.tests_per_home}-held{self.held_out}-calibration{self.calibration}-{self.calibration_kind}"
            f"-{self.seed}"
        )


NOW_AND_THEN = Measuring(every=6, generated=16, own_tests=16)


@dataclass(frozen=True)
class Regime:
    """One set of conditions. `updates` end a run.

    `targets` are losses, fixed before the runs they judge; where there are none, they are derived from a baseline's.
    """

    name: str
    about: str
    task: TaskSpec = TaskSpec()
    schedule: Schedule = field(default_factory=Schedule)
    updates: int = 120
    job_steps: int = 4
    anchor_examples: int = 32
    gate_examples: int = 64
    node_ranks: tuple[int, ...] = ()
    targets: tuple[float, ...] = ()
    measuring: Measuring = NOW_AND_THEN

    def but(self, name: str, about: str, **changes: object) -> "Regime":
        """Other conditions, with targets of their own."""
        return replace(self, name=name, about=about, **{"targets": (), **changes})  # type: ignore[arg-type]


# on seed 0 FedBuff with step 2 serves the first after three quarters of its run, the second near its end
BASE = Regime("base", "16 homes, 38 intents, one-sided data (Dirichlet 0.2), speeds 15 times apart", targets=(1.5, 1.2))

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
CALIBRATION_WRONG = BASE.but(
    "calibration-wrong",
    "calibration whose answers belong to other commands",
    task=replace(BASE.task, calibration_kind="wrong"),
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
        updates=160,
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
    BASE.but("easier", "12 intents, few rooms, devices and ways to say it", task=replace(BASE.task, name="narrow")),
    BASE.but(
        "slow-server", "the coordinator's model is as fast as the fastest node", schedule=Schedule(server_speed=1)
    ),
    BASE.but("mixed-ranks", "adapters of rank 4, 8 and 16 at the nodes, 8 at the coordinator", node_ranks=(4, 16)),
    BASE.but(
        "long-jobs", "jobs of 16 steps in place of 4, so that updates are further apart", job_steps=16, updates=40
    ),
)

LONG = BASE.but(
    "long",
    "2,000 updates, 256 examples in every home",
    task=replace(BASE.task, examples_per_home=256),
    updates=2000,
    measuring=Measuring(every=20, generated=192, own_tests=16),
)

THOUSAND = BASE.but(
    "thousand",
    "a thousand homes, 16 updates to a version",
    task=replace(BASE.task, homes=1000, examples_per_home=16, tests_per_home=4),
    updates=1000,
    measuring=Measuring(every=10, generated=16, own_tests=4),
)

REGIMES = {regime.name: regime for regime in (BASE, *CALIBRATION, CALIBRATION_WRONG, *SPEEDS_AND_DATA, LONG, THOUSAND)}
