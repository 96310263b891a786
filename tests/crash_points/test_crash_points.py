"""Outbox, held adapter, journal and registry at every call to the disk: killed there, or told that the disk fails.

All kills are tried here, and of the errors every fourth; `make crash-points` tries all.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash_points import points
from tests.crash_points.lives import LIVES

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not points.can_trace(), reason=points.NEEDS_STRACE)
@pytest.mark.parametrize("store", [life.name for life in LIVES])
def test_nothing_that_was_promised_is_lost_wherever_the_process_dies_or_its_disk_fails(store: str) -> None:
    command = [sys.executable, "-m", "tests.crash_points", "--store", store, "--chosen"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (tried,) = json.loads(run.stdout.splitlines()[-1])["stores"].values()
    assert tried["points"] > 50
    assert tried["ended_with_a_sentence"] > 0
