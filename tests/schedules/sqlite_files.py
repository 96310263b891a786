"""What SQLite writes and syncs, made known: a VFS that passes all calls to the usual one and tells of four of them.

Python's sqlite3 module has no such door, so this goes to SQLite's own C interface by ctypes, in the library that the
module itself has loaded. It knows nothing of what is made of what it tells.
"""

import ctypes
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_void_p, cast, sizeof
from typing import Any, Protocol

OK, FULL, IOERR_WRITE, IOERR_FSYNC = 0, 13, 778, 1034
_NAME = b"alignfed-watched"
NEEDS_A_LIBRARY = "this Python has SQLite built in, and its files cannot be watched: use one that loads libsqlite3.so"


class Watcher(Protocol):
    """Who is told; a code other than OK is what SQLite gets as the answer of the disk, and the call is not made."""

    def watches(self, path: str) -> bool: ...
    def before_write(self, path: str, fd: int, offset: int, content: bytes) -> int: ...
    def before_truncate(self, path: str, fd: int, size: int) -> int: ...
    def before_sync(self, path: str) -> int: ...
    def synced(self, path: str) -> None: ...
    def before_delete(self, path: str) -> int: ...
    def deleted(self, path: str, in_folder_too: bool) -> None: ...


class _Vfs(ctypes.Structure):
    _fields_ = (
        ("iVersion", c_int),
        ("szOsFile", c_int),
        ("mxPathname", c_int),
        ("pNext", c_void_p),
        ("zName", c_char_p),
        ("pAppData", c_void_p),
        ("xOpen", c_void_p),
        ("xDelete", c_void_p),
        *((f"rest{number}", c_void_p) for number in range(14)),
    )


class _Methods(ctypes.Structure):
    _fields_ = (
        ("iVersion", c_int),
        ("xClose", c_void_p),
        ("xRead", c_void_p),
        ("xWrite", c_void_p),
        ("xTruncate", c_void_p),
        ("xSync", c_void_p),
        *((f"rest{number}", c_void_p) for number in range(13)),
    )


class _File(ctypes.Structure):
    _fields_ = (("pMethods", POINTER(_Methods)),)


_Open = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, POINTER(_File), c_int, POINTER(c_int))
_Delete = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_int)
_Close = ctypes.CFUNCTYPE(c_int, c_void_p)
_Write = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_Truncate = ctypes.CFUNCTYPE(c_int, c_void_p, c_int64)
_Sync = ctypes.CFUNCTYPE(c_int, c_void_p, c_int)


class _Handle:
    """A file that SQLite has open, with a descriptor of our own to read what is about to be overwritten."""

    def __init__(self, path: str, usual: _Methods) -> None:
        self.path, self.fd, self.usual = path, os.open(path, os.O_RDONLY), usual


class _Shim:
    """The VFS and what keeps its callbacks alive; made once for the process, for SQLite never forgets a VFS."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library, self.watcher = library, None
        library.sqlite3_vfs_find.restype = POINTER(_Vfs)
        self.usual = library.sqlite3_vfs_find(None)
        self.handles: dict[int, _Handle] = {}
        self.tables: dict[int, _Methods] = {}
        self.open_usual = _Open(self.usual.contents.xOpen)
        self.delete_usual = _Delete(self.usual.contents.xDelete)
        self.callbacks = (_Open(self._open), _Delete(self._delete))
        self.methods = (_Close(self._close), _Write(self._write), _Truncate(self._truncate), _Sync(self._sync))
        self.vfs = _Vfs()
        ctypes.memmove(byref(self.vfs), self.usual, sizeof(_Vfs))
        self.vfs.zName = _NAME
        self.vfs.xOpen, self.vfs.xDelete = (cast(callback, c_void_p) for callback in self.callbacks)

    watcher: Watcher | None

    def _open(self, _vfs: int, name: int | None, file: Any, flags: int, out: Any) -> int:
        code = self.open_usual(cast(self.usual, c_void_p), name, file, flags, out)
        path = os.fsdecode(ctypes.string_at(name)) if name else ""
        if code == OK and path and self.watcher is not None and self.watcher.watches(path):
            address, usual = cast(file, c_void_p).value, file.contents.pMethods
            assert address is not None
            self.handles[address] = _Handle(path, usual.contents)
            file.contents.pMethods = ctypes.pointer(self._table(usual))
        return int(code)

    def _table(self, usual: Any) -> _Methods:
        """The usual methods of such a file, with ours in four places."""
        address = cast(usual, c_void_p).value or 0
        if address not in self.tables:
            table = _Methods()
            ctypes.memmove(byref(table), usual, sizeof(_Methods))
            close, write, truncate, sync = (cast(method, c_void_p) for method in self.methods)
            table.xClose, table.xWrite, table.xTruncate, table.xSync = close, write, truncate, sync
            self.tables[address] = table
        return self.tables[address]

    def _close(self, file: int) -> int:
        handle = self.handles.pop(file)
        os.close(handle.fd)
        return int(_Close(handle.usual.xClose)(file))

    def _write(self, file: int, content: int, size: int, offset: int) -> int:
        handle = self.handles[file]
        code = self._told(
            lambda told: told.before_write(handle.path, handle.fd, offset, ctypes.string_at(content, size))
        )
        return code or int(_Write(handle.usual.xWrite)(file, content, size, offset))

    def _truncate(self, file: int, size: int) -> int:
        handle = self.handles[file]
        code = self._told(lambda told: told.before_truncate(handle.path, handle.fd, size))
        return code or int(_Truncate(handle.usual.xTruncate)(file, size))

    def _sync(self, file: int, flags: int) -> int:
        handle = self.handles[file]
        code = self._told(lambda told: told.before_sync(handle.path)) or int(_Sync(handle.usual.xSync)(file, flags))
        if code == OK and self.watcher is not None:
            self.watcher.synced(handle.path)
        return code

    def _delete(self, _vfs: int, name: int, in_folder_too: int) -> int:
        path, usual = os.fsdecode(ctypes.string_at(name)), cast(self.usual, c_void_p)
        if self.watcher is None or not self.watcher.watches(path):
            return int(self.delete_usual(usual, name, in_folder_too))
        code = self.watcher.before_delete(path) or int(self.delete_usual(usual, name, in_folder_too))
        if code == OK:
            self.watcher.deleted(path, bool(in_folder_too))
        return code

    def _told(self, tell: Callable[[Watcher], int]) -> int:
        return OK if self.watcher is None else tell(self.watcher)


_shim: _Shim | None = None


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Tell the watcher of the SQLite files of this process while this lasts. Raises OSError where that cannot be."""
    global _shim
    _shim = _shim or _Shim(_library())
    _shim.watcher = watcher
    _shim.library.sqlite3_vfs_register(byref(_shim.vfs), 1)
    try:
        yield
    finally:
        _shim.library.sqlite3_vfs_register(_shim.usual, 1)
        _shim.watcher = None


def can_watch() -> bool:
    """Whether this Python's SQLite is a library that can be reached."""
    try:
        _library()
    except OSError:
        return False
    return True


def _library() -> ctypes.CDLL:
    """The SQLite that Python's module runs on, not another copy of it."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        paths = {line.split()[-1] for line in maps if "libsqlite3" in line}
    for path in paths:
        library = ctypes.CDLL(path)
        library.sqlite3_libversion.restype = c_char_p
        if library.sqlite3_libversion().decode() == sqlite3.sqlite_version:
            return library
    raise OSError(NEEDS_A_LIBRARY)
