"""`alignfed chat` streams a node's answers and shows which adapter version they are of."""

import socket

import pytest

from base_model.chat_tokens import ChatTokens
from base_model.reference import resolve
from edge_node.serving.answering import Answering
from edge_node.serving.export import export
from edge_node.serving.http import application
from edge_node.serving.inference import Inference
from edge_node.serving.mqtt import MqttServer
from edge_node.serving.session import Session
from edge_node.watching import HttpServer


@pytest.fixture(scope="module")
def node(tiny_model_dir, tmp_path_factory, broker):
    """A node that serves the tiny model over HTTP, and on the broker as `kitchen`: its address."""
    cache = tmp_path_factory.mktemp("cache")
    resolved = resolve(str(tiny_model_dir), cache)
    inference = Inference(Session(export(resolved, cache, "fp32")))
    answering = Answering(inference, ChatTokens(resolved.path), parallel=1, waiting=4, timeout_s=60)
    server = HttpServer(application(inference, answering, resolved, usual_tokens=8), "127.0.0.1", 0)
    server.start()
    on_broker = MqttServer(broker, "home", "kitchen", resolved.digest, pytest.fail)
    on_broker.serve(inference, answering, usual_tokens=8)
    on_broker.start()
    yield f"http://127.0.0.1:{server.port}"
    answering.stop()
    on_broker.stop()
    server.stop()


def test_one_question_gets_its_answer_and_the_version_that_made_it(alignfed, node):
    said = alignfed("chat", "--node-url", node, "--prompt", "turn on the desk lamp")
    assert said.returncode == 0
    assert said.stdout.strip()
    assert said.stderr == "  adapter version none\n"


def test_a_refusal_is_said_in_the_words_of_the_node(alignfed, node):
    said = alignfed("chat", "--node-url", node, "--prompt", "lamp " * 5000)
    assert said.returncode == 1
    assert "alignfed: the node refused: " in said.stderr
    assert "do not fit a context" in said.stderr


def chat_over_mqtt(alignfed, broker, *words):
    return alignfed("chat", "--broker", broker.address, "--federation", "home", *words)


def test_a_node_is_asked_over_mqtt_and_gives_the_same_answer(alignfed, node, broker):
    said = chat_over_mqtt(alignfed, broker, "--mqtt", "kitchen", "--prompt", "turn on the desk lamp")
    assert (said.returncode, said.stderr) == (0, "  adapter version none\n")
    assert said.stdout == alignfed("chat", "--node-url", node, "--prompt", "turn on the desk lamp").stdout


def test_a_refusal_over_mqtt_is_said_in_the_words_of_the_node(alignfed, node, broker):
    said = chat_over_mqtt(alignfed, broker, "--mqtt", "kitchen", "--prompt", "lamp " * 5000)
    assert said.returncode == 1
    assert "alignfed: the node refused: " in said.stderr and "do not fit a context" in said.stderr


def test_a_node_that_nobody_knows_on_the_broker_is_missed_at_once(alignfed, broker):
    said = chat_over_mqtt(alignfed, broker, "--mqtt", "attic", "--prompt", "x")
    assert said.returncode == 1
    assert "no node attic of the federation home answers there. Is it running" in said.stderr


def test_a_broker_that_is_away_is_named(alignfed):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    said = alignfed("chat", "--mqtt", "kitchen", "--broker", f"127.0.0.1:{port}", "--prompt", "x")
    assert said.returncode == 1
    assert f"cannot reach a broker at 127.0.0.1:{port}" in said.stderr


@pytest.mark.parametrize("words", [(), ("--node-url", "http://127.0.0.1:1", "--mqtt", "kitchen")])
def test_a_node_is_named_in_one_of_the_two_ways(alignfed, words):
    said = alignfed("chat", "--prompt", "x", *words)
    assert said.returncode == 2
    assert "name the node by --node-url http://HOST:PORT, or by --mqtt NODE" in said.stderr


@pytest.mark.parametrize("name", ["#", "a/b", ""])
def test_what_is_no_name_of_a_node_is_a_wrong_usage(alignfed, broker, name):
    said = chat_over_mqtt(alignfed, broker, "--mqtt", name, "--prompt", "x")
    assert said.returncode == 2
    assert "is not a valid node" in said.stderr


def test_a_node_that_is_not_there_is_missed_with_what_to_do(alignfed):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    said = alignfed("chat", "--node-url", f"http://127.0.0.1:{port}", "--prompt", "x")
    assert said.returncode == 1
    assert f"the node at 127.0.0.1:{port} does not answer" in said.stderr
    assert "Was it started with --http?" in said.stderr


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "https://node:1", "http://node", "http://node:x", "http://node:1/v1"]
)
def test_what_is_no_address_is_a_wrong_usage(alignfed, url):
    said = alignfed("chat", "--node-url", url, "--prompt", "x")
    assert said.returncode == 2
    assert "give http://HOST:PORT" in said.stderr
