"""How much memory this process and all that it started take together, at the peak.

Shared pages (the mapped base model) are counted once where the system tells their share (PSS), else in every process
(RSS).
"""

import threading
from types import TracebackType
from typing import Literal, Self

import psutil

Measure = Literal["PSS", "RSS"]
SAMPLE_EVERY_S = 5.0  # reading the share of one large process takes 20 ms of a core that others want


class PeakMemory:
    """Samples in the background while its `with` block runs; `peak_mb` and `measure` tell the result."""

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self.measure: Measure = "PSS"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        own = psutil.Process()
        while True:
            total, measure = memory_of([own, *own.children(recursive=True)])
            self.peak_mb = max(self.peak_mb, total / 1e6)
            if measure == "RSS":  # one unreadable process makes the sum an upper bound
                self.measure = "RSS"
            if self._done.wait(SAMPLE_EVERY_S):
                return


def memory_of(processes: list[psutil.Process]) -> tuple[int, Measure]:
    """Bytes held by these processes together; PSS when it could be read for all of them, else RSS where not."""
    total, measure = 0, "PSS"
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        except (psutil.AccessDenied, AttributeError):  # another user's process; a system without PSS
            total += _rss(process)
            measure = "RSS"
    return total, "PSS" if measure == "PSS" else "RSS"


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
