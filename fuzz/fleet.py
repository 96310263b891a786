"""All targets' searches, a few at a time: who gets how many executions, what came of them, and how to see it again."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz import corpus as kept
from fuzz.search import Search, begin
from fuzz.target import Target, clear

REPORT_EVERY_S = 10.0
LAST_LINES = 30


@dataclass(frozen=True)
class Found:
    """What came of the searches."""

    executions: Mapping[str, int]
    crashes: Mapping[str, str]  # by target, the input that broke it, or the log of a process that was lost
    seconds: float
    interrupted: bool

    def summary(self) -> dict[str, Any]:
        """The figures, for a line of JSON."""
        return {
            "executions": sum(self.executions.values()),
            "crashes": len(self.crashes),
            "seconds": round(self.seconds, 1),
            "interrupted": self.interrupted,
            "inputs": dict(self.crashes),
            "targets": dict(self.executions),
        }


def shares(targets: Sequence[Target], runs: int) -> list[int]:
    """How many of the runs each target gets, by its share; together no fewer than `runs`."""
    whole = sum(target.share for target in targets)
    return [-(-runs * target.share // whole) for target in targets]


def search_all(
    targets: Sequence[Target], *, runs: int, seed: int, processes: int, corpus: Path, crashes: Path
) -> Found:
    """Search all targets, so many at a time; standard error says how far it is, and what breaks, as it happens."""
    began = time.monotonic()
    crashes.mkdir(parents=True, exist_ok=True)
    searches = []
    for target, count in zip(targets, shares(targets, runs), strict=True):
        kept.unpack(target.name, corpus / target.name)
        searches.append(Search(target, count, seed, corpus / target.name, crashes, crashes / f"{target.name}.log"))
    broken: dict[str, str] = {}
    interrupted = _work(searches, processes, broken, began)
    for search in searches:
        if search.target.name not in broken:
            search.log.unlink(missing_ok=True)
    if not any(crashes.iterdir()):
        crashes.rmdir()
    executions = {search.target.name: search.executed for search in searches}
    return Found(executions, broken, time.monotonic() - began, interrupted)


def _work(searches: Sequence[Search], processes: int, broken: dict[str, str], began: float) -> bool:
    """Do the searches, the longest first; whether somebody has interrupted them."""
    waiting = sorted(searches, key=lambda search: search.runs)
    running: dict[int, Search] = {}
    report_at = began + REPORT_EVERY_S
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                search = waiting.pop()
                running[begin(search)] = search
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in running:
                clear(pid)
                _note(running.pop(pid), status, broken)
            else:
                time.sleep(0.02)
            if time.monotonic() >= report_at:
                report_at += REPORT_EVERY_S
                _report(searches, len(broken), time.monotonic() - began)
    except KeyboardInterrupt:  # the terminal has told the others, too
        for pid, search in running.items():
            os.waitpid(pid, 0)
            clear(pid)
            print(f"{search.target.name}: interrupted", file=sys.stderr)
        return True
    return False


def _note(search: Search, status: int, broken: dict[str, str]) -> None:
    if status == 0 and search.executed >= search.runs:
        return
    name = search.target.name
    inputs = search.kept
    broken[name] = str(max(inputs, key=lambda path: path.stat().st_mtime) if inputs else search.log)
    lines = search.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    print(f"\n{name} is broken, after {search.executed} executions:", *lines, sep="\n  ", file=sys.stderr)
    print(f"run it again: python -m fuzz --again {name} {broken[name]}\n", file=sys.stderr, flush=True)


def _report(searches: Sequence[Search], broken: int, seconds: float) -> None:
    done, runs = sum(search.executed for search in searches), sum(search.runs for search in searches)
    text = f"{done:,} of {runs:,} executions, {done / seconds:,.0f} in a second, {broken} targets broken"
    print(text, file=sys.stderr, flush=True)
