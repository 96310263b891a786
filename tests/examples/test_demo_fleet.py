"""Supervision, with real processes: what is started is tended, and nothing outlives its supervisor."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from examples.smart_home.fleet import MAX_RESTARTS, Fleet, ProcessFailed, Program, tail
from examples.smart_home.memory import memory_of
from tests.patience import PATIENCE_S

SLEEP = "import time; time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
)


def program(tmp_path: Path, code: str, name: str = "worker") -> Program:
    return Program(name, (sys.executable, "-c", code), tmp_path / f"{name}.log")


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def tend_until_restart(fleet: Fleet):
    restarts = []
    wait_until(lambda: restarts.extend(fleet.tend()) or restarts)
    return restarts


@pytest.fixture
def fleet():
    with Fleet(dict(os.environ)) as running:
        yield running


def test_leaving_the_block_ends_every_process(tmp_path):
    with Fleet(dict(os.environ)) as fleet:
        fleet.start(program(tmp_path, SLEEP, "one"))
        fleet.start(program(tmp_path, SLEEP, "two"))
        pids = [fleet.pid("one"), fleet.pid("two")]
        assert all(psutil.pid_exists(pid) for pid in pids)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_process_that_ignores_the_request_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("examples.smart_home.fleet.STOP_AFTER_S", 0.2)
    with Fleet(dict(os.environ)) as fleet:
        deaf = program(tmp_path, STUBBORN)
        fleet.start(deaf)
        wait_until(lambda: "deaf" in deaf.log.read_text())
        pid = fleet.pid("worker")
    assert not psutil.pid_exists(pid)


def test_a_process_killed_from_outside_runs_again(tmp_path, fleet):
    fleet.start(program(tmp_path, SLEEP))
    first = fleet.pid("worker")
    os.kill(first, signal.SIGKILL)
    [restart] = tend_until_restart(fleet)
    assert (restart.name, restart.ended, restart.count) == ("worker", "was killed by SIGKILL", 1)
    assert fleet.pid("worker") != first
    assert psutil.pid_exists(fleet.pid("worker"))


def test_a_process_that_is_killed_again_and_again_is_given_up(tmp_path, fleet):
    fleet.start(program(tmp_path, SLEEP))
    for _ in range(MAX_RESTARTS):
        os.kill(fleet.pid("worker"), signal.SIGKILL)
        tend_until_restart(fleet)
    os.kill(fleet.pid("worker"), signal.SIGKILL)
    with pytest.raises(ProcessFailed, match="worker was killed by SIGKILL 6 times"):
        tend_until_restart(fleet)


def test_a_process_that_fails_by_itself_is_named_with_its_last_words(tmp_path, fleet):
    fleet.start(program(tmp_path, "import sys; sys.exit('no disk left')"))
    with pytest.raises(ProcessFailed, match=r"(?s)worker failed with exit code 1.*worker\.log:\n  no disk left"):
        tend_until_restart(fleet)


def test_the_command_takes_the_place_of_the_leash(tmp_path, fleet):
    # a tester who kills the pid that `ps` shows for the coordinator must hit the coordinator
    fleet.start(program(tmp_path, SLEEP))
    process = psutil.Process(fleet.pid("worker"))
    wait_until(lambda: process.cmdline()[1:] == ["-c", SLEEP])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills the children of a dead parent")
def test_no_process_survives_a_supervisor_that_is_killed(tmp_path):
    code = f"""
import os, sys, time
from pathlib import Path
from examples.smart_home.fleet import Fleet, Program
fleet = Fleet(os.environ)
fleet.start(Program("worker", (sys.executable, "-c", {SLEEP!r}), Path({str(tmp_path)!r}) / "log"))
print(fleet.pid("worker"), flush=True)
time.sleep(600)
"""
    supervisor = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with supervisor, supervisor.stdout as out:
        worker = psutil.Process(int(out.readline()))
        wait_until(lambda: worker.cmdline()[1:] == ["-c", SLEEP])
        supervisor.kill()
    wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


def test_memory_of_two_processes_is_more_than_of_one(tmp_path, fleet):
    fleet.start(program(tmp_path, "x = bytearray(b'1') * 50_000_000; import time; time.sleep(600)"))
    own, other = psutil.Process(), psutil.Process(fleet.pid("worker"))
    wait_until(lambda: other.memory_info().rss > 50_000_000)
    alone, _ = memory_of([own])
    together, _ = memory_of([own, other])
    assert together - alone > 40_000_000


def test_the_last_lines_of_a_log_are_told_in_words(tmp_path):
    lines = '{"level": "error", "message": "the disk is full"}\nValueError: no JSON\n{"a": 1}\n7\n'
    (tmp_path / "log").write_text(lines)
    assert tail(tmp_path / "log") == ("error the disk is full", "ValueError: no JSON", '{"a": 1}', "7")
