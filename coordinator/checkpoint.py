"""A checkpoint: what a fold of the journal's first rows came to, so that a start has only the rest to fold.

It spares time and is nothing else: the journal alone is the truth, and replay never looks here. A checkpoint counts
only for the program that made it, for the journal that it was made of, and while the registry has all that it had then;
whatever else is found is left alone, and the journal is folded from its beginning.

    checkpoint    a line of JSON that says what it is of, and the pickled state and history
"""

import hashlib
import io
import logging
import pickle
import platform
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from broker.recording import last_seq, path_of, read_rows
from broker.whole_file import write_whole
from coordinator.lease import Lease
from coordinator.registry import Registry
from coordinator.state import FederationState
from coordinator.watch.history import History

log = logging.getLogger(__name__)

NAME = "checkpoint"
_OURS = ("base_model", "coordinator", "schemas")  # all that decides, and what it decides on
_PLAIN = {
    ("builtins", "slice"), ("numpy", "dtype"), ("numpy._core.numeric", "_frombuffer"),
}  # fmt: skip
_LONGEST_LABEL = 1000
WORTH_S = 0.5  # of processor time: a start has to fold no more than about as much again
PRICE = 10  # times what a checkpoint costs has to be worth keeping


class Checkpoint(NamedTuple):
    """The state and the history after the row of this number."""

    seq: int
    state: FederationState
    history: History


class Keeper:
    """Keeps a checkpoint whenever it is worth its price: by what was decided since the last, and what that one took."""

    def __init__(self, journal: sqlite3.Connection, lease: Lease, registry: Registry, folding_s: float) -> None:
        self._journal, self._lease, self._registry = journal, lease, registry
        self.unkept_s, self._keeping_s = folding_s, 0.0  # processor time

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """What is decided meanwhile, a start would have to decide again."""
        begun = time.thread_time()
        yield
        self.unkept_s += time.thread_time() - begun

    @property
    def is_due(self) -> bool:
        """Whether so much was decided since the last one that sparing the next start that is worth writing it down."""
        return self.unkept_s >= max(WORTH_S, PRICE * self._keeping_s)

    def keep(self, state: FederationState, history: History) -> None:
        """Spare the next start what has been decided up to now."""
        begun = time.monotonic()
        with self._lease.transaction():  # so that the last row is one of ours
            seq = last_seq(self._journal)
        try:
            save(path_of(self._journal), Checkpoint(seq, state, history), self._registry)
        except OSError as fault:  # a start without it takes longer, and that is all
            log.warning("no checkpoint could be written: %s", fault)
        self.unkept_s, self._keeping_s = 0.0, time.monotonic() - begun


class _Label(BaseModel):
    """What a checkpoint is of, and the bytes behind it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    program: str
    seq: int
    row: str
    head: int
    judged: int
    kept: int  # manifests and decisions up to there
    sha256: str


def save(journal: Path, made: Checkpoint, registry: Registry) -> None:
    """Keep a checkpoint of this journal, beside it; `registry` has all that the rows up to there say."""
    content = pickle.dumps((made.state, made.history), protocol=5)
    head, judged = made.state.head.version, made.state.release.judged
    label = _Label(
        program=_program(),
        seq=made.seq,
        row=_mark_of(journal, made.seq),
        head=head,
        judged=judged,
        kept=_kept(registry, head, judged),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    write_whole(journal.parent / NAME, label.model_dump_json().encode() + b"\n", content)


def load(journal: Path, registry: Registry) -> Checkpoint | None:
    """What may be gone on from; None where the journal has to be folded from its beginning."""
    program = _program()  # as it was when this process began: the files may be another's when the first one is saved
    try:
        with (journal.parent / NAME).open("rb") as file:
            label = _Label.model_validate_json(file.readline(_LONGEST_LABEL))
            content = file.read()
    except (FileNotFoundError, ValidationError):
        return None
    if (
        label.program != program
        or label.sha256 != hashlib.sha256(content).hexdigest()
        or label.row != _mark_of(journal, label.seq)
        or label.kept != _kept(registry, label.head, label.judged)
    ):
        log.info("the checkpoint is of another program or another state of the files: not used")
        return None
    try:
        state, history = _Unpickler(io.BytesIO(content)).load()
    except (pickle.UnpicklingError, AttributeError, ImportError, LookupError, TypeError, ValueError, EOFError) as fault:
        log.warning("%s was not made by a coordinator, and is not used: %s", journal.parent / NAME, fault)
        return None
    return Checkpoint(label.seq, state, history)


def _kept(registry: Registry, head: int, judged: int) -> int:
    """How many files there are of versions and decisions up to these; later ones come from later rows."""
    return sum(version <= head for version in registry.numbers()) + sum(
        version <= judged for version in registry.decided()
    )


def _mark_of(journal: Path, seq: int) -> str:
    """Tells a journal from one that was restored from a copy and has gone on another way."""
    row = next(read_rows(journal, seq - 1), None)
    return hashlib.sha256(repr(row).encode()).hexdigest()


@cache
def _program() -> str:
    """A digest of the code that folds: another one may decide otherwise, or keep something else."""
    digest = hashlib.sha256()
    for name in ("numpy", "pydantic"):
        digest.update(f"{name} {version(name)}\n".encode())
    digest.update(platform.python_version().encode())
    for package in _OURS:
        [folder] = import_module(package).__path__
        for source in sorted(Path(folder).rglob("*.py")):
            digest.update(str(source.relative_to(folder)).encode() + source.read_bytes())
    return digest.hexdigest()


class _Unpickler(pickle.Unpickler):
    """Makes values of our own types and NumPy's arrays; a file in this folder is no way to run other code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return super().find_class(module, name)
        if module.partition(".")[0] in _OURS and "." not in name:  # a dot would reach what our modules import
            found = super().find_class(module, name)
            if _is_value(found):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a state")


def _is_value(found: Any) -> bool:
    """Whether this is a type that has fields and does nothing."""
    return isinstance(found, type) and (is_dataclass(found) or issubclass(found, BaseModel | tuple))
