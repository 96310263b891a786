"""What lies in the cache is made once, by one process, in a child that gives its memory back; whole, or not there."""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from base_model.progress import Progress

REASON_LINES = 3


@contextmanager
def locked(cache: Path, key: str, progress: Progress) -> Iterator[None]:
    """Hold the one lock for this key; several processes may start at once, and one of them does the work."""
    (cache / "locks").mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache / "locks" / f"{key}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        progress("wait", 0, None)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def work_folder(cache: Path, key: str) -> Iterator[Path]:
    """An empty folder below the cache, under the lock of this key; what an earlier, killed process left is removed."""
    work = cache / "work" / key
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def fault_of(module: str, arguments: Sequence[str]) -> str | None:
    """Run a module as a child process; the last lines of what it says is wrong, None when nothing is."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0:
        return None
    return "\n".join(done.stderr.strip().splitlines()[-REASON_LINES:])
