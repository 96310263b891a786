"""Events on their way from the network thread to the caller, and which messages are still to be acknowledged.

Pure but for a lock and a wait; knows nothing of sockets. What happens to the connection and to what we publish
overtakes the messages of others: behind thousands of them our own publications would wait for one another. QoS 0
messages are dropped and counted when the caller falls behind. QoS 1 messages are not: an inbox `is_full` of bytes asks
its owner to read no more from the network until the caller has taken some. Unread are then also the broker's answers to
what we publish, so a caller who has to answer under any load lets QoS 1 messages be dropped as well, and relies on
their senders, who send again what is not answered. The window of unacknowledged messages bounds nothing: mosquitto
2.0.11 sends another window for each acknowledgement.
"""

import threading
from collections import deque

from broker.events import Event, Message, NetworkThreadDied

MAX_WAITING = 1_000  # QoS 0 messages find no room behind so many others
MAX_WAITING_BYTES = 32 * 1024 * 1024  # of messages; QoS 0 finds no room in the second half


class Inbox:
    """A queue of events with the acknowledgements that the caller owes. Safe to use from any thread."""

    def __init__(
        self, max_waiting: int = MAX_WAITING, max_bytes: int = MAX_WAITING_BYTES, *, drops_all: bool = False
    ) -> None:
        self.dropped = 0  # messages that found the inbox full, of QoS 0, and of QoS 1 too with `drops_all`
        self.generation = 0
        self._max_waiting, self._max_bytes = max_waiting, max_bytes
        self._bytes = 0  # of the messages that wait
        self._drops_all = drops_all
        self._dropped_mids: set[int] = set()  # to be acknowledged in their turn
        self._news: deque[Event] = deque()  # all but messages: few, small, and handed out first
        self._messages: deque[Message] = deque()
        self._unacknowledged: deque[int] = deque()  # packet ids of this generation, in the order received
        self._acknowledged: list[int] = []
        self._failure: BaseException | None = None
        self._changed = threading.Condition()

    def begin_generation(self, session_present: bool) -> None:
        """Forget what the last connection left open: packet ids mean nothing on a new one.

        A broker that kept the session sends every unacknowledged message again, so those that wait here are let go;
        without a session these are the only copies, and they stay.
        """
        with self._changed:
            self.generation += 1
            self._unacknowledged.clear()
            self._acknowledged.clear()
            self._dropped_mids.clear()
            if session_present:
                self._messages = deque(message for message in self._messages if message.qos == 0)
                self._bytes = sum(message.held for message in self._messages)

    def put(self, event: Event) -> None:
        """Append an event for the caller."""
        with self._changed:
            if not isinstance(event, Message):
                self._news.append(event)
            elif self._has_room_for(event):
                self._messages.append(event)
                self._bytes += event.held
            self._changed.notify()

    def fail(self, failure: BaseException) -> None:
        """Make every `get` from now on raise NetworkThreadDied with this cause."""
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()

    def get(self, timeout_s: float | None) -> Event | None:
        """The next event, or None when `timeout_s` passes first. Raises NetworkThreadDied."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_any or self._failure is not None, timeout_s)
            if self._failure is not None:
                raise NetworkThreadDied(f"the MQTT network thread stopped: {self._failure!r}") from self._failure
            if self._news:
                return self._news.popleft()
            if not self._messages:
                return None
            message = self._messages.popleft()
            self._bytes -= message.held
            return message

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be read from the network: so many bytes wait for the caller."""
        with self._changed:
            return self._bytes >= self._max_bytes and not self._drops_all

    @property
    def _has_any(self) -> bool:
        return bool(self._news or self._messages)

    def _has_room_for(self, message: Message) -> bool:
        """Whether a message finds room; one that finds none is counted, and of QoS 1 acknowledged in its turn."""
        with_it = self._bytes + message.held
        if message.qos == 0:
            has_room = len(self._messages) < self._max_waiting and with_it <= self._max_bytes // 2
        else:
            self._unacknowledged.append(message.mid)
            has_room = not self._drops_all or with_it <= self._max_bytes
        if not has_room:
            self.dropped += 1
            if message.qos > 0:
                self._dropped_mids.add(message.mid)
                self._pass_over_dropped()
        return has_room

    def _pass_over_dropped(self) -> None:
        """Acknowledge what was dropped and is next: the order holds for all."""
        while self._unacknowledged and self._unacknowledged[0] in self._dropped_mids:
            self._dropped_mids.remove(self._unacknowledged[0])
            self._acknowledged.append(self._unacknowledged.popleft())

    def acknowledge(self, message: Message) -> None:
        """Note that the caller is done with a message. Raises ValueError when an earlier one is still open."""
        with self._changed:
            if message.qos == 0 or message.generation != self.generation:
                return
            if not self._unacknowledged or self._unacknowledged[0] != message.mid:
                raise ValueError(
                    f"acknowledge messages once and in the order received: packet {message.mid} on {message.topic!r} "
                    f"is not the next one, {self._unacknowledged[0] if self._unacknowledged else 'none'} is"
                )
            self._acknowledged.append(self._unacknowledged.popleft())
            self._pass_over_dropped()

    def take_acknowledged(self) -> list[int]:
        """Packet ids to acknowledge to the broker, in order; each is handed out once."""
        with self._changed:
            taken, self._acknowledged = self._acknowledged, []
            return taken
