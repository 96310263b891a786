"""What the preflight finds out about real brokers, and that it leaves nothing behind."""

import pytest

from broker.client import Client
from broker.events import Message, Subscribed
from broker.preflight import BrokerUnreachable, probe
from broker.settings import BrokerSettings


def test_both_brokers_keep_what_they_must_keep(broker, topic):
    abilities = probe(broker.settings, topic)
    assert (abilities.retained_fault, abilities.session_fault) == (None, None)


def test_the_packet_limit_that_the_broker_announces_is_found(broker, topic):
    announces = {"mosquitto": broker.settings.max_packet_size, "iotcore": None}
    assert probe(broker.settings, topic).max_packet_size == announces[broker.kind]


def test_nothing_stays_on_the_topic(broker, topic):
    probe(broker.settings, topic)
    with Client(broker.settings, "after-the-probe", subscriptions=[topic], clean_start=True) as client:
        events = iter(lambda: client.next_event(1), None)
        assert [type(event) for event in events if isinstance(event, Message | Subscribed)] == [Subscribed]


def test_a_topic_that_cannot_be_published_on_is_the_callers_mistake(broker):
    with pytest.raises(ValueError, match="topic"):
        probe(broker.settings, "not/#/a/topic")


def test_a_dead_port_is_unreachable():
    with pytest.raises(BrokerUnreachable, match=r"cannot reach a broker at 127.0.0.1:1\b"):
        probe(BrokerSettings(port=1), "any")


def test_a_topic_that_the_broker_refuses_is_a_fault_in_words(broker):
    abilities = probe(broker.settings, "$SYS/refused")
    assert abilities.retained_fault
    assert abilities.session_fault
