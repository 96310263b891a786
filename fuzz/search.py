"""One target's search by libFuzzer, in a process of its own that is forked from one with everything imported.

The process counts its executions in memory that it shares with its parent, and ends itself after the last: so the
count is exact, also of a search that was interrupted or has found something.
"""

import hashlib
import mmap
import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.target import Target

SLOWEST_S = 10  # for one input; the slowest honest ones take milliseconds
LARGEST_MB = 768  # of the whole process; without any input it takes about 150
BROKEN = 77
LOST = 70  # exit code of a process that did not come to its end
_COUNT = struct.Struct("<Q")


@dataclass(frozen=True)
class Search:
    """What to do: so many executions, from a corpus in a folder, with a seed; crashes are kept in a folder."""

    target: Target
    runs: int
    seed: int
    corpus: Path
    crashes: Path
    log: Path
    counter: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, _COUNT.size), repr=False, compare=False)

    @property
    def executed(self) -> int:
        """How many inputs were tried by now; any process may ask."""
        count: int = _COUNT.unpack_from(self.counter)[0]
        return count

    @property
    def kept(self) -> Sequence[Path]:
        """The inputs that this target has failed on, now or before."""
        return sorted(path for path in self.crashes.glob(f"{self.target.name}-*") if path.suffix != ".log")


def begin(search: Search) -> int:
    """Start the search in another process, and return its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    if (pid := os.fork()) != 0:
        return pid
    try:
        _search(search)
    finally:  # whatever happens, this process must not go on as its parent
        os._exit(LOST)


def _search(search: Search) -> None:
    """Try inputs until the runs are over; does not return."""
    import atheris

    descriptor = os.open(search.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # libFuzzer has a handler of its own
    target = search.target
    arguments = [
        f"fuzz-{target.name}",
        f"-seed={search.seed}",
        f"-max_len={target.largest}",
        f"-timeout={SLOWEST_S}",
        f"-rss_limit_mb={LARGEST_MB}",
        f"-artifact_prefix={search.crashes}/{target.name}-",
        "-detect_leaks=0",
        str(search.corpus),
    ]
    mutate = target.mutate

    def change(data: bytes, most: int, seed: int) -> bytes:
        assert mutate is not None
        return mutate(data, most, seed, atheris.Mutate)

    atheris.Setup(arguments, _counted(search), **({"custom_mutator": change} if mutate else {}))
    atheris.Fuzz()


def _counted(search: Search) -> Callable[[bytes], None]:
    """The target's check, which ends the process after the last run, or keeps the input that it fails on."""
    check, runs, counter = search.target.check, search.runs, search.counter
    count = 0

    def run(data: bytes) -> None:
        nonlocal count
        count += 1
        _COUNT.pack_into(counter, 0, count)
        try:
            check(data)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            (search.crashes / f"{search.target.name}-crash-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
            os._exit(BROKEN)
        if count >= runs:
            os._exit(0)

    return run
