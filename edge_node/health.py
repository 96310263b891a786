"""Whether a node does its work, for whoever asks: what keeps it from that in sentences, and what else is worth knowing.

The loop shows what it knows and that it has come by; other threads read it, and nobody waits for anybody. A broker that
is away keeps no node from its work, for it trains and answers on: that is told, and is no fault.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from edge_node.metrics import Metrics
from edge_node.state import EdgeState

SILENT_S = 60.0  # a loop that has not come by for so long hangs; an idle one comes by six times in it
FAILED_TRAININGS = 3  # in a row: one may be chance, or memory that another program had for a moment


class Told(NamedTuple):
    """What a part of the node says of itself; without faults it does its work."""

    faults: tuple[str, ...]
    about: dict[str, Any]


Look = Callable[[], Told]
"""Looks at a part of the node, from any thread; it may take seconds."""


class Shown:
    """What the node's loop shows to other threads: its state, and when it came by."""

    def __init__(self, has_examples: Callable[[], bool]) -> None:
        """`has_examples`: a node that has nothing to learn from yet waits, and is not at fault."""
        self.metrics = Metrics()
        self._has_examples = has_examples
        self._newest: tuple[EdgeState, float] | None = None

    def show(self, state: EdgeState) -> None:
        """The loop has come by, and this is what it knows."""
        self.metrics.show(state)
        self._newest = (state, time.monotonic())

    def look(self, at: float | None = None) -> Told:
        """Whether the loop turns, and its trainings come to something; `at` is of time.monotonic, now if not given."""
        if (newest := self._newest) is None:
            return Told(("the node has not begun yet",), {})
        state, came_by = newest
        return Told(
            (*_silence((time.monotonic() if at is None else at) - came_by), *self._failures(state)),
            {
                "connected": state.connected,
                "version": state.held.pointer.version if state.held is not None else None,
                "outbox": len(state.outbox),
            },
        )

    def _failures(self, state: EdgeState) -> Sequence[str]:
        if state.failures < FAILED_TRAININGS or not self._has_examples():
            return ()
        return (f"the last {state.failures} trainings came to nothing; the node's log says why",)


def _silence(silent_s: float) -> Sequence[str]:
    return (f"the node's loop has not come by for {silent_s:.0f} s",) if silent_s > SILENT_S else ()
