"""Memory that was freed goes back to the system, not only to the C library, which keeps it for itself otherwise.

On a gateway that matters more than the time it takes. Where the system knows no such requests, nothing happens.
"""

import ctypes
import mmap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from numpy.typing import NDArray

M_ARENA_MAX = -8  # of glibc's malloc.h
MAPS = Path("/proc/self/smaps")
MADV_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)


def share_one_heap() -> None:
    """Let all threads allocate from one heap: each would keep what it freed in one of its own. Call it at the start."""
    if hasattr(_c_library(), "mallopt"):
        _c_library().mallopt(M_ARENA_MAX, 1)


def give_back_memory() -> None:
    """Return freed memory to the system; about a millisecond."""
    if hasattr(_c_library(), "malloc_trim"):
        _c_library().malloc_trim(0)


def let_go_of_values(values: NDArray) -> None:  # type: ignore[type-arg]
    """Let go of the pages of an array that is mapped from a file, until it is read again; others stay as they are."""
    owner = values
    while (base := getattr(owner, "base", None)) is not None:
        owner = base
    mapped = owner.obj if isinstance(owner, memoryview) else owner
    if isinstance(mapped, mmap.mmap) and MADV_DONTNEED is not None:
        mapped.madvise(MADV_DONTNEED)


def let_go_of_file(path: Path) -> None:
    """Let go of the pages of a file that somebody in this process has mapped, until they are read again."""
    if MADV_DONTNEED is None or not MAPS.exists():
        return
    for addresses in _unwritten_mappings(path):
        start, end = (int(address, 16) for address in addresses.split("-"))
        _c_library().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


def _unwritten_mappings(path: Path) -> Iterator[str]:
    """From where to where a file is mapped; without mappings that have pages of their own, beside those of the file."""
    addresses: str | None = None
    for line in MAPS.read_text(encoding="utf-8").splitlines():
        match line.split(maxsplit=5):
            case [found, _, _, _, _, name] if "-" in found:
                addresses = found if name == str(path) else None
            case [found, *_] if "-" in found:
                addresses = None
            case ["Anonymous:", "0", _] if addresses is not None:
                yield addresses


@cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
