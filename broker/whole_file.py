"""Files that appear whole and on disk, or not at all, whenever the process or the power ends.

It knows nothing of what is in them.
"""

import os
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Put these bytes at `path`, in place of what is there; on disk when this returns. An OSError names the path."""
    write_pieces(path, parts)


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """The same of pieces that come one after the other, as each is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
    except OSError as fault:  # that of a full disk has no name
        fault.filename = fault.filename or str(path)
        raise
    unfinished.replace(path)
    sync_folder(path.parent)


def move_whole(file: Path, path: Path) -> None:
    """Have a file of the same file system at `path`, in place of what is there; on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as written:
        os.fsync(written.fileno())
    file.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in this folder on disk: a file that was renamed there would else be gone with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
