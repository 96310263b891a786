"""The outgoing queue alone: window, tokens, limits, lifetimes. No broker, and time is a number."""

import pytest

from broker.events import PayloadTooLarge, Publication, Published, QueueFull
from broker.outgoing import MAX_QUEUED_BYTES, Outgoing, OutgoingQueue


def queue(window: int = 2, max_packet_size: int = 1000) -> OutgoingQueue:
    return OutgoingQueue(max_packet_size, window)


def send_next(outgoing: OutgoingQueue, mid: int, now: float = 0.0) -> Outgoing:
    ready = outgoing.next_to_send(now)
    assert isinstance(ready, Outgoing)
    outgoing.sent(ready, mid)
    return ready


def test_the_window_holds_back_what_follows_until_one_is_acknowledged() -> None:
    outgoing = queue(window=2)
    tokens = [outgoing.add(Publication("t", b"%d" % i), 0) for i in range(3)]
    assert [send_next(outgoing, mid).token for mid in (11, 12)] == tokens[:2]
    assert outgoing.next_to_send(0) is None
    assert outgoing.acknowledged(11) == tokens[0]
    assert send_next(outgoing, 13).token == tokens[2]


def test_an_answer_for_an_unknown_packet_id_is_nobodys() -> None:
    assert queue().acknowledged(11) is None


def test_a_publication_above_the_limit_is_refused_at_once() -> None:
    with pytest.raises(PayloadTooLarge, match="1011 bytes and the limit is 1000"):
        queue().add(Publication("t", b"x" * 1002), 0)


def test_a_limit_learnt_later_answers_what_is_queued_instead_of_sending_it() -> None:
    outgoing = queue()
    token = outgoing.add(Publication("t", b"x" * 900), 0)
    outgoing.max_packet_size = 500
    answer = outgoing.next_to_send(0)
    assert isinstance(answer, Published) and answer.token == token
    assert answer.reason is not None and "too large" in answer.reason
    assert len(outgoing) == 0


def test_what_is_in_flight_and_fits_no_more_goes_back_to_the_head_of_the_queue() -> None:
    outgoing = queue()
    tokens = [outgoing.add(Publication("t", b"x" * 900), 0) for _ in range(3)]
    send_next(outgoing, 11)
    send_next(outgoing, 12)
    assert outgoing.fits()
    outgoing.window = 1
    assert not outgoing.fits()
    outgoing.requeue()
    assert send_next(outgoing, 13).token == tokens[0]
    assert outgoing.next_to_send(0) is None


def test_a_publication_that_waited_too_long_is_not_sent() -> None:
    outgoing = queue()
    outgoing.add(Publication("t", b"", expiry_s=60), 100.0)
    answer = outgoing.next_to_send(160.0)
    assert isinstance(answer, Published)
    assert answer.reason == "expired: it waited 60 s for the broker and may live 60 s"


def test_waiting_counts_against_the_lifetime_once() -> None:
    outgoing = queue()
    outgoing.add(Publication("t", b"", expiry_s=60), 100.0)
    assert send_next(outgoing, 11, now=125.0).publication.expiry_s == 35
    outgoing.requeue()
    assert send_next(outgoing, 12, now=135.0).publication.expiry_s == 25


def test_the_queue_has_an_end_and_has_room_again_when_something_was_taken() -> None:
    outgoing = queue(max_packet_size=MAX_QUEUED_BYTES, window=1)
    half = Publication("t", bytes(MAX_QUEUED_BYTES // 2 - 100))
    outgoing.add(half, 0)
    outgoing.add(half, 0)
    with pytest.raises(QueueFull):
        outgoing.add(half, 0)
    send_next(outgoing, 11)
    outgoing.acknowledged(11)
    outgoing.add(half, 0)


def test_what_may_be_lost_leaves_half_of_the_room_to_what_may_not() -> None:
    outgoing = queue(max_packet_size=MAX_QUEUED_BYTES)
    quarter = bytes(MAX_QUEUED_BYTES // 4 - 100)
    for _ in range(2):
        outgoing.add(Publication("t", quarter, qos=0), 0)
    with pytest.raises(QueueFull):
        outgoing.add(Publication("t", quarter, qos=0), 0)
    outgoing.add(Publication("t", quarter), 0)
