"""The harness itself on real processes: thirty kills with nothing lost but by the control, and an end by Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from broker.embedded import find_mosquitto
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.mosquitto
ROOT = Path(__file__).parents[2]
KILLS = 30
ZERO = ("lost", "used_twice", "gaps", "forks", "chain_faults", "replay_faults", "poisoned", "published_frozen")


def start(folder: Path, *options: str) -> "subprocess.Popen[str]":
    if find_mosquitto() is None:
        pytest.skip("MOSQUITTO IS NOT INSTALLED (apt install mosquitto)")
    command = [sys.executable, "-m", "chaos", "--keep", str(folder), *options]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **output)  # type: ignore[call-overload]


def processes_of(folder: Path) -> list[Any]:
    """Every process that has the run's folder in its command line."""
    found = [process for process in psutil.process_iter() if process.pid != os.getpid()]
    return [process for process in found if str(folder) in " ".join(_command(process))]


def test_thirty_kills_lose_nothing_and_use_nothing_twice_but_the_control_loses(tmp_path: Path) -> None:
    run = start(tmp_path / "run", "--kills", str(KILLS), "--seed", "1")
    output, progress = run.communicate()
    assert run.returncode == 0, progress + output
    found = json.loads(output.splitlines()[-1])
    assert found["kills"]["all"] == KILLS and found["kills"]["coordinator"] and found["kills"]["broker"]
    assert {name: found[name] for name in ZERO} == dict.fromkeys(ZERO, 0)
    assert found["control_lost"] > 0
    assert found["updates"] > 0 and found["recovery_seconds"]["max"] > 0
    assert processes_of(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_interrupted_run_tells_what_it_has_seen_and_leaves_no_process_and_no_disk_behind(tmp_path: Path) -> None:
    run = start(tmp_path / "run", "--kills", "1000", "--kills-per-round", "10", "--seed", "3")
    assert run.stderr is not None
    deadline = time.monotonic() + PATIENCE_S
    seen = ""
    while "/1000 kills" not in seen.partition("round 1")[2]:  # the first fault of the second round
        seen += run.stderr.readline()
        assert run.poll() is None and time.monotonic() < deadline
    assert processes_of(tmp_path) != []
    run.send_signal(signal.SIGINT)
    told, _ = run.communicate()
    assert run.returncode == 130
    assert json.loads(told.splitlines()[-1])["kills"]["all"] >= 10
    assert processes_of(tmp_path) == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


def _command(process: Any) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:  # it has ended meanwhile
        return []
