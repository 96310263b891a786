"""Carries out a plan's faults on a federation, one after the other, and waits for it to recover from each.

What was done is written to `faults.jsonl`, for the checker. A process that ended by itself is started again, as the
init system of a deployment would, and that is written down, too.
"""

import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from chaos.federation import LOAD, Federation
from chaos.plan import (
    POINTS,
    Again,
    AtPoint,
    BadLink,
    ClockJump,
    Fault,
    Freeze,
    FullDisk,
    LinkFault,
    Target,
    Together,
)
from chaos.points import tracing
from chaos.recovery import Kill, back_at
from chaos.witness import Reader, Seen
from coordinator.journal import START

PATIENCE_S = 90.0
POINT_PATIENCE_S = 4.0
LOOK_EVERY_S = 0.05
RESTART_AFTER_S = 0.3
NOTICED_S = 1.5  # what a frozen coordinator might say after it was woken has arrived by then


class Stalled(RuntimeError):
    """The federation did not recover within a patience that no machine needs; says what was waited for."""


class Faults:
    """The hand that does it. `kills` are those so far."""

    def __init__(self, federation: Federation, can_trace: bool) -> None:
        self.kills: list[Kill] = []
        self.ended: list[str] = []
        self._federation, self._can_trace = federation, can_trace
        self._readers = [Reader(federation.witness / f"{name}.jsonl") for names in LOAD.values() for name in names]
        self._seen: list[Seen] = []  # since the last fault
        self._file = (federation.folder / "faults.jsonl").open("a", buffering=1)
        self._burst = 0
        self._restart_at: dict[str, float] = {}

    def carry_out(self, fault: Fault) -> None:
        """Do it, and wait until all is well again. Raises Stalled."""
        self._wait(fault.after_s)
        self._burst += 1
        self._seen.clear()
        match fault:
            case Together():
                self._together(fault)
            case Again(target=target, gaps_s=gaps):
                for gap_s in (*gaps, 0.0):
                    self._kill(target, "again and again")
                    self._start(target)
                    time.sleep(gap_s)
            case AtPoint(target=target, point=point, nth=nth):
                self._at_point(target, point, nth)
            case Freeze():
                self._freeze()
            case FullDisk(target=target, for_s=seconds):
                self._full_disk(target, seconds)
            case ClockJump(offset_s=offset_s):
                self._federation.clock.write_text(str(offset_s))
                self._note("clock", offset_s=offset_s)
            case BadLink(fault=how, for_s=seconds):
                self._bad_link(how, seconds)
        self.until_served()

    def until_served(self) -> None:
        """Wait until a receipt arrives at each process of nodes, and whoever was killed last is heard of."""
        begun = time.monotonic()
        burst = [kill for kill in self.kills if kill.burst == self._burst and kill.target != "node"]
        newest = {kill.target: kill for kill in burst}.values()

        def all_back() -> bool:
            return all(back_at(kill, self._seen) is not None for kill in newest) and all(
                self._receipt_since(begun, names) for names in LOAD.values()
            )

        self._until(all_back, "whoever was killed to be heard of, and a receipt at every process of nodes")

    def _receipt_since(self, at: float, names: tuple[str, ...]) -> bool:
        return any(one.what == "receipted" and one.at > at and one.node in names for one in self._seen)

    def _together(self, fault: Together) -> None:
        how = "power cut" if fault.targets == ("coordinator", "broker") else "random"
        for number, target in enumerate(fault.targets):
            time.sleep(fault.gap_s if number else 0.0)
            self._kill(target, how + (", broker wiped" if fault.wipes and target == "broker" else ""))
        if fault.wipes:
            self._federation.wipe_broker()
        for target in sorted(fault.targets, key=lambda target: target != "broker"):
            self._start(target)

    def _kill(self, target: Target, how: str) -> None:
        at = time.monotonic()  # before it: what nodes see of the death comes after
        self._bury(target, how, at)

    def _bury(self, target: Target, how: str, died_at: float) -> None:
        """See to it that it is dead, and write it down."""
        if target == "broker":
            self._federation.broker.kill()
        else:
            self._federation.processes[target].kill()
        kill = Kill(self._burst, died_at, target, how, _epochs(self._federation.journal), LOAD.get(target, ()))
        self.kills.append(kill)
        self._note("kill", **asdict(kill))

    def _start(self, target: Target) -> None:
        if target == "broker":
            self._federation.broker.restart()
        else:
            self._federation.processes[target].start()

    def _at_point(self, target: Target, point: str, nth: int) -> None:
        pid = self._federation.broker.pid if target == "broker" else self._federation.processes[target].pid
        died_at = None
        if self._can_trace:
            with tracing(pid, POINTS[point][target], nth) as tracer:
                if tracer.is_attached and target == "broker" and "file" in point:
                    os.kill(pid, signal.SIGUSR1)  # mosquitto saves now
                died_at = _dies(pid, POINT_PATIENCE_S) if tracer.is_attached else None
        # of what is dead this only collects the exit code; not while strace, which may sit on it, is there
        if died_at is None:
            self._kill(target, "random")
        else:
            self._bury(target, point, died_at)
        self._start(target)

    def _freeze(self) -> None:
        federation = self._federation
        frozen, standby = federation.processes["coordinator"], federation.standby()
        standby.start()
        try:
            self._until(lambda: _says(standby.log, "waiting as its standby"), "the standby to wait")
            epochs = _epochs(federation.journal)
            frozen.signal(signal.SIGSTOP)
            federation.processes["coordinator"] = standby
            newer = lambda: any((one.epoch or 0) > epochs for one in self._seen)  # noqa: E731
            self._until(newer, "the standby to take over")
            woke_at = time.monotonic()
            frozen.signal(signal.SIGCONT)
            self._note("freeze", woke_at=woke_at, code=frozen.ends_within(PATIENCE_S), epochs=epochs)
            self._wait(NOTICED_S)
            self._note("freeze is over")
        finally:
            frozen.kill()
            federation.processes["coordinator"] = standby

    def _full_disk(self, target: str, seconds: float) -> None:
        disk = self._federation.disks[target]
        if not disk.is_small:
            return
        disk.fill()
        self._note("full disk", target=target)
        self._wait(seconds)
        disk.free()

    def _bad_link(self, how: LinkFault, seconds: float) -> None:
        proxy = self._federation.proxy
        assert proxy is not None
        self._note("link", how=how)
        match how:
            case "slow":
                proxy.delay_s, proxy.bytes_per_s = 0.03, 30_000
            case "cut in the midst":
                proxy.cuts.extend((2500, 6000, 9000, 14_000, 20_000))
                proxy.cut()
            case "corrupt":
                proxy.corrupt.update(proxy.bytes_up + 3000 * n for n in range(1, 6))
            case "reconnects":
                for _ in range(10):
                    proxy.cut()
                    time.sleep(seconds / 10)
            case "late":  # before the client is back, which says it again; and when the broker knows of its return
                for late_s in (0.05, seconds / 2):
                    proxy.deliver_late(held_s=0.2, late_s=late_s)
                    time.sleep(0.2 + late_s)
        self._wait(seconds)
        proxy.delay_s = proxy.bytes_per_s = 0.0
        proxy.cuts.clear()
        proxy.corrupt.clear()

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.tend()
            time.sleep(min(LOOK_EVERY_S, left))

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise Stalled(f"waited {PATIENCE_S:.0f} s for {what}")
            self.tend()
            time.sleep(LOOK_EVERY_S)

    def tend(self) -> None:
        """Read what was seen, and start again what has ended by itself."""
        for reader in self._readers:
            self._seen += reader.more()
        self._seen.sort(key=lambda one: one.at)
        now = time.monotonic()
        for name, process in self._federation.processes.items():
            if process.is_alive:
                continue
            if (at := self._restart_at.pop(name, None)) is None:
                self._restart_at[name] = now + RESTART_AFTER_S
                self.ended.append(name)
                self._note("ended by itself", target=name, code=process.ends_within(0))
            elif now >= at:
                process.start()
            else:
                self._restart_at[name] = at

    def _note(self, what: str, **facts: Any) -> None:
        self._file.write(json.dumps({"what": what, "noted_at": time.monotonic(), **facts}) + "\n")

    def close(self) -> None:
        self._file.close()


def _epochs(journal: Path) -> int:
    """How many times a coordinator has begun to decide on this journal."""
    if not journal.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True)) as database:
            (count,) = database.execute("SELECT count(*) FROM messages WHERE topic = ?", (START,)).fetchone()
    except sqlite3.OperationalError:  # it was killed while it made its tables
        return 0
    return int(count)


def _dies(pid: int, within_s: float) -> float | None:
    """When it was last seen alive, if it dies within so many seconds."""
    alive_at = time.monotonic()
    deadline = alive_at + within_s
    while time.monotonic() < deadline:
        now = time.monotonic()
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return alive_at
        except psutil.NoSuchProcess:
            return alive_at
        alive_at = now
        time.sleep(0.01)
    return None


def _says(log: Path, text: str) -> bool:
    return text in log.read_text(errors="replace")
