"""A disk that loses what was not synced: real files in memory, and what a kill or a power cut leaves of them.

A killed process leaves its files as they are. A power cut leaves what was synced; of what was written since, any part
may be there: some writes and not others, half a file, a name that points to the old content or to nothing. A disk can
also be full, fail, or end its process in the midst of a write. Each actor has a folder; its name is the actor's.
"""

import errno
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.schedules import sqlite_files

Failure = Literal["killed", "power cut", "full", "broken"]
_CODES: dict[Failure, tuple[int, int]] = {
    "full": (errno.ENOSPC, sqlite_files.FULL),
    "broken": (errno.EIO, sqlite_files.IOERR_WRITE),
}
SECTOR = 512


class Died(BaseException):
    """The process has ended in the midst of a call to the disk; nothing in it may catch this."""


@dataclass(frozen=True)
class _Change:
    """One write, or a truncation, of a file since it was last synced, with what it takes to undo it."""

    offset: int
    old: bytes
    new: bytes
    size_before: int
    cuts: bool = False


@dataclass
class _Content:
    """One file whatever it is called: what of it is on the disk for sure, and what is not."""

    path: str
    synced: bytes = b""
    changes: list[_Change] = field(default_factory=list)  # of a file of SQLite's
    is_database: bool = False
    last: bytes | None = None  # of a file that has no name any more

    def now(self) -> bytes:
        return Path(self.path).read_bytes() if self.last is None else self.last

    def after_power_cut(self, chance: random.Random) -> bytes:
        if self.is_database:
            return self._replayed(chance)
        now = self.now()
        return now if now == self.synced else chance.choice((self.synced, now, now[: chance.randrange(len(now) + 1)]))

    def _replayed(self, chance: random.Random) -> bytes:
        content = bytearray(self.now())
        for change in reversed(self.changes):
            content[change.offset : change.offset + len(change.old)] = change.old
            del content[change.size_before :]
        for change in self.changes:
            if (kept := chance.random()) < 0.4:
                continue
            new = change.new if kept < 0.9 else change.new[: SECTOR * chance.randrange(1 + len(change.new) // SECTOR)]
            if change.cuts:
                del content[change.offset :]
            else:
                content.extend(bytes(max(0, change.offset - len(content))))
                content[change.offset : change.offset + len(new)] = new
        return bytes(content)


@dataclass
class _Fault:
    """What happens at the operation after so many more."""

    left: int
    how: Failure
    times: int
    image: dict[str, bytes] | None = None  # the files of a process that has ended


class Disk:
    """The files of all actors below one folder. `operations` counts what was written, synced, renamed and removed."""

    def __init__(self, root: Path, chance: random.Random) -> None:
        self.root, self._chance, self.operations = root, chance, 0
        self._prefix = f"{root}/"
        self._contents: dict[int, _Content] = {}  # by inode
        self._names: dict[str, list[dict[str, _Content]]] = {}  # by folder: as last synced, and after each change since
        self._faults: dict[str, _Fault] = {}  # by actor

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch every file below the root while this lasts."""
        usual = os.fsync, os.replace, os.rename, os.unlink
        os.fsync, os.replace, os.rename, os.unlink = self._fsync, self._replace, self._replace, self._unlink
        self._usual_fsync, self._usual_replace, _, self._usual_unlink = usual
        try:
            with sqlite_files.watched_by(self):
                yield
        finally:
            os.fsync, os.replace, os.rename, os.unlink = usual

    def fail(self, actor: str, after: int, how: Failure, times: int = 1) -> None:
        """Let an operation of an actor fail after so many more; a full or broken disk does so `times` in a row."""
        self._faults[actor] = _Fault(after, how, times)

    def has_ended(self, actor: str) -> bool:
        """Whether the disk has ended this actor's process."""
        fault = self._faults.get(actor)
        return fault is not None and fault.image is not None

    def is_troubled(self, actor: str) -> bool:
        """Whether an operation of this actor may fail."""
        return actor in self._faults

    def fate(self, actor: str) -> Failure:
        """How the process that the disk has ended came to its end."""
        return self._faults[actor].how

    def heal(self) -> None:
        """No more failures."""
        self._faults.clear()

    @contextmanager
    def held_as_it_is(self, actor: str) -> Iterator[None]:
        """Take no writes of an actor while this lasts: a process that has ended does not tidy up."""
        if not self.has_ended(actor):
            self._faults[actor] = _Fault(0, "killed", 1, self._image(actor, "killed"))
            try:
                yield
            finally:
                del self._faults[actor]
        else:
            yield

    def restart(self, actor: str, how: Failure) -> None:
        """Put the files of a process that has ended, and let go of all it had open, as its end has left them."""
        fault = self._faults.pop(actor, None)
        image = fault.image if fault is not None and fault.image is not None else self._image(actor, how)
        self._put(actor, image)

    def image(self, actor: str, how: Failure) -> dict[str, bytes]:
        """The files of an actor by name, as it would find them after its end."""
        fault = self._faults.get(actor)
        return fault.image if fault is not None and fault.image is not None else self._image(actor, how)

    # What SQLite does; see sqlite_files.Watcher.

    def watches(self, path: str) -> bool:
        return path.startswith(self._prefix)

    def before_write(self, path: str, fd: int, offset: int, content: bytes) -> int:
        if (code := self._answer_to_sqlite(path)) == sqlite_files.OK and not path.endswith("-shm"):
            status = os.fstat(fd)
            old = os.pread(fd, len(content), offset) if offset < status.st_size else b""
            file = self._contents.get(status.st_ino) or self._content(path)
            file.is_database = True
            file.changes.append(_Change(offset, old, content, status.st_size))
        return code

    def before_truncate(self, path: str, fd: int, size: int) -> int:
        if (code := self._answer_to_sqlite(path)) == sqlite_files.OK:
            before = os.fstat(fd).st_size
            old = os.pread(fd, max(0, before - size), size)
            self._database(path).changes.append(_Change(size, old, b"", before, cuts=True))
        return code

    def before_sync(self, path: str) -> int:
        return self._answer_to_sqlite(path)

    def synced(self, path: str) -> None:
        content = self._database(path)
        content.changes.clear()
        if not path.endswith(".db"):  # SQLite syncs the folder with the first sync of a log or a journal
            self._sync_folder(os.path.dirname(path))

    def before_delete(self, path: str) -> int:
        code = self._answer_to_sqlite(path)
        if code == sqlite_files.OK:
            self._forget(path)
        return code

    def deleted(self, path: str, in_folder_too: bool) -> None:
        folder = os.path.dirname(path)
        if in_folder_too:
            self._sync_folder(folder)
        else:
            self._note(folder)

    # What Python code does.

    def _fsync(self, fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if not self.watches(path):
            return self._usual_fsync(fd)
        self._operate(path)
        if os.path.isdir(path):
            self._sync_folder(path)
        else:
            content = self._content(path)
            content.synced = content.now()
        return None

    def _replace(self, old: Any, new: Any, **options: Any) -> None:
        old, new = os.fspath(old), os.fspath(new)
        if not self.watches(new):
            return self._usual_replace(old, new, **options)
        self._operate(new)
        content = self._content(old)
        self._forget(new)
        self._usual_replace(old, new)
        content.path = new
        self._note(os.path.dirname(new))
        return None

    def _unlink(self, path: Any, **options: Any) -> None:
        name = os.fspath(path)
        if not isinstance(name, str) or not self.watches(name) or options:
            return self._usual_unlink(path, **options)
        self._operate(name)
        self._forget(name)
        self._usual_unlink(path)
        self._note(os.path.dirname(name))
        return None

    # Book-keeping.

    def _operate(self, path: str) -> None:
        """Count an operation of Python code; raises what the disk answers."""
        if (how := self._due(path)) is not None:
            if how in ("killed", "power cut"):
                raise Died
            raise OSError(_CODES[how][0], os.strerror(_CODES[how][0]), path)

    def _answer_to_sqlite(self, path: str) -> int:
        how = self._due(path)
        return sqlite_files.OK if how is None else _CODES.get(how, (0, sqlite_files.IOERR_WRITE))[1]

    def _due(self, path: str) -> Failure | None:
        """What this operation comes to; None if it is done."""
        self.operations += 1
        actor = path[len(self._prefix) :].partition("/")[0]
        if (fault := self._faults.get(actor)) is None:
            return None
        if fault.image is not None:
            return fault.how
        if fault.left > 0:
            fault.left -= 1
            return None
        if fault.how in ("killed", "power cut"):
            fault.image = self._image(actor, fault.how)
            return fault.how
        fault.times -= 1
        if fault.times <= 0:
            del self._faults[actor]
        return fault.how

    def _content(self, path: str) -> _Content:
        inode = os.stat(path).st_ino
        if inode not in self._contents:
            self._contents[inode] = _Content(path)
        self._contents[inode].path = path
        return self._contents[inode]

    def _database(self, path: str) -> _Content:
        content = self._content(path)
        content.is_database = True
        return content

    def _forget(self, path: str) -> None:
        """A name is about to lose its file."""
        if os.path.exists(path):
            content = self._content(path)
            content.last = content.now()
            del self._contents[os.stat(path).st_ino]

    def _listing(self, folder: str) -> dict[str, _Content]:
        with os.scandir(folder) as entries:
            files = sorted(e.name for e in entries if e.is_file() and not e.name.endswith("-shm"))
        return {name: self._content(f"{folder}/{name}") for name in files}

    def _note(self, folder: str) -> None:
        self._names.setdefault(folder, [{}]).append(self._listing(folder))

    def _sync_folder(self, folder: str) -> None:
        self._names[folder] = [self._listing(folder)]

    def _image(self, actor: str, how: Failure) -> dict[str, bytes]:
        """What is below the actor's folder after its end, by path from there."""
        folder, files = self.root / actor, dict[str, bytes]()
        for place in [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]:
            names = self._listing(str(place))
            if how == "power cut":
                names = self._chance.choice([*self._names.get(str(place), [{}]), names])
            for name, content in names.items():
                kept = content.after_power_cut(self._chance) if how == "power cut" else content.now()
                files[str((place / name).relative_to(folder))] = kept
        return files

    def _put(self, actor: str, files: dict[str, bytes]) -> None:
        """Replace an actor's folder; all that is there now has been on the disk for long."""
        folder = self.root / actor
        self._contents = {i: c for i, c in self._contents.items() if not c.path.startswith(f"{folder}/")}
        self._names = {
            place: states for place, states in self._names.items() if not f"{place}/".startswith(f"{folder}/")
        }
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
            here = self._content(str(folder / name))
            here.synced, here.is_database = content, False
        for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            self._sync_folder(str(place))
