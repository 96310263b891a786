"""The inbox alone: order of acknowledgements, generations, bounds. No broker."""

import threading

import pytest

from broker.events import Connected, Message, MessageProperties, NetworkThreadDied, Published
from broker.inbox import Inbox

CONNECTED = Connected(session_present=True, max_packet_size=None, receive_maximum=None)


KIB = 1024


def message(mid: int, generation: int = 1, qos: int = 1, size: int = 0) -> Message:
    return Message("t", bytes(size), qos, False, False, MessageProperties(), 0, generation, mid)


def connected_inbox(max_waiting: int = 10, max_bytes: int = 1024 * KIB) -> Inbox:
    inbox = Inbox(max_waiting, max_bytes)
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


def test_what_becomes_of_our_own_publications_does_not_wait_behind_messages() -> None:
    inbox = connected_inbox()
    for event in (message(7), message(8, qos=0), Published(1, None), message(9), CONNECTED, Published(2, None)):
        inbox.put(event)
    assert [inbox.get(0) for _ in range(3)] == [Published(1, None), CONNECTED, Published(2, None)]
    assert [inbox.get(0) for _ in range(4)] == [message(7), message(8, qos=0), message(9), None]


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


def test_unreliable_messages_have_half_of_the_bytes_and_never_make_it_full() -> None:
    inbox = connected_inbox(max_waiting=1000, max_bytes=100 * KIB)
    for mid in range(10):
        inbox.put(message(mid, qos=0, size=15 * KIB))
    assert inbox.dropped == 7
    assert not inbox.is_full
    for _ in range(3):
        inbox.get(0)
    inbox.put(message(10, qos=0, size=15 * KIB))
    assert inbox.dropped == 7


def test_reliable_messages_are_never_dropped_and_make_it_full_until_some_are_taken() -> None:
    inbox = connected_inbox(max_bytes=100 * KIB)
    for mid in range(3):
        inbox.put(message(mid, size=40 * KIB))
    assert inbox.is_full
    assert inbox.get(0) == message(0, size=40 * KIB)
    assert not inbox.is_full
    assert [inbox.get(0), inbox.get(0)] == [message(mid, size=40 * KIB) for mid in (1, 2)]


def test_many_empty_messages_make_it_full_as_well() -> None:
    inbox = connected_inbox(max_bytes=100 * KIB)
    for mid in range(100):
        inbox.put(message(mid))
    assert inbox.is_full


def test_what_the_broker_will_send_again_takes_no_room() -> None:
    inbox = connected_inbox(max_bytes=100 * KIB)
    inbox.put(message(1, size=100 * KIB))
    inbox.begin_generation(session_present=True)
    assert not inbox.is_full


def test_where_all_may_be_dropped_what_finds_no_room_is_acknowledged_in_its_turn() -> None:
    inbox = Inbox(max_bytes=100 * KIB, drops_all=True)
    inbox.begin_generation(session_present=False)
    for mid in range(1, 6):
        inbox.put(message(mid, size=40 * KIB))
    assert inbox.dropped == 3 and not inbox.is_full
    assert inbox.take_acknowledged() == []  # two before them are not
    first, second = inbox.get(0), inbox.get(0)
    assert (first, second) == (message(1, size=40 * KIB), message(2, size=40 * KIB))
    inbox.acknowledge(message(1))
    assert inbox.take_acknowledged() == [1]
    inbox.put(message(6))
    inbox.acknowledge(message(2))
    assert inbox.take_acknowledged() == [2, 3, 4, 5]
    assert inbox.get(0) == message(6)
    inbox.acknowledge(message(6))
    assert inbox.take_acknowledged() == [6]


def test_what_is_dropped_behind_nothing_is_acknowledged_at_once() -> None:
    inbox = Inbox(max_bytes=100 * KIB, drops_all=True)
    inbox.begin_generation(session_present=False)
    inbox.put(message(1, size=100 * KIB))
    assert inbox.take_acknowledged() == [1] and inbox.dropped == 1


def test_a_failure_wakes_the_one_who_waits() -> None:
    inbox = connected_inbox()
    threading.Timer(0.05, inbox.fail, [MemoryError("no room")]).start()
    with pytest.raises(NetworkThreadDied, match="no room"):
        inbox.get(None)
    with pytest.raises(NetworkThreadDied):
        inbox.get(0)
