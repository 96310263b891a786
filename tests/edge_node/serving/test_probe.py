"""A new adapter is tried on the node's own examples, and one that answers them much worse does not stay."""

import http.client
import json
import queue
import socket
from collections.abc import Sequence
from contextlib import closing

import pytest

from base_model.evaluation import losses
from base_model.examples import Example
from base_model.language_model import LanguageModel
from base_model.settings import TrainingConfig
from base_model.training import train
from edge_node.serving.chat_tokens import ChatTokens
from edge_node.serving.inference import ServedVersion
from edge_node.serving.probe import PIECE, Probe
from edge_node.serving.thread import Serving
from edge_node.settings import ProbeSettings, ServingSettings
from schemas.adapter import Adapter
from schemas.messages import GlobalPointer

PATIENCE_S = 120
EXAMPLES = (
    Example(prompt="turn on the desk lamp", completion='{"intent": "HassTurnOn", "name": "desk lamp"}'),
    Example(prompt="open the blinds " * 9, completion="yes"),
    Example(prompt="set the heating of the bath", completion="to twenty one degrees, " * 4),
)


def own(most: int) -> Sequence[Example]:
    return EXAMPLES[:most]


@pytest.fixture
def chat(resolved):
    return ChatTokens(resolved.path)


@pytest.fixture
def probe(session, chat):
    return Probe(session, chat, own, ProbeSettings(rise=0.2, slack=0.1))


@pytest.fixture
def slot_of(inference):
    def make(adapter, number=1):
        return inference.prepare(adapter, ServedVersion(1, number), adapter.digest)

    return make


@pytest.fixture(scope="module")
def model(resolved):
    return LanguageModel.load(resolved, "float32")


@pytest.fixture(scope="module")
def trained(model, make_adapter):
    """An adapter that knows these examples, which no random one does."""
    training = TrainingConfig(steps=60, batch_size=3, learning_rate=0.02)
    return train(model, make_adapter(1), EXAMPLES, training, lambda step, loss: None).adapter


@pytest.mark.parametrize("count", [1, 3])
def test_its_loss_is_that_of_training(probe, model, make_adapter, slot_of, count):
    adapter = make_adapter(1)
    assert probe.loss(slot_of(adapter), EXAMPLES[:count]) == pytest.approx(
        losses(model, adapter, EXAMPLES[:count]), rel=1e-4
    )
    zeros = Adapter.zeros(adapter.layout)
    assert probe.loss(None, EXAMPLES[:count]) == pytest.approx(losses(model, zeros, EXAMPLES[:count]), rel=1e-4)


def test_the_examples_of_these_tests_are_longer_than_a_piece(chat):
    prompts = [len(chat.prompt([{"role": "user", "content": one.prompt}])) for one in EXAMPLES]
    assert max(prompts) > PIECE and max(len(chat.answer(one.completion)) for one in EXAMPLES) > PIECE


def test_one_that_is_much_worse_is_complained_of_with_the_figures(probe, trained, make_adapter, slot_of):
    good, bad = slot_of(trained), slot_of(make_adapter(2))
    assert probe.complaint(good, None) is None
    complaint = probe.complaint(bad, good)
    assert complaint is not None
    assert "on 3 of this node's own examples" in complaint and f"is {probe.loss(good, EXAMPLES):.2f}" in complaint
    assert probe.complaint(good, bad) is None


def test_how_much_is_borne_is_a_setting(session, chat, trained, make_adapter, slot_of):
    good, bad = slot_of(trained), slot_of(make_adapter(2))
    assert Probe(session, chat, own, ProbeSettings(rise=100, slack=100)).complaint(bad, good) is None
    assert Probe(session, chat, own, ProbeSettings(examples=0)).complaint(bad, good) is None
    assert Probe(session, chat, lambda most: (), ProbeSettings()).complaint(bad, good) is None


def test_an_example_that_the_context_cannot_hold_says_nothing(probe, session, make_adapter, slot_of):
    endless = Example(prompt="on " * (session.architecture.context + 1), completion="yes")
    slot = slot_of(make_adapter(1))
    assert probe.loss(slot, (endless,)) == 0
    assert probe.loss(slot, (endless, EXAMPLES[0])) == probe.loss(slot, EXAMPLES[:1])


def served_version(port):
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        connection.request("GET", "/v1/models")
        return json.loads(connection.getresponse().read())["data"][0]


def test_a_node_goes_back_by_itself(resolved, cache, trained, make_adapter):
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = queue.SimpleQueue()
    probe = ProbeSettings(rise=0.2, slack=0.1)
    settings = ServingSettings(http=f"127.0.0.1:{port}", mqtt=False, probe=probe)
    serving = Serving(resolved, cache, settings, None, told.put, own)

    def tried(number, adapter):
        pointer = GlobalPointer(epoch=1, version=number, digest=adapter.digest, parent=None, size=1, chunks=0)
        serving.serve(pointer, adapter)
        outcome = told.get(timeout=PATIENCE_S)
        assert (outcome.pointer, outcome.adapter) == (pointer, adapter)
        return outcome.fault, served_version(port)

    try:
        fault, first = tried(1, trained)
        assert fault is None
        fault, then = tried(2, make_adapter(2))
        assert "of this node's own examples its loss is" in fault
        assert then == first
        fault, last = tried(3, trained * 1.001)
        assert fault is None and last != first
    finally:
        serving.stop()
