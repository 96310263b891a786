"""The kept corpus: for each target one archive of inputs, the fewest that reach all that any of them has reached.

python -m fuzz.corpus fold FOLDER    take up what a long search has found, from FOLDER/<target>/
"""

import hashlib
import os
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from fuzz.target import Target, clear

FOLDER = Path(__file__).with_name("corpus")
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the same inputs make the same archive
LARGEST = 8000  # bytes of one archive: all of them stay under 300 KB

Arc = tuple[str, int, int]


def inputs(name: str) -> Sequence[bytes]:
    """What is kept for a target; nothing for a new one."""
    path = FOLDER / f"{name}.zip"
    if not path.exists():
        return ()
    with zipfile.ZipFile(path) as archive:
        return [archive.read(entry) for entry in archive.namelist()]


def unpack(name: str, folder: Path) -> None:
    """Put what is kept for a target into a folder, a file for each input."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in inputs(name):
        (folder / _name(data)).write_bytes(data)


def fold(target: Target, found: Iterable[bytes]) -> int:
    """Keep the fewest of what is kept and what was found, and return how many."""
    kept = minimal(target, {*inputs(target.name), *found})
    with zipfile.ZipFile(FOLDER / f"{target.name}.zip", "w", zipfile.ZIP_LZMA) as archive:
        for data in kept:
            archive.writestr(zipfile.ZipInfo(_name(data), LONG_AGO), data, zipfile.ZIP_DEFLATED)
    return len(kept)


def minimal(target: Target, candidates: Iterable[bytes]) -> list[bytes]:
    """Inputs that together take every way that any takes, the shortest first, as far as an archive has room."""
    reached = set[Arc]()
    kept, size = list[bytes](), 0
    for data in sorted(candidates, key=lambda data: (len(data), data)):
        ways = _ways(target, data)
        if not ways <= reached and size + len(data) // 2 < LARGEST:
            reached |= ways
            kept.append(data)
            size += len(data) // 2 + 120  # compressed, and its entry in the archive
    return kept


def _ways(target: Target, data: bytes) -> set[Arc]:
    """From which line to which an input leads, in Python, and what its check says of it."""
    ways = set[Arc]()
    last: dict[FrameType, int] = {}

    def note(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            ways.add((frame.f_code.co_filename, last.get(frame, 0), frame.f_lineno))
            last[frame] = frame.f_lineno
        elif event == "return":
            ways.add((frame.f_code.co_filename, last.get(frame, 0), 0))
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        outcome = target.check(data)
    finally:
        sys.settrace(before)
    return {*ways, (str(outcome), 0, 0)}


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def main() -> None:
    """Fold a folder of a long search into the archives, and say how many inputs there are."""
    from fuzz.targets import TARGETS

    found = Path(sys.argv[2])
    for target in TARGETS:
        files = [path.read_bytes() for path in sorted((found / target.name).glob("*"))]
        print(f"{target.name}: {fold(target, files)} inputs kept")
    clear(os.getpid())


if __name__ == "__main__":
    main()
