"""Federations in a made-up world keep their promises, whatever happens and in whatever order; one number is one world.

The services are the production ones; disk, clock, network and training are made up. docs/schedules.md says how.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.schedules import sqlite_files
from tests.schedules.__main__ import TRACE_LINES, told
from tests.schedules.world import play

pytestmark = pytest.mark.skipif(not sqlite_files.can_watch(), reason=sqlite_files.NEEDS_A_LIBRARY)
SCHEDULES, FIRST = 500, 1
BLOCKS = 10
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_promise_holds_in_every_schedule(block: int, tmp_path: Path) -> None:
    size = SCHEDULES // BLOCKS
    for seed in range(FIRST + block * size, FIRST + (block + 1) * size):
        report = play(seed)
        assert report.broken is None, told(report, TRACE_LINES)
        assert report.versions > 0


def test_one_number_is_one_schedule_move_for_move_in_any_process() -> None:
    here = [play(seed).fingerprint for seed in (3, 11, 20)]
    print_them = "from tests.schedules.world import play\nfor seed in (3, 11, 20): print(play(seed).fingerprint)"
    for hash_seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        run = subprocess.run(
            [sys.executable, "-c", print_them], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert run.stdout.split() == here
