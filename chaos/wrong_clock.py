"""Runs the console command with a wall clock that is as wrong as a file says: seconds, read again as they change.

    python -m chaos.wrong_clock FILE coordinator --config coordinator.toml

libfaketime would do this for any program, but it does not get along with CPython: with it, `time.sleep` fails and
threads spin for tens of seconds. So the clock is wrong where the product asks for it, in `time`, and nowhere below.
"""

import sys
import time
from pathlib import Path

LOOK_EVERY_S = 0.2
NS_PER_S = 1_000_000_000


class WrongClock:
    """The time of day, so many seconds off."""

    def __init__(self, file: Path) -> None:
        self._file, self._look_at, self._offset_s = file, 0.0, 0
        self._true_ns = time.time_ns

    def time_ns(self) -> int:
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_EVERY_S
            self._offset_s = int(self._file.read_text() or self._offset_s)
        return self._true_ns() + self._offset_s * NS_PER_S

    def time(self) -> float:
        return self.time_ns() / NS_PER_S


if __name__ == "__main__":
    clock = WrongClock(Path(sys.argv[1]))
    time.time_ns, time.time = clock.time_ns, clock.time
    from alignfed import main  # only now: whoever takes these functions by name takes ours

    sys.argv = ["alignfed", *sys.argv[2:]]
    main()
