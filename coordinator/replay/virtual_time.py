"""A coordinator on a clock that recorded rows drive: it ticks when the core asks for it, as the service would.

For input that no coordinator has journalled in this order: recordings of topics, what-ifs and fuzzed input. What the
base model is asked is answered out of `answers` at once, where they have that question's id; else it waits.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from broker.recording import Row
from coordinator.core import found, next_deadline, step
from coordinator.journal import TICK, event_of_row
from coordinator.replay.source import Source
from coordinator.state import Answered, Effect, FederationState, QuestionId, Ticked


class Turn(NamedTuple):
    """One event, as the row that brought it, and what came of it. A tick has the number of the row it came before."""

    row: Row
    state: FederationState
    effects: tuple[Effect, ...]


def begin(source: Source) -> Turn:
    """The founding of a source's federation."""
    state, effects = found(source.config, source.adapter, source.founded_at_ns)
    return Turn(Row(source.founded_at_ns, "", b"", seq=0), state, effects)


def play(state: FederationState, rows: Iterable[Row], answers: dict[QuestionId, bytes]) -> Iterator[Turn]:
    """Take rows in, one after the other, with the ticks that fall due before them."""
    for row in rows:
        for turn in turns(state, row, answers):
            state = turn.state
            yield turn


def turns(state: FederationState, row: Row, answers: dict[QuestionId, bytes]) -> Iterator[Turn]:
    """What happens up to and with one row."""
    due = next_deadline(state)
    while due is not None and due <= row.received_at_ns:
        state, effects = step(state, Ticked(due))
        yield Turn(Row(due, TICK, b"", seq=row.seq), state, effects)
        for turn in _answered(state, row, due, answers):
            state = turn.state
            yield turn
        before, due = due, next_deadline(state)
        if due is not None and due <= before:
            break  # nothing that time alone could do
    state, effects = step(state, event_of_row(row))
    yield Turn(row, state, effects)
    yield from _answered(state, row, row.received_at_ns, answers)


def _answered(state: FederationState, row: Row, at_ns: int, answers: dict[QuestionId, bytes]) -> Iterator[Turn]:
    """Answer what is open; an answer is used up, whatever the core makes of it."""
    while (asked := next((one.id for one in state.open_questions if one.id in answers), None)) is not None:
        state, effects = step(state, Answered(at_ns, asked, answers.pop(asked)))
        yield Turn(row, state, effects)
