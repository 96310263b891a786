"""The inbox alone: order of acknowledgements, generations, bounds. No broker."""

import threading

import pytest

from broker.events import Connected, Message, MessageProperties, NetworkThreadDied
from broker.inbox import Inbox

CONNECTED = Connected(session_present=True, max_packet_size=None, receive_maximum=None)


def message(mid: int, generation: int = 1, qos: int = 1) -> Message:
    return Message("t", b"", qos, False, False, MessageProperties(), 0, generation, mid)


def connected_inbox(max_waiting: int = 10) -> Inbox:
    inbox = Inbox(max_waiting)
    inbox.begin_generation(session_present=False)
    return inbox


def test_acknowledgements_leave_once_and_in_order() -> None:
    inbox = connected_inbox()
    for mid in (7, 8):
        inbox.put(message(mid))
    inbox.acknowledge(message(7))
    inbox.acknowledge(message(8))
    assert inbox.take_acknowledged() == [7, 8]
    assert inbox.take_acknowledged() == []


def test_an_acknowledgement_that_was_not_sent_dies_with_its_connection() -> None:
    inbox = connected_inbox()
    inbox.put(message(7))
    inbox.acknowledge(message(7))
    inbox.begin_generation(session_present=True)
    assert inbox.take_acknowledged() == []


def test_an_old_message_does_not_acknowledge_a_new_one_with_the_same_packet_id() -> None:
    inbox = connected_inbox()
    inbox.begin_generation(session_present=True)
    inbox.put(message(7, generation=2))
    inbox.acknowledge(message(7, generation=1))
    assert inbox.take_acknowledged() == []
    inbox.acknowledge(message(7, generation=2))
    assert inbox.take_acknowledged() == [7]


def test_messages_that_the_broker_will_send_again_do_not_wait_twice() -> None:
    inbox = connected_inbox()
    inbox.put(message(7))
    inbox.put(CONNECTED)
    inbox.begin_generation(session_present=True)
    inbox.put(message(1, generation=2))
    assert [inbox.get(0), inbox.get(0), inbox.get(0)] == [CONNECTED, message(1, generation=2), None]


def test_messages_that_the_broker_has_forgotten_are_kept() -> None:
    inbox = connected_inbox()
    inbox.put(message(7))
    inbox.begin_generation(session_present=False)
    assert inbox.get(0) == message(7)


def test_unreliable_messages_are_dropped_and_counted_when_the_inbox_is_full() -> None:
    inbox = connected_inbox(max_waiting=2)
    for mid in range(5):
        inbox.put(message(mid, qos=0))
    inbox.put(message(9, qos=1))
    assert [e.mid for e in (inbox.get(0), inbox.get(0), inbox.get(0)) if isinstance(e, Message)] == [0, 1, 9]
    assert inbox.dropped == 3


def test_a_failure_wakes_the_one_who_waits() -> None:
    inbox = connected_inbox()
    threading.Timer(0.05, inbox.fail, [MemoryError("no room")]).start()
    with pytest.raises(NetworkThreadDied, match="no room"):
        inbox.get(None)
    with pytest.raises(NetworkThreadDied):
        inbox.get(0)
