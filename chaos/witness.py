"""What a client of the federation has seen, line by line in a file that outlives it: the checker's evidence.

A line is with the operating system when `say` returns, so a kill of the writer loses none. The checker believes these
lines and the files of the processes under test, and nothing that anybody has in memory.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

What = Literal["boot", "lost", "connected", "heard", "held", "stored", "receipted", "dropped", "puback"]


@dataclass(frozen=True)
class Seen:
    """One thing that one client saw, at a time in seconds of the machine's monotonic clock.

    `heard` is a head pointer as it arrived, `held` a version that was verified and taken up; `stored`, `receipted` and
    `dropped` are about an update in a node's outbox; `puback` is an update that only the broker has acknowledged.
    """

    at: float
    node: str
    what: What
    update: str | None = None
    epoch: int | None = None
    version: int | None = None
    digest: str | None = None


class Witness:
    """Appends to one file; many threads may use it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(self._file, b"\n")  # behind a line that a kill may have cut

    def say(
        self,
        node: str,
        what: What,
        update: str | None = None,
        epoch: int | None = None,
        version: int | None = None,
        digest: str | None = None,
    ) -> None:
        """Put one line at the end of the file."""
        facts = asdict(Seen(time.monotonic(), node, what, update, epoch, version, digest))
        line = {name: fact for name, fact in facts.items() if fact is not None}
        os.write(self._file, json.dumps(line, separators=(",", ":")).encode() + b"\n")


class Reader:
    """Reads a growing file of lines; each call of `more` returns what has come since."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def more(self) -> list[Seen]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, _, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + 1 if whole else 0
        return list(_parsed(whole))


def read(path: Path) -> list[Seen]:
    """Every whole line of a file."""
    return list(_parsed(path.read_bytes()))


def _parsed(content: bytes) -> Iterator[Seen]:
    for line in content.splitlines():
        try:
            yield Seen(**json.loads(line))
        except ValueError:  # an empty line, or one that a kill has cut
            continue
