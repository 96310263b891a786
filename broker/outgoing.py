"""Publications on their way out: queued while the broker is away, a window of them in flight, each with a token.

Pure but for a lock; time is an argument. The queue lives in memory only: what must survive a crash belongs in a
database until the receiver, not the broker, has confirmed it.
"""

import threading
from collections import deque
from dataclasses import dataclass, replace

from broker.events import PayloadTooLarge, Publication, Published, QueueFull

MAX_QUEUED_BYTES = 64 * 1024 * 1024  # for QoS 0 half of it: what may be lost leaves room for what may not


@dataclass(frozen=True)
class Outgoing:
    """A publication with its token, its size in bytes on the wire and when it was queued (monotonic seconds)."""

    token: int
    publication: Publication
    size: int
    queued_at: float


class OutgoingQueue:
    """First in, first out; at most `window` unacknowledged. Safe to use from any thread."""

    def __init__(self, max_packet_size: int, window: int) -> None:
        self.max_packet_size = max_packet_size
        self.window = window
        self._waiting: deque[Outgoing] = deque()
        self._in_flight: dict[int, Outgoing] = {}  # by packet id, oldest first
        self._bytes = 0
        self._last_token = 0
        self._lock = threading.Lock()

    def add(self, publication: Publication, now: float) -> int:
        """Queue a publication and return its token. Raises PayloadTooLarge or QueueFull."""
        size = publication.packet_size()
        with self._lock:
            if size > self.max_packet_size:
                raise PayloadTooLarge(_too_large(publication, size, self.max_packet_size))
            if self._bytes + size > (MAX_QUEUED_BYTES if publication.qos else MAX_QUEUED_BYTES // 2):
                raise QueueFull(f"{self._bytes} bytes wait for the broker already; publish again when some are taken")
            self._last_token += 1
            self._bytes += size
            self._waiting.append(Outgoing(self._last_token, publication, size, now))
            return self._last_token

    def next_to_send(self, now: float) -> Outgoing | Published | None:
        """The next publication the window has room for, with what is left of its lifetime.

        A `Published` instead tells that one can no longer be sent, and why. None: nothing to do.
        """
        with self._lock:
            if not self._waiting or len(self._in_flight) >= self.window:
                return None
            outgoing = self._waiting.popleft()
            expiry_s, waited_s = outgoing.publication.expiry_s, int(now - outgoing.queued_at)
            if outgoing.size <= self.max_packet_size and (expiry_s is None or waited_s < expiry_s):
                if expiry_s is None:
                    return outgoing
                aged = replace(outgoing.publication, expiry_s=expiry_s - waited_s)
                return replace(outgoing, publication=aged, queued_at=outgoing.queued_at + waited_s)
            self._bytes -= outgoing.size
            if outgoing.size > self.max_packet_size:
                return Published(outgoing.token, _too_large(outgoing.publication, outgoing.size, self.max_packet_size))
            return Published(
                outgoing.token, f"expired: it waited {waited_s} s for the broker and may live {expiry_s} s"
            )

    def sent(self, outgoing: Outgoing, mid: int) -> None:
        """Note that a QoS 1 publication is in flight under packet id `mid`."""
        with self._lock:
            self._in_flight[mid] = outgoing

    def done(self, outgoing: Outgoing) -> None:
        """Forget a QoS 0 publication that was written to the network, or lost with its connection."""
        with self._lock:
            self._bytes -= outgoing.size

    def acknowledged(self, mid: int) -> int | None:
        """The token in flight under packet id `mid`, now free; None when there is none."""
        with self._lock:
            outgoing = self._in_flight.pop(mid, None)
            if outgoing is None:
                return None
            self._bytes -= outgoing.size
            return outgoing.token

    def fits(self) -> bool:
        """Whether all that is in flight respects the limits of the broker that has just answered."""
        with self._lock:
            in_flight = self._in_flight.values()
            return len(in_flight) <= self.window and all(o.size <= self.max_packet_size for o in in_flight)

    def requeue(self) -> None:
        """Put all that is in flight back to the head of the queue, oldest first."""
        with self._lock:
            self._waiting.extendleft(reversed(self._in_flight.values()))
            self._in_flight.clear()

    def __len__(self) -> int:
        with self._lock:
            return len(self._waiting) + len(self._in_flight)


def _too_large(publication: Publication, size: int, limit: int) -> str:
    return (
        f"too large: the message for {publication.topic!r} makes a packet of {size} bytes "
        f"and the limit is {limit}; send it in chunks"
    )
