"""Values: what MQTT can carry, and how large it is on the wire."""

import pytest

from broker.events import Publication, check_filter


@pytest.mark.parametrize("topic", ["", "a/+", "a/#", "a\0b", "x" * 65_536])
def test_a_topic_that_cannot_be_published_on_is_refused(topic: str) -> None:
    with pytest.raises(ValueError, match="topic"):
        Publication(topic, b"")


@pytest.mark.parametrize("topic_filter", ["", "a/#/b", "a+/b", "#a", "a\0"])
def test_a_malformed_filter_is_refused(topic_filter: str) -> None:
    with pytest.raises(ValueError, match="filter"):
        check_filter(topic_filter)


@pytest.mark.parametrize("topic_filter", ["#", "+", "a/+/b/#", "$share/group/a/+", "$SYS/#", "/"])
def test_a_good_filter_passes(topic_filter: str) -> None:
    check_filter(topic_filter)


def test_numbers_that_mqtt_cannot_write_are_refused() -> None:
    with pytest.raises(ValueError, match="qos"):
        Publication("t", b"", qos=2)
    with pytest.raises(ValueError, match="expiry_s"):
        Publication("t", b"", expiry_s=0)
    with pytest.raises(ValueError, match="payload_format"):
        Publication("t", b"", payload_format=2)
    with pytest.raises(ValueError, match="property"):
        Publication("t", b"", user=(("key", "x" * 65_536),))


def test_the_size_of_a_packet_counted_by_hand() -> None:
    # fixed header 2, topic 2 + 1, packet id 2, no properties 1, payload 3
    assert Publication("t", b"abc").packet_size() == 11
    assert Publication("t", b"abc", qos=0).packet_size() == 9
    # as above, and: expiry 1 + 4, response topic 1 + 2 + 1, correlation data 1 + 2 + 2, content type 1 + 2 + 1,
    # user property 1 + 2 + 1 + 2 + 2 (an umlaut is two bytes), payload format 1 + 1
    full = Publication(
        "t",
        b"abc",
        expiry_s=1,
        response_topic="r",
        correlation_data=b"cc",
        content_type="x",
        user=(("k", "\u00fc"),),
        payload_format=1,
    )
    assert full.packet_size() == 11 + 5 + 4 + 5 + 4 + 8 + 2
    # 128 bytes or more need a second byte of length
    assert Publication("t", b"x" * 121).packet_size() == 2 + 127
    assert Publication("t", b"x" * 122).packet_size() == 3 + 128
