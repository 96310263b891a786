"""What will happen when: events in the order of their time, and among equals in that of becoming known."""

import heapq
from typing import Generic, TypeVar

E = TypeVar("E")


class Agenda(Generic[E]):
    """A queue of events in virtual time."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, E]] = []
        self._known = 0

    def expect(self, time: float, event: E) -> None:
        """Let an event happen at this time."""
        heapq.heappush(self._heap, (time, self._known, event))
        self._known += 1

    @property
    def due(self) -> float | None:
        """The time of the next event."""
        return self._heap[0][0] if self._heap else None

    def take(self) -> tuple[float, E]:
        """The next event and its time."""
        time, _, event = heapq.heappop(self._heap)
        return time, event

    def keep_only(self, kind: type[E]) -> None:
        """Call off all events of other kinds."""
        self._heap = sorted(entry for entry in self._heap if isinstance(entry[2], kind))
