"""Make the versions of a recording again that the base model had a part in, with what its coordinator's journal adds.

On no topic are the base model's answers, the ticks, and the order in which the coordinator took messages in: these are
the journal's. What nodes sent is the recording's, byte for byte: a message that it lacks is not taken from the journal.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from broker.recording import Row, read_rows
from coordinator.core import found, step
from coordinator.journal import event_of_row, founding
from coordinator.replay.recorded import is_published
from coordinator.state import FederationState, PublishVersion


@dataclass(frozen=True)
class Beside:
    """What the fold came to: each version's digest, the state at the end, and how many messages were to be found."""

    made: dict[int, str]
    state: FederationState
    messages: int
    lacking: int


def fold_beside(recording: Path, journal: Path, until: int | None = None) -> Beside:
    """Fold the journal's rows without those messages that the recording lacks. Raises RecordingError."""
    heard = {_name(row) for row in read_rows(recording)}
    rows = read_rows(journal)
    first, second = next(rows), next(rows)
    config, adapter = founding(journal, first, second)
    state, _ = found(config, adapter, second.received_at_ns)
    made = {0: state.head.digest}
    messages = lacking = 0
    for row in rows:
        if is_published(row):
            messages += 1
            if _name(row) not in heard:
                lacking += 1
                continue
        state, effects = step(state, event_of_row(row))
        made |= {e.manifest.version: e.manifest.digest for e in effects if isinstance(e, PublishVersion)}
        if until is not None and state.head.version >= until:
            break
    return Beside(made, state, messages, lacking)


def _name(row: Row) -> bytes:
    return hashlib.sha256(row.topic.encode() + b"\0" + row.payload).digest()
