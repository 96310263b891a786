"""What a child process of the node does first: it ends with its parent, and lets everybody else go before it."""

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
NICENESS = 10  # a process of niceness 0 beside it gets nine tenths of a processor
FIRST_TO_GO = 700  # of 1000: where memory ends, the system kills this process and not the node


def die_with_the_parent() -> None:
    """Leave no large process behind when the node ends meanwhile; where the system cannot, it ends by itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def stand_back() -> None:
    """Take processor time that nobody else wants, and be the first to go when memory ends."""
    os.nice(NICENESS)
    try:
        Path("/proc/self/oom_score_adj").write_text(str(FIRST_TO_GO))
    except OSError:  # not Linux, or a container that forbids it: the system then chooses by size, which is this one too
        return
