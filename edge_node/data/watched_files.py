"""The owner's files of examples, a file or all *.jsonl of a folder, taken into the store as they are now.

What was appended is read on; a file that was rewritten replaces what came from it, and one that is gone takes it along.
Whatever a line holds is an example or a reason that is counted; a file that is being written is read up to where it is.
"""

import hashlib
import stat
from pathlib import Path
from typing import BinaryIO

from base_model.examples import Example, InvalidExamples
from edge_node.data.example_lines import MAX_LINE_BYTES, TOO_LONG_A_LINE, UNFINISHED, NotAnExample, parse_line
from edge_node.data.example_store import ExampleStore, FileMark, Reading

BATCH = 1000  # lines that are kept together; a commit waits for the disk
MOST_FILES = 10_000
_PIECE = 1 << 20
_UNDER_WAY = (-1, -1)  # the state of no file: one that was not read to its end is taken up again
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def take_in(store: ExampleStore, watched: Path, now: float) -> tuple[str, ...]:
    """Bring the store up to date with the files; what could not be read, in sentences. `now` in seconds since 1970.

    Raises InvalidExamples when there is no such file or folder: then nothing that came from it is forgotten.
    """
    files = _files(watched)
    for gone in store.files() - files.keys():
        store.forget(gone)
    faults = [fault for source, path in files.items() if (fault := _take_in_file(store, source, path, now))]
    if len(files) == MOST_FILES:
        faults.append(f"{watched} has {MOST_FILES} files or more, and no more are read: put several into one")
    return tuple(faults)


def _files(watched: Path) -> dict[str, Path]:
    """The files by the names that the store knows them under."""
    try:
        if not stat.S_ISDIR(watched.stat().st_mode):
            return {_source(watched): watched}
        found = sorted(path for path in watched.iterdir() if path.suffix == ".jsonl" and path.name[0] != ".")
    except OSError as fault:
        raise InvalidExamples(f"cannot read {watched}: {fault.strerror}; correct edge.data, or create it") from fault
    return {_source(path): path for path in found[:MOST_FILES]}


def _source(path: Path) -> str:
    # a name may be any bytes; the database takes text
    return "file " + path.name.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="backslashreplace")


def _take_in_file(store: ExampleStore, source: str, path: Path, now: float) -> str | None:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return f"{path} is no file"
        mark = store.mark(source)
        if mark is not None and (mark.modified_ns, mark.size) == (status.st_mtime_ns, status.st_size):
            return None
        with path.open("rb") as file:
            _Reader(store, source, file, (status.st_mtime_ns, status.st_size), now).read(mark)
    except OSError as fault:
        return f"cannot read {path}: {fault.strerror}"
    return None


class _Reader:
    """One pass over one file, from where the last one ended."""

    def __init__(self, store: ExampleStore, source: str, file: BinaryIO, state: tuple[int, int], now: float) -> None:
        self._store, self._source, self._file, self._now = store, source, file, now
        self._state = state  # from before the reading: what is appended meanwhile makes another one
        self._digest = hashlib.sha256()
        self._bytes = self._lines = 0
        self._examples: list[Example] = []
        self._refused: dict[str, list[int]] = {}

    def read(self, mark: FileMark | None) -> None:
        """Go on behind what was read before if it is still the same, else from the beginning."""
        if mark is not None and not self._skip(mark):
            self._store.forget(self._source)
            self._file.seek(0)
            self._digest = hashlib.sha256()
        unfinished = None
        while content := self._file.readline(MAX_LINE_BYTES + 1):
            if len(content) > MAX_LINE_BYTES and not content.endswith(b"\n"):
                self._pass_over(content)
            elif content.endswith(b"\n") or _is_example(content):
                self._take(content)
            else:
                unfinished = self._lines + 1  # more of it may come
                break
        self._store.note(self._source, UNFINISHED, unfinished)
        self._keep(*self._state)

    def _skip(self, mark: FileMark) -> bool:
        """Whether the file still begins with what was read of it; the file then stands behind that."""
        left = mark.bytes_read
        while left and (piece := self._file.read(min(left, _PIECE))):
            self._digest.update(piece)
            left -= len(piece)
        same = left == 0 and self._digest.digest() == mark.digest
        if same:
            self._bytes, self._lines = mark.bytes_read, mark.lines_read
        return same

    def _take(self, line: bytes) -> None:
        self._advance(line)
        self._lines += 1
        content = line.removeprefix(_BYTE_ORDER_MARK) if self._lines == 1 else line
        if content.strip():
            try:
                self._examples.append(parse_line(content))
            except NotAnExample as fault:
                self._refuse(str(fault))
        self._rest()

    def _pass_over(self, content: bytes) -> None:
        """A line that is too long, piece by piece."""
        while content and not content.endswith(b"\n"):
            self._advance(content)
            content = self._file.readline(_PIECE)
        self._advance(content)
        self._lines += 1
        self._refuse(TOO_LONG_A_LINE)
        self._rest()

    def _advance(self, content: bytes) -> None:
        self._digest.update(content)
        self._bytes += len(content)

    def _refuse(self, reason: str) -> None:
        self._refused.setdefault(reason, []).append(self._lines)

    def _rest(self) -> None:
        if self._lines % BATCH == 0:
            self._keep(*_UNDER_WAY)

    def _keep(self, modified_ns: int, size: int) -> None:
        """Put what was read into the store, and how far that is, in one step."""
        mark = FileMark(modified_ns, size, self._bytes, self._lines, self._digest.digest())
        self._store.add(Reading(self._source, self._now, self._examples, self._refused), mark)
        self._examples, self._refused = [], {}


def _is_example(content: bytes) -> bool:
    try:
        parse_line(content)
    except NotAnExample:
        return False
    return True
