"""A run: round after round, each a federation of its own that lives through a plan of faults and is checked afterwards.

Rounds, because a coordinator reads its whole journal at every start: one federation of twenty thousand updates would
measure little but that. What a round has left is checked from its files alone, after its last process has ended.
"""

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from chaos.checker import Findings, check
from chaos.faults import Faults, Stalled
from chaos.federation import BUFFER, LOAD, Federation, Setting
from chaos.ledgers import read_ledgers
from chaos.plan import Fault, kills_of, plan
from chaos.points import can_trace

WHOLE, IN_CHUNKS = 2, 80  # LoRA ranks: an update of 14 KB in one message, one of 143 KB in chunks
CHUNKED_EVERY, CHUNKED_SLOWER = 3, 4  # rounds; and then a node makes so many times fewer updates
SETTLE_S, QUIET_S = 60.0, 3.0

Progress = Callable[[Fault, int, float], None]


@dataclass(frozen=True)
class Options:
    """How hard and how long: kills in all, in one round, mean seconds between two updates of a node."""

    kills: int
    seed: int
    kills_per_round: int = 50
    training_s: float = 0.5
    until: float = float("inf")  # of the monotonic clock: no fault begins after it


@dataclass(frozen=True)
class Round:
    """One round's findings, why it did not come to its end, and which faults this machine does not allow."""

    findings: Findings
    stalled: str | None
    left_out: tuple[str, ...]


def rounds(options: Options, folder: Path, model: Path, progress: Progress) -> Iterator[Round]:
    """Run as many rounds as the kills need; each one's files are below `folder`."""
    setting = Setting.make(folder, model)
    traces = can_trace()
    left, number = options.kills, 0
    while left > 0 and time.monotonic() < options.until:
        kills = min(left, options.kills_per_round)
        is_chunked = number % CHUNKED_EVERY == CHUNKED_EVERY - 1
        rank = IN_CHUNKS if is_chunked else WHOLE
        training_s = options.training_s * (CHUNKED_SLOWER if is_chunked else 1)
        federation = Federation(setting, folder / f"round-{number:03}", rank, training_s)
        yield _round(federation, plan(options.seed, number, kills), traces, options, progress)
        left, number = left - kills, number + 1


def make_model(folder: Path) -> Path:
    """The tiny model, made by a process of its own."""
    subprocess.run([sys.executable, "-m", "chaos.tiny_model", str(folder)], check=True, stderr=subprocess.DEVNULL)
    return folder


def _round(federation: Federation, faults: tuple[Fault, ...], traces: bool, options: Options,
           progress: Progress) -> Round:  # fmt: skip
    hand = Faults(federation, traces)
    stalled = None
    try:
        federation.start()
        hand.until_served()
        done = 0
        for fault in faults:
            if time.monotonic() > options.until:
                break
            begun = time.monotonic()
            hand.carry_out(fault)
            done += kills_of(fault)
            progress(fault, done, time.monotonic() - begun)
        _settle(federation, hand)
    except Stalled as why:
        stalled = str(why)
    finally:
        hand.close()
        federation.kill_all()
    findings = check(read_ledgers(federation.folder, federation.setting.keys), BUFFER)
    return Round(findings, stalled, tuple(_left_out(federation, traces)))


def _left_out(federation: Federation, traces: bool) -> Iterator[str]:
    if not traces:
        yield "named points: strace may not attach here, so these kills were at random times"
    if not federation.has_small_disks:
        yield "full disk: no tmpfs may be mounted here"


def _settle(federation: Federation, hand: Faults) -> None:
    """Let everything that is under way arrive: no more updates, then outboxes that are empty and a journal at rest.

    What the control was told that the broker has must have time to come out of it.
    """
    for name in (*LOAD, "control"):
        federation.processes[name].signal(signal.SIGUSR1)
    federation.processes.pop("node").end()
    deadline, rows, at_rest_since = time.monotonic() + SETTLE_S, -1, time.monotonic()
    while time.monotonic() < deadline:
        hand.tend()
        now = _count(federation.journal, "messages")
        if now != rows or any(_count(path, "updates") for path in _outboxes(federation)):
            rows, at_rest_since = now, time.monotonic()
        elif time.monotonic() - at_rest_since > QUIET_S:
            break
        time.sleep(0.2)
    else:
        raise Stalled(f"updates were still on their way {SETTLE_S:.0f} s after the last fault")
    for process in federation.processes.values():
        process.end()


def _outboxes(federation: Federation) -> list[Path]:
    return [path for name in LOAD for path in (federation.folder / name).glob("*/outbox.db")]


def _count(path: Path, table: str) -> int:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        (rows,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(rows)
