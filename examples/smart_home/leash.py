"""Become a command that dies together with its parent: `python -I -S leash.py PARENT_PID COMMAND...`.

A supervisor that is killed with SIGKILL cannot stop its children; on Linux the kernel does it. Elsewhere the command
runs without the leash. Only the standard library: this runs before every process of the fleet.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask the kernel for the signal, make sure that the parent is still there, then become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above: no signal would ever come
            sys.exit("the parent process is gone; not starting")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
