"""Many replicas of one container, each a node of its own: a process takes the first free identity of a shared folder.

An identity is a folder with the settings file of one node. Its lock says that somebody is this node now; its `holder`
file says who was it last, so that a container that was killed comes back as the node it was. It knows no settings.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SETTINGS, LOCK, HOLDER = "alignfed.toml", "taken", "holder"
RETURN_S = 10.0  # a killed container is started again within this time, at least by its first few restarts
LOOK_EVERY_S = 0.2


class NoFreeIdentity(OSError):
    """Every identity of the folder is taken, or there is none; says how to get more."""


@dataclass(frozen=True)
class Identity:
    """One node that this process is from now on: `settings` is its file, `lock` is held until the process ends."""

    settings: Path
    lock: int


def claim(folder: Path, holder: str, return_s: float = RETURN_S) -> Identity:
    """Become one node of the folder: the one that `holder` was before, else one whose holder is gone, else a new one.

    A holder counts as gone after `return_s` seconds without its lock. Raises NoFreeIdentity.
    """
    candidates = sorted((path.parent for path in folder.glob(f"*/{SETTINGS}")), key=_in_order)
    for candidate in _in_turn(candidates, holder, return_s):
        if (lock := _lock(candidate)) is not None:
            (candidate / HOLDER).write_text(holder, encoding="utf-8")
            return Identity(candidate / SETTINGS, lock)
    raise NoFreeIdentity(
        f"{folder} has {len(candidates)} nodes and none is free: make more of them, or start fewer processes"
    )


def _in_turn(candidates: list[Path], holder: str, return_s: float) -> Iterator[Path]:
    """Whom to try, in this order; before a node that somebody else was, that one has time to come back."""
    own = [candidate for candidate in candidates if _holder(candidate) == holder]
    yield from own
    if own:  # somebody who only looked may have had its lock for that moment
        time.sleep(LOOK_EVERY_S)
        yield from own
    left = [candidate for candidate in candidates if _holder(candidate) and _is_free(candidate)]
    deadline = time.monotonic() + return_s
    while left and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)
        left = [candidate for candidate in left if _is_free(candidate)]
    yield from left
    yield from (candidate for candidate in candidates if not _holder(candidate))


def _holder(candidate: Path) -> str:
    try:
        return (candidate / HOLDER).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _is_free(candidate: Path) -> bool:
    lock = _lock(candidate)
    if lock is not None:
        os.close(lock)
    return lock is not None


def _lock(candidate: Path) -> int | None:
    """The locked file's descriptor; None where another process has it. The kernel lets go when the process ends."""
    descriptor = os.open(candidate / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _in_order(candidate: Path) -> tuple[int, str]:
    """node-2 before node-10."""
    return len(candidate.name), candidate.name
