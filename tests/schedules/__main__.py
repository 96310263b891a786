"""Play many schedules, as in `python -m tests.schedules --schedules 10000 --seed 1`; replay seed N by `--schedules 1`.

The last line is a summary in JSON. The exit code is 1 when a promise was broken; its seed and trace are printed before.
"""

import argparse
import json
import sys
import time
from collections import Counter

from rich.console import Console
from rich.progress import track

from tests.schedules import sqlite_files
from tests.schedules.world import Report, play

TRACE_LINES = 120


def main() -> int:
    """The command."""
    options = _options()
    if not sqlite_files.can_watch():
        print(f"no schedule is played: {sqlite_files.NEEDS_A_LIBRARY}", file=sys.stderr)
        print(json.dumps({"schedules": 0, "left_out": sqlite_files.NEEDS_A_LIBRARY}))
        return 0
    begun, totals, faults, broken = time.monotonic(), Counter[str](), Counter[str](), []
    seeds = range(options.seed, options.seed + options.schedules)
    for seed in track(seeds, "schedules", transient=True, console=Console(stderr=True)):
        report = play(seed)
        faults += report.faults
        totals.update(updates=report.updates, versions=report.versions, moves=report.moves)
        if report.broken is not None:
            broken.append(seed)
            print(told(report, TRACE_LINES), flush=True)
            if len(broken) == options.most_broken:
                break
        elif options.trace:
            print("\n".join(report.trace), flush=True)
        totals["schedules"] += 1
    summary = {
        "schedules": totals["schedules"] + len(broken),
        "seed": options.seed,
        "broken": broken,
        "faults": dict(sorted(faults.items())),
        "updates": totals["updates"],
        "versions": totals["versions"],
        "moves": totals["moves"],
        "seconds": round(time.monotonic() - begun, 1),
    }
    print(json.dumps(summary))
    return 1 if broken else 0


def told(report: Report, lines: int) -> str:
    """A broken schedule in words: what does not hold, how to see it again, and the last that happened."""
    trace = "\n".join(report.trace[-lines:])
    again = f"python -m tests.schedules --schedules 1 --seed {report.seed}"
    return f"seed {report.seed}: {report.broken}\nagain: {again}\nthe last {lines} of {report.moves} moves:\n{trace}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.schedules", description="Play federations in a made-up world."
    )
    parser.add_argument("--schedules", type=int, default=500, help="how many (default: 500)")
    parser.add_argument("--seed", type=int, default=1, help="of the first; the others follow (default: 1)")
    parser.add_argument("--trace", action="store_true", help="print every move of every schedule")
    parser.add_argument("--most-broken", type=int, default=5, help="stop after so many broken ones (default: 5)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
