"""How long it took until what was killed was heard of again. Pure: a function of the kills and of what was seen.

A burst is one or more kills without a recovery between them. Its clock starts with the last kill. The coordinator is
back when a node hears a pointer of a later epoch, the broker when a node that lost it and has connected anew hears
anything of the coordinator, a process of nodes when one of them has started anew and hears of it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from chaos.witness import Seen

SERVED = ("heard", "receipted")


@dataclass(frozen=True)
class Kill:
    """One kill: its burst, when, whom, in which way, and how many epochs the coordinator had begun by then."""

    burst: int
    at: float
    target: str
    how: str
    epochs: int
    clients: tuple[str, ...] = ()  # the names of the nodes in the process that was killed


def back_at(kill: Kill, seen: Iterable[Seen]) -> float | None:
    """When the one that was killed was heard of again, by what was seen since, in order of time; None if not yet."""
    lost, connected, booted = set[str](), set[str](), set[str]()
    for one in seen:
        if one.at <= kill.at:
            continue
        if one.what == "lost":
            lost.add(one.node)
        elif one.what == "connected" and one.node in lost:  # else it is the connection of before, noted late
            connected.add(one.node)
        elif one.what == "boot":
            booted.add(one.node)
            lost.add(one.node)
        elif one.what in SERVED and _shows(kill, one, connected, booted):
            return one.at
    return None


def recoveries(kills: Sequence[Kill], seen: Sequence[Seen]) -> Mapping[str, list[float]]:
    """Seconds from the last kill of each burst until each of its targets was back, by target."""
    seconds = defaultdict[str, list[float]](list)
    for burst in sorted({kill.burst for kill in kills}):
        of_burst = [kill for kill in kills if kill.burst == burst]
        last = max(kill.at for kill in of_burst)
        until = min((kill.at for kill in kills if kill.burst > burst), default=float("inf"))
        since = [one for one in seen if last < one.at < until]
        for target in {kill.target for kill in of_burst}:
            newest = max((kill for kill in of_burst if kill.target == target), key=lambda kill: kill.at)
            if (at := back_at(newest, since)) is not None:
                seconds[target].append(at - last)
    return seconds


def _shows(kill: Kill, one: Seen, connected: set[str], booted: set[str]) -> bool:
    match kill.target:
        case "coordinator":
            return one.epoch is not None and one.epoch > kill.epochs
        case "broker":
            return one.node in connected
        case _:
            return one.node in booted and one.node in kill.clients
