"""The processes of one machine as a fleet: start, restart, stop, and leave nothing behind.

It knows programs and signals, not what the programs do. Everything is called from one thread, and that thread must
live as long as the fleet: on Linux a child is killed when the thread that started it ends.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

MAX_RESTARTS = 5
STOP_AFTER_S = 10.0
LEASH = Path(__file__).with_name("leash.py")


@dataclass(frozen=True)
class Program:
    """One process to run: its name, its command (the first word is a path), and the file that takes its output."""

    name: str
    command: tuple[str, ...]
    log: Path


@dataclass(frozen=True)
class Restart:
    """A process that something else ended, and that runs again."""

    name: str
    ended: str
    count: int


class ProcessFailed(RuntimeError):
    """A process ended by an error of its own, or too often; the text holds its last words."""


class Fleet:
    """Running processes by name. Use it in a `with` block: on leaving it, every process is stopped."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._programs: dict[str, Program] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._restarts: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def start(self, program: Program) -> None:
        """Start a process; its output is appended to its log."""
        if program.name in self._processes:
            raise ValueError(f"{program.name} runs already")
        self._programs[program.name] = program
        self._launch(program)

    def tend(self) -> tuple[Restart, ...]:
        """Start again what was ended from outside; raise ProcessFailed for what failed by itself or ends too often."""
        restarts = []
        for name, process in list(self._processes.items()):
            code = process.poll()
            if code is None:
                continue
            self._restarts[name] = self._restarts.get(name, 0) + 1
            if code > 0 or self._restarts[name] > MAX_RESTARTS:
                raise ProcessFailed(self._last_words(name, code))
            restarts.append(Restart(name, in_words(code), self._restarts[name]))
            self._launch(self._programs[name])
        return tuple(restarts)

    def stop(self) -> None:
        """Ask every process to end, wait up to 10 s, then kill what is left. A second interrupt kills at once."""
        try:
            for process in self._processes.values():
                process.terminate()
            deadline = time.monotonic() + STOP_AFTER_S
            for process in self._processes.values():
                _wait(process, deadline - time.monotonic())
        finally:
            for process in self._processes.values():
                process.kill()
                process.wait()
            self._processes.clear()

    def pid(self, name: str) -> int:
        """The process id that runs under this name."""
        return self._processes[name].pid

    def _launch(self, program: Program) -> None:
        leash = (sys.executable, "-I", "-S", str(LEASH), str(os.getpid()))
        with program.log.open("ab") as log:
            self._processes[program.name] = subprocess.Popen(
                leash + program.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                process_group=0,  # a Ctrl-C in the terminal is the supervisor's to pass on, in its own order
            )

    def _last_words(self, name: str, code: int) -> str:
        log = self._programs[name].log
        lines = "\n".join(f"  {line}" for line in tail(log))
        often = f" {self._restarts[name]} times" if self._restarts[name] > 1 else ""
        return f"{name} {in_words(code)}{often}. The last lines of {log}:\n{lines or '  (nothing)'}"


def in_words(code: int) -> str:
    """How a process ended, from its return code."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return "ended by itself" if code == 0 else f"failed with exit code {code}"


def tail(log: Path, lines: int = 12) -> tuple[str, ...]:
    """The last lines of a log file; none when there is no file."""
    if not log.exists():
        return ()
    with log.open(encoding="utf-8", errors="replace") as text:
        return tuple(_readable(line.rstrip()) for line in deque(text, lines))


def _readable(line: str) -> str:
    """A line as a person reads it: what our own processes write to files is JSON."""
    try:
        said = json.loads(line)
        return f"{said['level']} {said['message']}"
    except (ValueError, KeyError, TypeError):  # somebody else's line, such as a traceback's
        return line


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return  # it had its time; the caller kills it
