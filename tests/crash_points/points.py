"""Every point at which a process can die, or its disk can fail it: found by tracing, then tried one after the other.

A life is a program in steps; after each step something is promised. It is traced once to count its calls to the disk.
Then, for every call of every kind, it lives again in a process of its own: killed at that call, or told EIO or ENOSPC.
Another process opens what it left and says what it finds: the state after the last step that was done, or after the
one under way, and nothing else. strace does the counting and the injecting.
"""

import json
import mmap
import os
import shutil
import signal
import subprocess
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

FILLS = ("openat", "write", "pwrite64", "writev", "pwritev", "ftruncate", "fallocate", "mkdir", "mkdirat")
CALLS = (*FILLS, "fsync", "fdatasync", "rename", "renameat", "renameat2", "unlink", "unlinkat")
Failure = Literal["KILL", "EIO", "ENOSPC"]
NEEDS_STRACE = "strace is not installed, or may not trace here. On Debian and Ubuntu: apt-get install strace"
PATIENCE_S = 60.0
ENDED, FAILED = 0, 7


class Life(NamedTuple):
    """`steps` does one step for each of its values; `observe` says what is on disk, in JSON's values; `goes_on` works.

    `expects` are the errors by which such a process ends itself with a sentence.
    """

    name: str
    steps: Callable[[Path], Iterator[None]]
    observe: Callable[[Path], object]
    goes_on: Callable[[Path], None]
    expects: tuple[type[BaseException], ...]


class Point(NamedTuple):
    """The n-th call of a kind, and what happens there."""

    call: str
    number: int
    failure: Failure


@dataclass(frozen=True)
class Outcome:
    """How a life ended: the steps that were done, and the error it ended itself with, if that is how."""

    done: int
    error: str | None
    was_expected: bool


class Fault(AssertionError):
    """After some point, something is there that nobody promised, or something is missing."""


def count_calls(life: Life, place: Path) -> Counter[str]:
    """How often each call occurs in a life that nothing disturbs."""
    log = place / "calls"
    folder = place / "counted"
    _live(life, folder, ("-o", str(log), "-e", f"trace={_those_known()}"))
    shutil.rmtree(folder, ignore_errors=True)
    names = (line.partition("(")[0] for line in log.read_text().splitlines() if "(" in line)
    return Counter(name for name in names if name in CALLS)


def expected_states(life: Life, place: Path) -> list[object]:
    """What is on disk before the first step and after each."""
    states, total = [], _steps_of(life, place)
    for last in range(total + 1):
        folder = place / f"after-{last}"
        folder.mkdir(parents=True)
        _in_a_process(lambda folder=folder, last=last: _take_steps(life, folder, last))
        states.append(_observed(life, folder))
        shutil.rmtree(folder)
    return states


def try_point(life: Life, point: Point, states: list[object], place: Path) -> Outcome:
    """Live with this failure and look at what is left. Raises Fault."""
    folder = place / f"{point.call}-{point.number}-{point.failure}"
    how = "signal=KILL" if point.failure == "KILL" else f"error={point.failure}"
    inject = f"inject={point.call}:{how}:when={point.number}"
    outcome = _live(life, folder, ("-o", "/dev/null", "-e", f"trace={point.call}", "-e", inject))
    where = f"{life.name}, {point.failure} at {point.call} number {point.number}, after {outcome.done} steps"
    if outcome.error is not None and not outcome.was_expected:
        raise Fault(f"{where}: it fails with {outcome.error}")
    found = _in_a_process(lambda: _observe_and_go_on(life, folder))
    if found not in states[outcome.done : outcome.done + 2]:
        between = " or ".join(map(str, states[outcome.done : outcome.done + 2]))
        raise Fault(f"{where}: there is {found}; expected {between}; it said {outcome.error}")
    shutil.rmtree(folder)
    return outcome


def points(calls: Counter[str]) -> list[Point]:
    """Every call, with every failure that it can meet: a disk is full only for what needs room on it."""
    failures: dict[str, tuple[Failure, ...]] = {
        call: ("KILL", "EIO", "ENOSPC") if call in FILLS else ("KILL", "EIO") for call in CALLS
    }
    numbered = ((call, number) for call in CALLS for number in range(1, calls[call] + 1))
    return [Point(call, number, failure) for call, number in numbered for failure in failures[call]]


