"""A coordinator on a clock that recorded rows drive: it ticks when the core asks for it, as the service would.

For input that no coordinator has journalled in this order: recordings of topics, what-ifs and fuzzed input. What the
base model is asked is answered out of `answers` at once, where they have that question's id; else it waits.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from broker.recording import Row
from coordinator.core import found, next_deadline, step
from coordinator.journal import TICK, event_of_row
from coordinator.replay.source import Source
from coordinator.state import Answered, Effect, FederationState, QuestionId


class Turn(NamedTuple):
    """One event, as the row that brought it, and what came of it. A tick has the number of the row it came before."""

    row: Row
    state: FederationState
    effects: tuple[Effect, ...]


Take = Callable[[FederationState, Row], Iterator[Turn]]  # what a row, or a tick as one, comes to


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
    return with_ticks(state, row, lambda before, one: _taken(before, one, answers))


def with_ticks(state: FederationState, row: Row, take: Take) -> Iterator[Turn]:
    """What `take` makes of each tick that falls due before a row, and then of the row."""
    due = next_deadline(state)
    while due is not None and due <= row.received_at_ns:
        for turn in take(state, Row(due, TICK, b"", seq=row.seq)):
            state = turn.state
            yield turn
        before, due = due, next_deadline(state)
        if due is not None and due <= before:
            break  # nothing that time alone could do
    yield from take(state, row)


def _taken(state: FederationState, row: Row, answers: dict[QuestionId, bytes]) -> Iterator[Turn]:
    """Take a row in, and answer what is open then; an answer is used up, whatever the core makes of it."""
    turn = Turn(row, *step(state, event_of_row(row)))
    yield turn
    while (asked := next((one.id for one in turn.state.open_questions if one.id in answers), None)) is not None:
        turn = Turn(row, *step(turn.state, Answered(row.received_at_ns, asked, answers.pop(asked))))
        yield turn
