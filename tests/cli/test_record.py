"""`alignfed record` as a process: killed, continued, stopped."""

import json
import signal
import time

import pytest

from broker.client import Client
from broker.embedded import EmbeddedBroker
from broker.events import Connected, Publication, Published
from broker.recording import read_rows
from tests.patience import PATIENCE_S


@pytest.fixture
def publisher(broker):
    with Client(broker, "record-test") as client:
        assert isinstance(client.next_event(PATIENCE_S), Connected)
        yield client


def say(client, topic, numbers):
    tokens = {client.publish(Publication(topic, b"%d" % number)) for number in numbers}
    while tokens:
        event = client.next_event(PATIENCE_S)
        tokens.discard(event.token if isinstance(event, Published) else None)


def recorded(path):
    return [int(row.payload) for row in read_rows(path)] if path.exists() else []


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_kill_and_a_new_start_lose_nothing_of_what_was_sent_meanwhile(start, publisher, broker, tmp_path):
    words = ("record", "--broker", broker.address, "--out", "r", "--topic", "kill/#", "--topic", "ready")
    path = tmp_path / "r"
    first = start(*words)
    until(lambda: publisher.publish(Publication("ready", b"-1")) and recorded(path))
    say(publisher, "kill/x", range(500))
    first.kill()
    first.wait()
    assert {-1} == {*recorded(path)} - {*range(500)}
    say(publisher, "kill/x", range(500, 600))
    second = start(*words, "--json")
    until(lambda: {*range(600)} <= {*recorded(path)})
    second.send_signal(signal.SIGINT)
    out, _ = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0
    assert json.loads(out)["messages"] >= 100
    assert {path.name for path in tmp_path.iterdir()} == {"r"}


def test_the_federations_topics_are_what_is_recorded_by_default(start, publisher, broker, tmp_path):
    process = start("record", "--broker", broker.address, "--federation", "mine", "--out", "r")
    topics = ("alignfed/v1/mine/x", "alignfed/v1/other/x", "elsewhere")
    until(lambda: all(publisher.publish(Publication(t, b"0")) for t in topics) and recorded(tmp_path / "r"))
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    assert {row.topic for row in read_rows(tmp_path / "r")} == {"alignfed/v1/mine/x"}


def test_a_file_says_that_nothing_is_missed_and_nothing_touches_it_while_the_broker_is_away(start, tmp_path):
    alive = tmp_path / "alive"
    with EmbeddedBroker() as own:
        process = start("record", "--broker", own.settings.address, "--out", "r", "--alive", alive)
        until(alive.exists)
        own.kill()
        while "alignfed: " not in process.stderr.readline():  # it has noticed
            assert process.poll() is None
        alive.unlink()
        time.sleep(2)
        assert not alive.exists()
        own.restart()
        until(alive.exists)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--max-size", "much"), 2, "give a size such as 500MB"),
        (("--max-size", "1KB"), 2, "at least 100000 bytes"),
        (("--topic", "a/#/b"), 2, "not a topic filter"),
    ],
)
def test_what_cannot_be_recorded_is_said(alignfed, broker, words, code, said):
    refused = alignfed("record", "--broker", broker.address, "--out", "r", *words)
    assert refused.returncode == code
    assert said in refused.stderr
