"""Which faults, in which order, with which delays: a pure function of a seed.

A round is what one federation lives through. Every round has each kind of fault; what fills it are kills.
"""

import random
from dataclasses import dataclass
from typing import Literal

Target = Literal["broker", "coordinator", "load-0", "load-1", "node"]
LinkFault = Literal["slow", "cut in the midst", "corrupt", "reconnects", "late"]

# named points: what a process is about to do when it dies, by the system calls that say so
POINTS: dict[str, dict[Target, tuple[str, ...]]] = {
    "before it commits": {"coordinator": ("fsync", "fdatasync"), "load-1": ("fsync", "fdatasync")},
    "before a file is visible": {
        "coordinator": ("rename", "renameat", "renameat2"),
        "load-1": ("rename", "renameat", "renameat2"),
        "broker": ("rename", "renameat", "renameat2"),
    },
    "before it speaks": {"coordinator": ("write", "sendto"), "load-1": ("write", "sendto"), "broker": ("write",)},
}


@dataclass(frozen=True)
class Together:
    """Kill these, one `gap_s` after the other, then start them all again; `wipes` empties the broker's disk."""

    after_s: float
    targets: tuple[Target, ...]
    gap_s: float = 0.0
    wipes: bool = False


@dataclass(frozen=True)
class Again:
    """Kill one, start it, and kill it again after each gap: while it starts, while it recovers."""

    after_s: float
    target: Target
    gaps_s: tuple[float, ...]


@dataclass(frozen=True)
class AtPoint:
    """Kill one when it reaches a named point for the `nth` time from now."""

    after_s: float
    target: Target
    point: str
    nth: int


@dataclass(frozen=True)
class Freeze:
    """Stop the coordinator for longer than its lease, let a standby take over, and wake it up."""

    after_s: float


@dataclass(frozen=True)
class FullDisk:
    """Fill the disk of one for a while."""

    after_s: float
    target: Literal["coordinator", "load-0"]
    for_s: float


@dataclass(frozen=True)
class ClockJump:
    """Set the coordinator's wall clock so far off from now on; 0 sets it right."""

    after_s: float
    offset_s: int


@dataclass(frozen=True)
class BadLink:
    """Hinder the link of the nodes of load-0 for a while."""

    after_s: float
    fault: LinkFault
    for_s: float


Fault = Together | Again | AtPoint | Freeze | FullDisk | ClockJump | BadLink


def kills_of(fault: Fault) -> int:
    """How many processes a fault kills."""
    match fault:
        case Together(targets=targets):
            return len(targets)
        case Again(gaps_s=gaps):
            return len(gaps) + 1
        case AtPoint():
            return 1
        case _:
            return 0


def plan(seed: int, number: int, kills: int) -> tuple[Fault, ...]:
    """The faults of one round, with exactly so many kills. The same arguments give the same faults."""
    chance = random.Random(f"{seed} {number}")
    faults: list[Fault] = []
    left = kills
    while left > 0:
        fault = _power_cut(chance) if len(faults) % 6 == 0 and left > 1 else _kill(chance, left)
        faults.append(fault)
        left -= kills_of(fault)
    for other in _others(chance):
        faults.insert(chance.randint(1, len(faults)), other)
    return tuple(faults)


def _power_cut(chance: random.Random) -> Fault:
    """The broker dies while the coordinator is away: what it has acknowledged since then is in its memory alone."""
    wipes = chance.random() < 0.4
    return Together(_pause(chance), ("coordinator", "broker"), chance.uniform(0.3, 1.0), wipes)


def _kill(chance: random.Random, most: int) -> Fault:
    what = chance.choices(("one", "again", "point", "some"), (35, 20, 30, 15))[0]
    if what == "again" and most > 1:
        gaps = tuple(chance.uniform(0.05, 1.5) for _ in range(chance.randint(1, min(3, most - 1))))
        return Again(_pause(chance), chance.choices(("coordinator", "load-1"), (3, 1))[0], gaps)
    if what == "some" and most > 1:
        targets: list[Target] = ["broker", "coordinator", "load-0", "load-1"]
        chance.shuffle(targets)
        several = tuple(targets[: chance.randint(2, min(4, most))])
        return Together(
            _pause(chance), several, chance.choice((0.0, 0.1)), "broker" in several and chance.random() < 0.3
        )
    if what == "point":
        return _at_point(chance)
    target: Target = chance.choices(("coordinator", "broker", "load-0", "load-1", "node"), (40, 27, 14, 14, 5))[0]
    return Together(_pause(chance), (target,), wipes=target == "broker" and chance.random() < 0.2)


def _at_point(chance: random.Random) -> Fault:
    point = chance.choice(sorted(POINTS))
    target = chance.choice(sorted(POINTS[point]))
    nth = chance.randint(1, 40) if point == "before it speaks" else chance.randint(1, 4)
    return AtPoint(_pause(chance), target, point, 1 if target == "broker" and "file" in point else nth)


def _others(chance: random.Random) -> tuple[Fault, ...]:
    links: tuple[LinkFault, ...] = ("slow", "cut in the midst", "corrupt", "reconnects", "late")
    return (
        Freeze(_pause(chance)),
        FullDisk(_pause(chance), "coordinator", chance.uniform(0.5, 2)),
        FullDisk(_pause(chance), "load-0", chance.uniform(0.5, 2)),
        ClockJump(_pause(chance), chance.choice((-1800, 3 * 3600, 6 * 3600))),
        ClockJump(_pause(chance), 0),
        *(BadLink(_pause(chance), fault, chance.uniform(0.5, 2)) for fault in links),
    )


def _pause(chance: random.Random) -> float:
    """Most faults come soon after the last, some when all has calmed down."""
    return min(3.0, chance.expovariate(3.0))