def chosen(points: list[Point]) -> list[Point]:
    """Every kill, and of the errors every fourth: what a test run has time for."""
    return [point for point in points if point.failure == "KILL" or point.number % 4 == 2 * (point.failure == "EIO")]


def can_trace() -> bool:
    """Whether strace is here and may look at another process."""
    if shutil.which("strace") is None:
        return False
    run = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return run.returncode == 0


def _those_known() -> str:
    return ",".join(f"?{call}" for call in CALLS)  # not every machine has every call


def _live(life: Life, folder: Path, options: tuple[str, ...]) -> Outcome:
    """Live under strace, in a child that shares a page of memory with us: to say how far it is takes no call."""
    folder.mkdir(parents=True)
    page = mmap.mmap(-1, mmap.PAGESIZE)
    gate, opened = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_traced_by_anyone()
        os.read(gate, 1)
        os._exit(_live_and_tell(life, folder, page))
    tracer = subprocess.Popen(["strace", "-qq", *options, "-p", str(pid)], stderr=subprocess.PIPE)
    try:
        _wait_until_traced(pid, tracer)
        os.write(opened, b"x")
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        tracer.wait(PATIENCE_S)
        os.close(gate)
        os.close(opened)
    text = page[1:].split(b"\0")[0].decode(errors="replace")
    if code not in (ENDED, FAILED, -signal.SIGKILL):
        raise Fault(f"{life.name}: the process ended with {code}: {text}")
    error = text[1:] if code == FAILED else None
    return Outcome(page[0], error, text[:1] == "+")


def _live_and_tell(life: Life, folder: Path, page: mmap.mmap) -> int:
    try:
        for done, _ in enumerate(life.steps(folder), start=1):
            page[0] = done
    except BaseException as error:
        mark = "+" if isinstance(error, life.expects) and str(error) else "-"
        words = f"{mark}{type(error).__name__}: {error}"
        words = words if mark == "+" else words + traceback.format_exc()
        page[1 : 1 + len(words.encode()[:3000])] = words.encode()[:3000]
        return FAILED
    return ENDED


def _be_traced_by_anyone() -> None:
    """Where only parents may trace, strace, which is our sibling, may too."""
    import ctypes

    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER, any process


def _wait_until_traced(pid: int, tracer: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + PATIENCE_S
    status = Path(f"/proc/{pid}/status")
    while "TracerPid:\t0\n" in status.read_text():
        if tracer.poll() is not None or time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            why = tracer.stderr.read().decode() if tracer.stderr else ""
            raise RuntimeError(f"{NEEDS_STRACE} ({why.strip()})")
        time.sleep(0.001)


def _steps_of(life: Life, place: Path) -> int:
    with tempfile.TemporaryDirectory(dir=place) as folder:
        return int(_in_a_process(lambda: sum(1 for _ in life.steps(Path(folder)))))


def _take_steps(life: Life, folder: Path, last: int) -> None:
    if last > 0:
        for done, _ in enumerate(life.steps(folder), start=1):
            if done == last:
                os._exit(0)  # as it is, without tidying up


def _observe_and_go_on(life: Life, folder: Path) -> object:
    found = life.observe(folder)
    life.goes_on(folder)
    return found


def _observed(life: Life, folder: Path) -> object:
    return json.loads(json.dumps(_in_a_process(lambda: life.observe(folder))))


def _in_a_process(work: Callable[[], object]) -> object:
    """The work's value, a value of JSON, made by a child; Fault with its trace when it fails."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(out)
        try:
            answer, code = json.dumps(work()), 0
        except BaseException:
            answer, code = traceback.format_exc(), 1
        with os.fdopen(into, "w") as pipe:
            pipe.write(answer)
        os._exit(code)
    os.close(into)
    with os.fdopen(out) as pipe:
        answer = pipe.read()
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        raise Fault(f"what was left cannot be used: {answer}")
    return json.loads(answer) if answer else None
