"""`alignfed broker` in the foreground."""

import signal
import socket

import pytest

from broker.client import Client
from broker.events import Connected
from broker.settings import BrokerSettings


@pytest.mark.parametrize("kind", [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "iotcore"])
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_broker_answers_mqtt_5_and_stops_when_told_to(kind, stop, start):
    process = start("broker", "--port", 0, "--kind", kind, "--data-dir", "messages")
    first_line = process.stderr.readline()
    assert first_line.startswith(f"{kind} listens on 127.0.0.1:")
    settings = BrokerSettings(port=int(first_line.split(":")[1].split(";")[0]))
    with Client(settings, "visitor", clean_start=True) as client:
        assert isinstance(client.next_event(10), Connected)
    process.send_signal(stop)
    assert process.wait(20) == 0


def test_a_port_that_is_taken_is_an_error_in_words(alignfed):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = alignfed("broker", "--port", taken.getsockname()[1])
    assert refused.returncode == 1
    assert "is taken" in refused.stderr
    assert "Traceback" not in refused.stderr
