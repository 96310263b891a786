"""Where the service puts what it knows, for other threads to read: one assignment, and nobody waits for anybody.

The service's loop shows facts, all of them immutable. Whoever looks makes a status of them, at most a few times a
second, so that everybody who looks at the same moment sees the same figures.
"""

import threading
import time

from coordinator.watch.alarms import with_alarms
from coordinator.watch.status import Facts, Status, status_of

FRESH_S = 0.5  # so long a status is good enough for the next one who asks


class Board:
    """The newest facts, and the status made of them; safe to use from any thread."""

    def __init__(self) -> None:
        self._facts: Facts | None = None
        self._lock = threading.Lock()  # of who makes a status; who shows facts takes none
        self._status: Status | None = None
        self._made_at = 0.0

    def show(self, facts: Facts) -> None:
        """Put up new facts in place of the old."""
        self._facts = facts

    @property
    def facts(self) -> Facts | None:
        """The newest facts; None before the service has begun."""
        return self._facts

    def status(self) -> Status | None:
        """What an operator sees now; None before the service has begun."""
        with self._lock:
            if (facts := self._facts) is None:
                return None
            if self._status is None or time.monotonic() - self._made_at >= FRESH_S:
                self._status = with_alarms(status_of(facts, time.time_ns()))
                self._made_at = time.monotonic()
            return self._status
