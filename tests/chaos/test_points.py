"""Kills at a named point, of a process that knows nothing of it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from chaos.points import can_trace, tracing

SYNCS = """
import os, sys, time
print("ready", flush=True)
sys.stdin.readline()
for number in range(10):
    os.rename("from", "to")
    os.rename("to", "from")
    open(f"done-{number}", "w").close()
"""


def test_a_process_dies_before_its_third_rename_and_not_earlier(tmp_path: Path) -> None:
    if not can_trace():
        pytest.skip("STRACE MAY NOT ATTACH HERE: kills at named points are not tried (apt install strace)")
    (tmp_path / "from").touch()
    child = subprocess.Popen([sys.executable, "-c", SYNCS], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None and child.stdout is not None
    child.stdout.readline()
    with tracing(child.pid, ("rename", "renameat", "renameat2"), 3) as tracer:
        assert tracer.is_attached
        child.stdin.write(b"\n")
        child.stdin.close()
        assert child.wait(60) == -9
    child.stdout.close()
    assert [path.name for path in tmp_path.glob("done-*")] == ["done-0"]


def test_a_process_that_does_not_come_to_the_point_goes_on(tmp_path: Path) -> None:
    if not can_trace():
        pytest.skip("STRACE MAY NOT ATTACH HERE: kills at named points are not tried (apt install strace)")
    with subprocess.Popen(["sleep", "60"]) as child:
        with tracing(child.pid, ("rename",), 1) as tracer:
            assert tracer.is_attached
            time.sleep(0.05)
        assert child.poll() is None
        child.kill()
