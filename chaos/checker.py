"""Finds what was lost, used twice, left out or told in two ways. Pure: from ledgers to findings.

An update is lost when a node has its receipt and the coordinator has no trace of it, when its effect is in no version
although enough came after it, or when a node has neither it nor an answer to it. What a node was told is too old or
refused is answered, not lost; the findings count it.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

from chaos.ledgers import Ledgers, Made
from chaos.recovery import recoveries

TAKEN = ("accepted", "aggregated")
HOW_MANY = 20  # sentences about one run are enough


@dataclass(frozen=True)
class Findings:
    """What a run has shown. `because` says in sentences what each number that should be 0 is made of."""

    kills: dict[str, int]
    ways: dict[str, int]
    updates: int
    versions: int
    lost: int
    used_twice: int
    gaps: int
    forks: int
    chain_faults: int
    poisoned: int
    replay_faults: int
    published_frozen: int
    control_updates: int
    control_lost: int
    dropped: int
    recoveries: dict[str, list[float]]
    ended: dict[str, int]
    because: tuple[str, ...] = field(default=())

    @property
    def is_sound(self) -> bool:
        """Whether every promise held; the control is another matter."""
        of_chain = (self.gaps, self.forks, self.chain_faults, self.replay_faults, self.published_frozen, self.poisoned)
        return not any((self.lost, self.used_twice, *of_chain))


def check(ledgers: Ledgers, buffer: int) -> Findings:
    """The findings; `buffer` is how many updates make a version, so that fewer than that may wait for one."""
    lost = list(_lost(ledgers, buffer))
    twice, gaps, forks = list(_used_twice(ledgers)), list(_gaps(ledgers)), list(_forks(ledgers))
    frozen = list(_published_frozen(ledgers))
    faults = (lost, twice, gaps, forks, frozen, ledgers.chain_faults, ledgers.replay_faults, ledgers.poisoned)
    receipted = {one.update for one in ledgers.seen if one.what == "receipted"}
    of_nodes = sum(ledger.receipted for name, ledger in ledgers.nodes.items() if name not in _witnessed(ledgers))
    acknowledged = {one.update for one in ledgers.seen if one.what == "puback"}
    return Findings(
        kills=dict(Counter(kill.target for kill in ledgers.kills)),
        ways=dict(Counter(kill.how for kill in ledgers.kills)),
        updates=len(receipted) + of_nodes,
        versions=len(ledgers.registered),
        lost=len(lost),
        used_twice=len(twice),
        gaps=len(gaps),
        forks=len(forks),
        chain_faults=len(ledgers.chain_faults),
        poisoned=len(ledgers.poisoned),
        replay_faults=len(ledgers.replay_faults),
        published_frozen=len(frozen),
        control_updates=len(acknowledged),
        control_lost=len(acknowledged - {known.update for known in ledgers.updates}),
        dropped=len({one.update for one in ledgers.seen if one.what == "dropped"}),
        recoveries={target: seconds for target, seconds in recoveries(ledgers.kills, ledgers.seen).items()},
        ended=dict(Counter(ledgers.ended)),
        because=tuple(sentence for fault in faults for sentence in fault[:HOW_MANY]),
    )


def together(rounds: list[Findings]) -> Findings:
    """The findings of several federations as one."""
    times: dict[str, list[float]] = {}
    for one in rounds:
        for target, seconds in one.recoveries.items():
            times.setdefault(target, []).extend(seconds)
    counts = {
        name: sum(getattr(one, name) for one in rounds)
        for name, kind in Findings.__annotations__.items()
        if kind is int
    }
    kills, ways, ended = (
        dict(sum((Counter(getattr(one, name)) for one in rounds), Counter[str]()))
        for name in ("kills", "ways", "ended")
    )
    because = tuple(sentence for one in rounds for sentence in one.because)
    return Findings(kills=kills, ways=ways, ended=ended, recoveries=times, because=because, **counts)


def summary_of(seconds: list[float]) -> dict[str, float | None]:
    """Median and maximum, in seconds."""
    return {
        "p50": round(median(seconds), 3) if seconds else None,
        "max": round(max(seconds), 3) if seconds else None,
    }


def _lost(ledgers: Ledgers, buffer: int) -> Iterator[str]:
    known = {one.update: one for one in ledgers.updates}
    inputs = {id_: made.version for made in ledgers.registered for id_ in made.inputs}
    receipted = {one.update: one.node for one in ledgers.seen if one.what == "receipted"}
    for id_, node in receipted.items():
        if id_ not in known or known[id_].status not in TAKEN:
            yield f"update {id_} of {node} has a receipt, and the journal has none of it: {known.get(id_ or '')}"
    for one in ledgers.updates:
        if one.status == "aggregated" and inputs.get(one.update) != one.version:
            yield f"update {one.update} is said to be in version {one.version}, whose manifest does not have it"
    pending = [one for one in ledgers.updates if one.status == "accepted"]
    for one in pending if len(pending) >= buffer else ():
        yield f"update {one.update} was accepted and went into no version, although {len(pending)} wait"
    yield from _vanished(ledgers)
    yield from _uncounted(ledgers)


def _vanished(ledgers: Ledgers) -> Iterator[str]:
    """Updates that a node has made, and now has neither in its outbox nor an answer to."""
    answered = {one.update for one in ledgers.seen if one.what in ("receipted", "dropped")}
    waiting = frozenset[str]().union(*(ledger.waiting for ledger in ledgers.nodes.values()))
    for one in ledgers.seen:
        if one.what == "stored" and one.update not in answered and one.update not in waiting:
            yield f"update {one.update} of {one.node} is neither in its outbox nor answered"


def _uncounted(ledgers: Ledgers) -> Iterator[str]:
    """Of nodes that have no witness: receipts that they have counted, beyond what the coordinator has taken."""
    for node in ledgers.nodes.keys() - _witnessed(ledgers):
        ledger = ledgers.nodes[node]
        taken = {one.update for one in ledgers.updates if one.node == node and one.status in TAKEN}
        for _ in range(ledger.receipted - len(taken - ledger.waiting)):
            yield f"{node} has counted {ledger.receipted} receipts; the journal has {len(taken)} of its updates"


def _witnessed(ledgers: Ledgers) -> set[str]:
    return {one.node for one in ledgers.seen}


def _used_twice(ledgers: Ledgers) -> Iterator[str]:
    for name, versions in (("registry", ledgers.registered), ("journal", ledgers.journalled)):
        used = Counter(id_ for made in versions for id_ in made.inputs)
        for id_, times in used.items():
            if times > 1:
                yield f"update {id_} is in {times} versions of the {name}"


def _gaps(ledgers: Ledgers) -> Iterator[str]:
    for name, versions in (("registry", ledgers.registered), ("journal", ledgers.journalled)):
        if [made.version for made in versions] != list(range(len(versions))):
            there = {made.version for made in versions}
            missing = sorted(set(range(max(there, default=0) + 1)) - there)
            yield f"versions {missing} are missing in the {name}"
        by_version = {made.version: made for made in versions}
        for made in versions:
            before = by_version.get(made.version - 1)
            if before is not None and made.parent != before.digest:
                yield f"the parent of version {made.version} in the {name} is not version {before.version}"
    apart = {made.version for made in ledgers.registered} ^ {made.version for made in ledgers.journalled}
    for version in sorted(apart):
        yield f"version {version} is in one of journal and registry only"


def _forks(ledgers: Ledgers) -> Iterator[str]:
    """Versions that are two: by journal, registry and seals, and by every pointer that any node has heard."""
    digests: dict[int, dict[str, str]] = {}
    told: list[tuple[str, tuple[Made, ...]]] = [
        ("journal", ledgers.journalled),
        ("registry", ledgers.registered),
        ("signatures", ledgers.sealed),
    ]
    for name, versions in told:
        for made in versions:
            digests.setdefault(made.version, {}).setdefault(made.digest, name)
    for one in ledgers.seen:
        if one.what in ("heard", "held") and one.version is not None and one.digest is not None:
            digests.setdefault(one.version, {}).setdefault(one.digest, one.node)
    for version, ways in sorted(digests.items()):
        if len(ways) > 1:
            yield f"version {version} is {' and '.join(f'{digest[:12]} ({who})' for digest, who in ways.items())}"


def _published_frozen(ledgers: Ledgers) -> Iterator[str]:
    """What a coordinator said after it was woken up, although another had taken over; and one that did not end."""
    for freeze in ledgers.freezes:
        if freeze.code != 1:
            yield f"a coordinator that was frozen and woken up ended with {freeze.code}, not 1"
        for one in ledgers.seen:
            late = freeze.woke_at < one.at < freeze.over_at
            if late and one.what == "heard" and one.epoch is not None and one.epoch <= freeze.epochs:
                yield f"{one.node} heard version {one.version} of epoch {one.epoch} from a coordinator woken up"
