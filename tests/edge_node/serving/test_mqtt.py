"""A device that speaks only MQTT is answered on its response topic, told what made the answer, and told what is wrong.

The device is a plain paho client: that is what devices are.
"""

import json
import queue
import time
from contextlib import contextmanager

import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from base_model.chat_tokens import ChatTokens
from broker.embedded import EmbeddedBroker
from edge_node.serving.answering import Answering
from edge_node.serving.inference import Inference, ServedVersion
from edge_node.serving.mqtt import MOST_CORRELATION_BYTES, MOST_REQUEST_BYTES, MqttServer
from tests.patience import PATIENCE_S

USER = [{"role": "user", "content": "turn on the desk lamp"}]
ASKED, ANSWERS = "alignfed/v1/home/infer/kitchen", "alignfed/v1/home/answer/kitchen/lamp"


class Device:
    """A paho client that asks the node and hears everything that is published."""

    def __init__(self, broker):
        self.heard = queue.SimpleQueue()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        # an empty message is the test asking whether somebody listens
        self._client.on_message = lambda _client, _data, message: message.payload and self.heard.put(message)
        subscribed = queue.SimpleQueue()
        self._client.on_subscribe = lambda *_: subscribed.put(True)
        self._client.connect(broker.settings.host, broker.settings.port)
        self._client.loop_start()
        self._client.subscribe("#", options=SubscribeOptions(qos=1, noLocal=True, retainHandling=2))
        subscribed.get(timeout=PATIENCE_S)

    def send(self, payload, response_topic=ANSWERS, correlation=b"7", retain=False, topic=ASKED):
        properties = Properties(PacketTypes.PUBLISH)
        if response_topic is not None:
            properties.ResponseTopic = response_topic
        if correlation is not None:
            properties.CorrelationData = correlation
        payload = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self._client.publish(topic, payload, 1, retain, properties).wait_for_publish(PATIENCE_S)

    def next(self):
        """The next message: where it went, what it says, and its correlation data."""
        message = self.heard.get(timeout=PATIENCE_S)
        return message.topic, json.loads(message.payload), getattr(message.properties, "CorrelationData", None)

    def answer(self):
        """Every part of the next answer."""
        parts = [self.next()[1]]
        while not parts[-1]["last"]:
            parts.append(self.next()[1])
        return parts

    def ask(self, **fields):
        self.send({"messages": USER, **fields})
        return self.answer()

    def listen_only_to(self, topic):
        self._client.unsubscribe("#")
        self._client.subscribe(topic, qos=1)

    def close(self):
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture(scope="module")
def broker():
    with EmbeddedBroker() as running:
        yield running


@pytest.fixture
def device(broker):
    device = Device(broker)
    yield device
    device.close()


@pytest.fixture(scope="module")
def adapters(session, make_adapter):
    inference = Inference(session)
    return [inference.prepare(make_adapter(n), ServedVersion(1, n), make_adapter(n).digest) for n in (1, 2, 3)]


@contextmanager
def serving(broker, inference, folder, base_model, parallel=2, waiting=8, timeout_s=30.0):
    """A node that answers: its MQTT face, and its answering threads."""
    faults = []
    server = MqttServer(broker.settings, "home", "kitchen", base_model, faults.append)
    answering = Answering(inference, ChatTokens(folder), parallel, waiting, timeout_s)
    server.serve(inference, answering, usual_tokens=16)
    server.start()
    try:
        is_listening(broker, server)
        yield server, answering
    finally:
        answering.stop()
        server.stop()
    assert faults == []


def is_listening(broker, server):
    """Wait until requests reach the server: it drops one that has no response topic."""
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.connect(broker.settings.host, broker.settings.port)
    client.loop_start()
    for tries in range(PATIENCE_S * 100):
        if server.counts()["dropped"]:
            break
        if tries % 100 == 0:
            client.publish(ASKED, b"", 1)
        time.sleep(0.01)
    client.disconnect()
    client.loop_stop()
    assert server.counts()["dropped"]


@pytest.fixture
def node(broker, session, resolved, adapters):
    inference = Inference(session)
    inference.swap(adapters[0])
    with serving(broker, inference, resolved.path, resolved.digest) as (server, _):
        yield server


def test_an_answer_names_the_adapter_and_the_base_model_that_made_it(device, node, adapters, resolved):
    device.send({"messages": USER, "max_tokens": 5})
    topic, answer, correlation = device.next()
    assert (topic, correlation) == (ANSWERS, b"7")
    made_with = {"epoch": 1, "version": 1, "digest": adapters[0].digest, "base_model": resolved.digest}
    assert {name: answer[name] for name in made_with} == made_with
    assert (answer["index"], answer["last"], answer["finish"], answer["error"]) == (0, True, "length", None)
    assert answer["text"]
    assert answer["tokens"] == 5
    assert answer["prompt_tokens"] > 5


