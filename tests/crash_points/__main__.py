"""Try every crash point of every store: `python -m tests.crash_points`. The last line is a summary in JSON.

With `--store outbox` only those of one; with `--chosen` every kill, but of the errors every fourth.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.crash_points import points
from tests.crash_points.lives import LIVES
from tests.crash_points.points import Fault, Life, Point


def main() -> int:
    """The command; exit code 1 when something was lost, 2 where nothing can be traced."""
    options = _options()
    if not points.can_trace():
        print(points.NEEDS_STRACE, file=sys.stderr)
        return 2
    logging.disable(logging.CRITICAL)
    begun, faults, tried = time.monotonic(), list[str](), dict[str, object]()
    for life in LIVES:
        if options.store in (None, life.name):
            tried[life.name] = _try_points(life, points.chosen if options.chosen else list, faults)
    for fault in faults:
        print(fault)
    print(json.dumps({"stores": tried, "faults": len(faults), "seconds": round(time.monotonic() - begun, 1)}))
    return 1 if faults else 0


def _try_points(life: Life, choose: Callable[[list[Point]], list[Point]], faults: list[str]) -> dict[str, object]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        place = Path(folder)
        states = points.expected_states(life, place)
        calls = points.count_calls(life, place)
        said, tried = 0, choose(points.points(calls))
        for point in tried:
            try:
                said += points.try_point(life, point, states, place).error is not None
            except Fault as fault:
                faults.append(str(fault))
    return {"calls": dict(sorted(calls.items())), "points": len(tried), "ended_with_a_sentence": said}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash_points", description="Kill at every call to the disk.")
    parser.add_argument("--store", choices=[life.name for life in LIVES], help="only this one")
    parser.add_argument("--chosen", action="store_true", help="of the errors every fourth, for a test run")
    return parser.parse_args()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
