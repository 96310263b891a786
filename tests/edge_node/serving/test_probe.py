"""A new adapter is tried on the node's own examples, and one that is worse than none does not stay."""

import http.client
import json
import queue
import sqlite3
from collections.abc import Sequence
from contextlib import closing

import pytest

from base_model.chat_tokens import ChatTokens
from base_model.evaluation import losses
from base_model.examples import Example
from base_model.language_model import LanguageModel
from base_model.settings import TrainingConfig
from base_model.training import train
from edge_node.serving.inference import ServedVersion
from edge_node.serving.probe import PIECE, Probe
from edge_node.serving.thread import Serving
from edge_node.settings import ProbeSettings, ServingSettings
from schemas.adapter import Adapter
from schemas.messages import GlobalPointer
from tests.patience import PATIENCE_S
from tests.ports import free_port

EXAMPLES = (
    Example(prompt="turn on the desk lamp", completion='{"intent": "HassTurnOn", "name": "desk lamp"}'),
    Example(prompt="open the blinds " * 9, completion="yes"),
    Example(prompt="set the heating of the bath", completion="to twenty one degrees, " * 4),
)


def own(most: int) -> Sequence[Example]:
    return EXAMPLES[:most]


@pytest.fixture(scope="module")
def misled(model, make_adapter):
    """One that has learnt, and well, to answer something else."""
    wrong = [Example(prompt=one.prompt, completion="no " * 12) for one in EXAMPLES]
    training = TrainingConfig(steps=150, batch_size=3, learning_rate=0.02)
    return train(model, make_adapter(1), wrong, training, lambda step, loss: None).adapter


@pytest.fixture
def chat(resolved):
    return ChatTokens(resolved.path)


@pytest.fixture
def probe(session, chat):
    return Probe(session, chat, own, ProbeSettings())


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


def test_one_that_is_worse_than_none_is_complained_of_with_the_figures(probe, trained, misled, slot_of):
    assert probe.complaint(slot_of(trained)) is None
    bad = slot_of(misled)
    complaint = probe.complaint(bad)
    assert complaint is not None and "on 3 of this node's own examples" in complaint
    assert f"is {probe.loss(bad, EXAMPLES):.2f}" in complaint and f"it {probe.loss(None, EXAMPLES):.2f}" in complaint


def test_how_much_is_borne_is_a_setting(session, chat, misled, slot_of):
    bad = slot_of(misled)
    assert Probe(session, chat, own, ProbeSettings(rise=100, slack=100)).complaint(bad) is None
    assert Probe(session, chat, own, ProbeSettings(examples=0)).complaint(bad) is None
    assert Probe(session, chat, lambda most: (), ProbeSettings()).complaint(bad) is None


def test_an_example_that_the_context_cannot_hold_says_nothing(probe, session, make_adapter, slot_of):
    endless = Example(prompt="on " * (session.architecture.context + 1), completion="yes")
    slot = slot_of(make_adapter(1))
    assert probe.loss(slot, (endless,)) == 0
    assert probe.loss(slot, (endless, EXAMPLES[0])) == probe.loss(slot, EXAMPLES[:1])


def test_how_well_one_does_is_its_loss_on_as_many_as_fit(probe, session, chat, trained, slot_of):
    slot = slot_of(trained)
    probe.complaint(slot)  # what was looked at is a part of it
    assert probe.quality(slot, 2, lambda: True) == (2, pytest.approx(probe.loss(slot, EXAMPLES[:2])))
    endless = Example(prompt="on " * (session.architecture.context + 1), completion="yes")
    with_one_too_long = Probe(session, chat, lambda most: (endless, *EXAMPLES)[:most], ProbeSettings())
    assert with_one_too_long.quality(slot, 1, lambda: True) is None
    assert with_one_too_long.quality(slot, 2, lambda: True) == (1, pytest.approx(probe.loss(slot, EXAMPLES[:1])))


def test_what_is_not_wanted_any_more_is_not_measured_to_its_end(probe, trained, slot_of):
    answers = iter((True, False))
    assert probe.quality(slot_of(trained), 3, lambda: next(answers)) is None
    assert list(answers) == []


def test_a_look_at_another_adapter_does_not_find_what_the_one_before_did(probe, trained, misled, slot_of):
    for adapter in (trained, misled, trained):
        slot = slot_of(adapter)
        probe.complaint(slot)
        fresh = Probe(probe.session, probe.chat, own, ProbeSettings())
        assert probe.quality(slot, 3, lambda: True) == fresh.quality(slot, 3, lambda: True)


def test_what_is_served_is_measured_and_what_was_given_up_is_not(resolved, cache, trained, misled):
    told = queue.SimpleQueue()
    settings = ServingSettings(http="127.0.0.1:0", mqtt=False)
    serving = Serving(resolved, ChatTokens(resolved.path), cache, settings, None, told.put, own, measured=3)
    serving.start()
    try:
        serving.serve(pointer_to(misled, 1), misled)
        assert told.get(timeout=PATIENCE_S).fault is not None
        pointer = pointer_to(trained, 2)
        serving.serve(pointer, trained)
        assert told.get(timeout=PATIENCE_S).fault is None
        measured = told.get(timeout=PATIENCE_S)
        assert (measured.pointer, measured.examples) == (pointer, 3)
        assert 0 < measured.loss < 1
    finally:
        serving.stop()


def pointer_to(adapter, version):
    return GlobalPointer(epoch=1, version=version, digest=adapter.digest, parent=None, size=1, chunks=0)


def served_version(port):
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        connection.request("GET", "/v1/models")
        return json.loads(connection.getresponse().read())["data"][0]


def test_a_node_goes_back_by_itself_and_an_operator_may_go_back_to_nothing(resolved, cache, trained, misled):
    port = free_port()
    told = queue.SimpleQueue()
    settings = ServingSettings(http=f"127.0.0.1:{port}", mqtt=False)
    serving = Serving(resolved, ChatTokens(resolved.path), cache, settings, None, told.put, own)
    serving.start()

    def tried(number, adapter):
        pointer = pointer_to(adapter, number)
        serving.serve(pointer, adapter)
        outcome = told.get(timeout=PATIENCE_S)
        assert (outcome.pointer, outcome.adapter) == (pointer, adapter)
        return outcome.fault, served_version(port)

    try:
        fault, first = tried(1, trained)
        assert fault is None
        fault, then = tried(2, misled)
        assert "of this node's own examples its loss is" in fault
        assert then == first
        fault, last = tried(3, Adapter.zeros(trained.layout))
        assert fault is None and last != first
    finally:
        serving.stop()


def test_examples_that_cannot_be_read_cost_no_adapter(resolved, cache, trained, caplog):
    def gone(most):
        raise sqlite3.OperationalError("disk I/O error")

    told = queue.SimpleQueue()
    serving = Serving(resolved, ChatTokens(resolved.path), cache, ServingSettings(mqtt=False), None, told.put, gone)
    serving.start()
    try:
        serving.serve(pointer_to(trained, 1), trained)
        assert told.get(timeout=PATIENCE_S).fault is None
        assert "version 1 could not be tried on this node's examples: disk I/O error" in caplog.text
    finally:
        serving.stop()