def test_a_streamed_answer_is_the_same_text_piece_by_piece(device, node):
    [whole] = device.ask(max_tokens=12)
    parts = device.ask(max_tokens=12, stream=True)
    assert [part["index"] for part in parts] == list(range(len(parts)))
    assert len(parts) > 4
    assert "".join(part["text"] for part in parts) == whole["text"]
    assert {part["digest"] for part in parts} == {whole["digest"]}
    assert parts[-1]["finish"] == whole["finish"]


def test_the_base_model_can_be_asked_without_the_adapter(device, node, resolved):
    [answer] = device.ask(max_tokens=5, model="base")
    assert (answer["epoch"], answer["version"], answer["digest"]) == (None, None, None)
    assert answer["base_model"] == resolved.digest
    assert answer["text"] != device.ask(max_tokens=5)[0]["text"]


def test_the_same_seed_gives_the_same_answer_at_any_temperature(device, node):
    first, again, other = (device.ask(max_tokens=12, temperature=1.5, seed=seed)[0]["text"] for seed in (4, 4, 5))
    assert first == again != other


def test_a_stop_string_ends_the_answer_before_it(device, node):
    whole = device.ask(max_tokens=12)[0]["text"]
    [answer] = device.ask(max_tokens=12, stop=[whole[3:5]])
    assert answer["text"] == whole[: whole.index(whole[3:5])]
    assert answer["finish"] == "stop"


def test_a_device_may_leave_out_correlation_data_and_have_a_topic_of_its_own(device, node):
    device.send({"messages": USER, "max_tokens": 1}, response_topic="shop/lamp/said", correlation=None)
    topic, answer, correlation = device.next()
    assert (topic, correlation, answer["last"]) == ("shop/lamp/said", None, True)


