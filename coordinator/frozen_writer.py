"""Ends a process that froze in the midst of a transaction: until it is gone, nobody else can write to the database.

A process is known by its number and the time of its start, so that a later one with the same number is left alone; who
writes is known from the system's table of locks. Where the system tells neither, nobody is ended.
"""

import os
import signal
from pathlib import Path
from typing import NamedTuple

LOCKS = Path("/proc/locks")
WRITE_LOCK = (
    120  # the byte of the write-ahead log's index that SQLite locks to write: https://sqlite.org/walformat.html
)


class ProcessId(NamedTuple):
    """A process of this machine that has been or still is."""

    pid: int
    started: int  # in clock ticks since the machine's start; 0 where the system does not tell

    def __str__(self) -> str:
        return f"{self.pid} {self.started}"


def this_process() -> ProcessId:
    """The one that asks."""
    return ProcessId(os.getpid(), _started(os.getpid()) or 0)


def writer_of(database: Path) -> int | None:
    """The number of the process in a transaction that writes to a database; None if nobody is, or nobody knows."""
    index = Path(f"{database}-shm")
    if not (LOCKS.exists() and index.exists()):
        return None
    inode = str(index.stat().st_ino)
    for line in LOCKS.read_text(encoding="ascii").splitlines():
        # "7: POSIX  ADVISORY  WRITE 4711 08:02:131107 120 120"; "->" after the colon is one who waits
        match line.split():
            case [_, "POSIX", _, "WRITE", pid, file, first, last] if file.rpartition(":")[2] == inode:
                if int(first) <= WRITE_LOCK and (last == "EOF" or int(last) >= WRITE_LOCK):
                    return int(pid) or None  # 0 is a process of another container
    return None


def end(process: ProcessId) -> bool:
    """Kill it, and say whether it was still there. Raises OSError when that is not allowed."""
    try:
        descriptor = os.pidfd_open(process.pid)  # it stays this process, whatever the number means later
    except ProcessLookupError:
        return False
    try:
        if not process.started or _started(process.pid) != process.started:
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        return True
    finally:
        os.close(descriptor)


def _started(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])  # field 22; the name in field 2 may hold anything
