"""What a fuzz target is: a decoder, what must hold of it for any bytes, and how to make bytes that get far into it.

Nothing here knows atheris, so that the kept corpus is tried in any test run, on any machine.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

Mutate = Callable[[bytes, int], bytes]
"""A change of anything, as libFuzzer makes it: bytes and the most bytes that may come out."""

Mutator = Callable[[bytes, int, int, Mutate], bytes]
"""A change that keeps a format whole: bytes, the most bytes, a seed, and a change of anything for the parts."""


@dataclass(frozen=True)
class Target:
    """One decoder. `check` returns for any bytes; whatever it raises is a bug of the decoder. What it returns, if
    anything, is how it went, where Python's lines do not tell.

    `share` is its part of all executions, in relation to the others; `largest` the most bytes that are tried.
    """

    name: str
    check: Callable[[bytes], object]
    share: int
    mutate: Mutator | None = None
    largest: int = 4096


class Broken(AssertionError):
    """A decoder took what it should not have taken, or said something that it should not say."""


def hold(condition: bool, otherwise: str) -> None:
    """Raise Broken unless the condition holds; unlike an assert it stays in force under `python -O`."""
    if not condition:
        raise Broken(otherwise)


def sayable(error: Exception, longest: int = 1000) -> None:
    """Check that a refusal is text that may go to a terminal: printable, and not without end."""
    text = str(error)
    hold(len(text) <= longest, f"a refusal of {len(text)} characters")
    hold(all(line.isprintable() for line in text.splitlines()), f"a refusal that is not printable: {text!a}")


@cache
def folder(process: int) -> Path:
    """A process's own folder for decoders that read files; in memory, where there is such a file system."""
    path = _place(process)
    shutil.rmtree(path, ignore_errors=True)  # of one that had the same number, and was killed
    path.mkdir(mode=0o700)
    return path


def _place(process: int) -> Path:
    memory = Path("/dev/shm")
    return (memory if memory.is_dir() else Path(tempfile.gettempdir())) / f"alignfed-fuzz-{process}"


def written(data: bytes, name: str, mode: int = 0o600) -> Path:
    """A file with these bytes, which the next one of that name replaces."""
    path = folder(os.getpid()) / name
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)
    return path


def clear(process: int) -> None:
    """Remove the folder of a process, of another only when that is gone."""
    shutil.rmtree(_place(process), ignore_errors=True)
    folder.cache_clear()