@pytest.mark.parametrize(
    ("request_", "code", "said"),
    [
        (b"", "bad_request", "Invalid JSON"),
        (b"\xff\xfe", "bad_request", "Invalid JSON"),
        (b"[" * 20_000, "bad_request", "Invalid JSON"),
        (b"[" * 30_000, "bad_request", "30000 values is over"),
        ({}, "bad_request", "messages: Field required"),
        ({"messages": []}, "bad_request", "messages: "),
        ({"messages": [{"role": "wizard", "content": ""}]}, "bad_request", "messages.0.role"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "bad_request", "messages.0.content"),
        ({"messages": USER, "temperature": 9}, "bad_request", "temperature: "),
        ({"messages": USER, "max_tokens": 0}, "bad_request", "max_tokens: "),
        ({"messages": USER, "max_tokens": 4097}, "bad_request", "max_tokens: "),
        ({"messages": USER, "top_p": 0}, "bad_request", "top_p: "),
        ({"messages": USER, "model": "gpt-4"}, "bad_request", "model: "),
        ({"messages": USER, "n": 2}, "bad_request", "n: Extra inputs"),
        ({"messages": USER, "stop": [""]}, "bad_request", "stop"),
        ({"messages": [{"role": "user", "content": "lamp " * 5000}]}, "too_long", "do not fit a context of 2048"),
        ({"messages": [{"role": "user", "content": "x" * MOST_REQUEST_BYTES}]}, "too_long", "may have 262144 bytes"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_bad_request_is_told_what_is_wrong(device, node, request_, code, said):
    device.send(request_)
    _, answer, correlation = device.next()
    assert (answer["last"], answer["text"], correlation) == (True, "", b"7")
    assert answer["error"]["code"] == code
    assert said in answer["error"]["reason"]


def test_a_retained_request_is_refused_because_it_would_be_asked_for_ever(device, node):
    device.send({"messages": USER}, retain=True)
    assert "without the retain flag" in device.next()[1]["error"]["reason"]
    device.send(b"", retain=True, response_topic=None)


@pytest.mark.parametrize(
    "topic",
    [
        None,
        ASKED,
        "alignfed/v1/home/infer/garage",
        "alignfed/v1/home/answer/garage/lamp",
        "alignfed/v1/home/answer/kitchen/lamp/more",
        "alignfed/v1/home/update/kitchen/0123456789abcdef0123456789abcdef/manifest",
        "alignfed/v1/home/node/kitchen/state",
        "alignfed/v1/home/global/release",
        "alignfed/v1/other/answer/kitchen/lamp",
        "alignfed/v2/home/answer/kitchen/lamp",
        "alignfed",
    ],
)
def test_no_device_borrows_a_nodes_right_to_publish(device, node, topic):
    dropped = node.counts()["dropped"]
    device.send({"messages": USER, "max_tokens": 1}, response_topic=topic, correlation=b"hostile")
    device.send({"messages": USER, "max_tokens": 1}, correlation=b"mine")
    topic, answer, correlation = device.next()  # the only message that there is
    assert (topic, answer["last"], correlation) == (ANSWERS, True, b"mine")
    assert node.counts()["dropped"] == dropped + 1


def test_correlation_data_that_would_come_back_in_every_piece_is_short(device, node):
    dropped = node.counts()["dropped"]
    device.send({"messages": USER, "max_tokens": 1}, correlation=b"x" * (MOST_CORRELATION_BYTES + 1))
    device.send({"messages": USER, "max_tokens": 1}, correlation=b"x" * MOST_CORRELATION_BYTES)
    assert device.next()[2] == b"x" * MOST_CORRELATION_BYTES
    assert node.counts()["dropped"] == dropped + 1


def test_a_node_whose_model_is_not_loaded_yet_says_so(broker, device):
    server = MqttServer(broker.settings, "home", "kitchen", "0" * 64, lambda fault: None)
    server.start()
    is_listening(broker, server)
    [answer] = device.ask()
    server.stop()
    assert answer["error"]["code"] == "loading"
    assert (answer["base_model"], answer["version"]) == ("0" * 64, None)


def test_an_overloaded_node_says_so_at_once_and_recovers(broker, device, session, resolved, endless):
    with serving(broker, Inference(session), endless, resolved.digest, parallel=1, waiting=1):
        for number in range(8):
            device.send({"messages": USER, "max_tokens": 1900}, correlation=b"%d" % number)
        answers = dict(device.next()[:0:-1] for _ in range(8))
        codes = {answer["error"] and answer["error"]["code"] for answer in answers.values()}
        assert codes == {None, "overloaded"}
        assert device.ask(max_tokens=1)[0]["error"] is None


def test_an_answer_that_takes_too_long_is_given_up(broker, device, session, resolved, endless, too_short_s):
    with serving(broker, Inference(session), endless, resolved.digest, timeout_s=too_short_s):
        assert device.ask(max_tokens=1900)[-1]["error"]["code"] == "timeout"
        *pieces, last = device.ask(max_tokens=1900, stream=True)
        assert pieces
        assert (last["error"]["code"], last["index"]) == ("timeout", len(pieces))


def test_an_answer_under_way_ends_on_the_adapter_that_began_it(broker, device, session, resolved, adapters):
    inference = Inference(session)
    inference.swap(adapters[0])
    with serving(broker, inference, resolved.path, resolved.digest):
        [alone] = device.ask(max_tokens=200)
        device.send({"messages": USER, "max_tokens": 200, "stream": True})
        first = device.next()[1]
        inference.swap(adapters[1])
        parts = [first, *device.answer()]
        assert "".join(part["text"] for part in parts) == alone["text"]
        assert {part["version"] for part in parts} == {1}
        assert device.ask(max_tokens=1)[0]["version"] == 2


def test_an_answer_that_nobody_hears_makes_room_for_others(broker, session, resolved, endless):
    with serving(broker, Inference(session), endless, resolved.digest, parallel=1, waiting=2, timeout_s=600) as (
        node,
        _,
    ):
        device = Device(broker)
        device.listen_only_to(ANSWERS)
        device.send({"messages": USER, "max_tokens": 2000, "stream": True}, response_topic="nobody/listens")
        assert device.ask(max_tokens=1)[0]["error"] is None
        device.close()
        assert node.counts()["unheard"] == 1


def test_a_stopping_node_tells_who_waits(broker, device, session, resolved, endless):
    with serving(broker, Inference(session), endless, resolved.digest, parallel=1) as (_, answering):
        for _ in range(3):
            device.send({"messages": USER, "max_tokens": 1900})
        while answering.waiting < 2:
            time.sleep(0.01)
        answering.stop()
        assert {device.next()[1]["error"]["code"] for _ in range(3)} == {"stopped"}


def test_an_answer_larger_than_the_broker_takes_is_refused_in_words(broker, device, session, resolved, endless):
    small = broker.settings.model_copy(update={"max_packet_size": 1024})
    server = MqttServer(small, "home", "kitchen", resolved.digest, lambda fault: None)
    inference = Inference(session)
    answering = Answering(inference, ChatTokens(endless), parallel=1, waiting=1, timeout_s=60)
    server.serve(inference, answering, usual_tokens=16)
    server.start()
    is_listening(broker, server)
    [whole] = device.ask(max_tokens=1500)
    parts = device.ask(max_tokens=1500, stream=True)
    answering.stop()
    server.stop()
    assert whole["error"]["code"] == "too_long"
    assert "ask with stream" in whole["error"]["reason"]
    assert parts[-1]["finish"] == "length"
