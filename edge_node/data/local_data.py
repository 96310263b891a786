"""The node's private examples: what may be trained on, what is held out to measure by, and how more of them come in.

They are kept and trained on here; there is no path from here to a topic.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from base_model.examples import Example, InvalidExamples
from edge_node.data.example_lines import NotAnExample, parse_line
from edge_node.data.example_store import Added, ExampleStore, Reading, Summary
from edge_node.data.settings import LocalDataSettings
from edge_node.data.watched_files import take_in

log = logging.getLogger(__name__)

STORE = "examples.db"


class LocalData:
    """The examples of one node, its owner's files among them. Safe to use from any thread."""

    def __init__(self, store: ExampleStore, watched: Path | None) -> None:
        self._store, self._watched = store, watched
        self._lock = threading.Lock()
        self._training: tuple[int, tuple[Example, ...]] = (-1, ())  # as of which change of the store
        self._complaints: tuple[str, ...] = ()

    @classmethod
    def open(cls, watched: Path | None, data_dir: Path, settings: LocalDataSettings) -> Self:
        """The node's own store, made if need be. Raises sqlite3.DatabaseError."""
        return cls(ExampleStore(data_dir / STORE, settings.most_bytes, settings.held_out), watched)

    @classmethod
    def look(cls, watched: Path | None, data_dir: Path, settings: LocalDataSettings) -> Self:
        """The same in memory, to look at beside a node that runs: nothing on disk changes. Raises InvalidExamples."""
        store = ExampleStore(None, settings.most_bytes, settings.held_out)
        try:
            if (data_dir / STORE).exists():
                store.load(data_dir / STORE)
        except sqlite3.DatabaseError as fault:
            raise InvalidExamples(
                f"cannot read {data_dir / STORE}: {fault}; the node says more as it starts"
            ) from fault
        return cls(store, watched)

    def refresh(self) -> None:
        """Take in what has changed in the owner's files. Raises InvalidExamples when they cannot be read or kept."""
        if self._watched is None:
            return
        try:
            with self._lock:
                complaints = take_in(self._store, self._watched, time.time())
        except sqlite3.OperationalError as fault:
            raise InvalidExamples(f"cannot keep the examples of {self._watched}: {fault}; look at the disk") from fault
        for complaint in sorted(set(complaints) - set(self._complaints)):
            log.warning("%s", complaint)
        self._complaints = complaints

    def examples(self) -> tuple[Example, ...]:
        """What may be trained on now, oldest first, at least one. Raises InvalidExamples, which says what to do."""
        self.refresh()
        if not (examples := self.training()):
            raise InvalidExamples(self._why_none())
        return examples

    def training(self) -> tuple[Example, ...]:
        """What may be trained on, oldest first, as of the last refresh; perhaps nothing."""
        if self._training[0] != (changes := self._store.changes):
            self._training = (changes, self._store.training())
        return self._training[1]

    def held_out(self, most: int) -> tuple[Example, ...]:
        """What is never trained on, at most so many; the same ones while they are there."""
        return self._store.held_out(most) if most else ()

    def add(self, source: str, examples: Iterable[Example]) -> Added:
        """Keep examples that came from elsewhere; on disk when the call returns. Raises sqlite3.OperationalError."""
        return self._store.add(Reading(source, time.time(), tuple(examples)))

    def add_lines(self, source: str, payload: bytes) -> int:
        """Keep the examples among these lines, and count the others with the reason; how many those are."""
        examples, refused = [], dict[str, list[int]]()
        for number, line in enumerate(payload.splitlines(), start=1):
            try:
                examples += [parse_line(line)] if line.strip() else []
            except NotAnExample as fault:
                refused.setdefault(str(fault), []).append(number)
        self._store.add(Reading(source, time.time(), examples, refused))
        return sum(map(len, refused.values()))

    def summary(self) -> Summary:
        """What there is."""
        return self._store.summary()

    def _why_none(self) -> str:
        summary, what = self._store.summary(), self._watched or "the store"
        lines = sum(tally.lines for tally in summary.refused)
        if summary.examples:
            return f"all {summary.examples} examples are held out: add more, or lower edge.local_data.held_out"
        refused = f" ({lines} lines are none)" if lines else ""
        return (
            f'{what} holds no examples{refused}; write one {{"prompt": ..., "completion": ...}} a line. '
            "`alignfed edge data` says what is wrong with lines"
        )
