"""The view of a fleet is a fold over messages: each test is a few of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.events import Message, MessageProperties
from examples.smart_home.fleet_view import OBSERVED, FleetView, first_view, observe
from examples.smart_home.news import news
from schemas import topics
from schemas.adapter import LoraConfig
from schemas.messages import (
    Body,
    CoordinatorState,
    GlobalManifest,
    GlobalPointer,
    NodeMetrics,
    NodeState,
    Receipt,
    ReleaseReport,
    UpdateManifest,
    VersionInput,
)

BOOT, SHA = "a" * 32, "b" * 64
FIRST = first_view("home", 3, {"home-1": 1.0, "home-2": 4.0})


def pointer(version: int, epoch: int = 1) -> GlobalPointer:
    return GlobalPointer(epoch=epoch, version=version, digest=SHA, parent=None, size=10, chunks=0)


def serve(version: int, judged: int, variant: str = "average") -> GlobalPointer:
    return pointer(version).model_copy(update={"variant": variant, "judged": judged})


def birth(*, online: bool = True) -> NodeState:
    return NodeState(online=online, boot_id=BOOT, base_model=SHA, version=None)


def training(base_version: int | None, step: int = 0, loss: float | None = None) -> NodeMetrics:
    return NodeMetrics(boot_id=BOOT, base_version=base_version, step=step, steps=8, loss=loss)


def coordinator(epoch: int, *, online: bool = True) -> CoordinatorState:
    return CoordinatorState(
        online=online,
        boot_id=BOOT,
        epoch=epoch,
        base_model=SHA,
        base_model_name="tiny",
        lora=LoraConfig(),
        layout=SHA,
        strategy="fedbuff",
        one_update_per_version=False,
        codecs=("int8",),
    )


def update(base_version: int) -> UpdateManifest:
    return UpdateManifest(
        node="home-1",
        boot_id=BOOT,
        sequence=1,
        base_version=base_version,
        base_digest=SHA,
        base_model=SHA,
        layout=SHA,
        examples=8,
        steps=8,
        participation=0,
        loss=1.25,
        seconds=9.5,
        body=Body(codec="int8", sha256=SHA, size=10),
    )


@pytest.fixture
def fold(send):
    """Folds (address, payload) pairs over the first view; returns the view and all lines of news."""

    def run(*messages) -> tuple[FleetView, list[str]]:
        view, lines = FIRST, []
        for address, payload in messages:
            assert type(address) in OBSERVED, "no bystander would get this"
            seen = observe(view, send(address, payload))
            lines += news(view, seen)
            view = seen
        return view, lines

    return run


def test_a_node_that_trains_shows_its_base_version_progress_and_loss(fold):
    view, _ = fold(
        (topics.NodeStateOf("home-1"), birth()),
        (topics.NodeMetricsOf("home-1"), training(2, step=5, loss=1.5)),
    )
    node = view.nodes["home-1"]
    assert (node.online, node.base_version, node.step, node.steps, node.loss) == (True, 2, 5, 8, 1.5)


def test_an_idle_node_keeps_showing_its_last_loss(fold):
    view, _ = fold(
        (topics.NodeMetricsOf("home-1"), training(2, step=8, loss=1.5)),
        (topics.NodeMetricsOf("home-1"), training(None)),
    )
    assert view.nodes["home-1"].loss == 1.5
    assert view.nodes["home-1"].base_version is None


def test_staleness_is_how_far_the_head_is_ahead_of_the_training(fold):
    view, _ = fold((topics.GlobalHead(), pointer(3)), (topics.NodeMetricsOf("home-2"), training(1)))
    assert view.staleness("home-2") == 2
    assert view.staleness("home-1") is None


def test_a_late_pointer_of_an_older_version_does_not_turn_the_head_back(fold):
    view, _ = fold((topics.GlobalHead(), pointer(2)), (topics.GlobalHead(), pointer(1)))
    assert view.head == 2


def test_a_forged_pointer_beyond_the_last_version_is_not_believed(fold):
    view, _ = fold((topics.GlobalHead(), pointer(4)))
    assert (view.head, view.malformed) == (None, 1)


@pytest.mark.parametrize("forged", [serve(4, judged=4), serve(1, judged=4), serve(4, judged=1)])
def test_a_forged_release_beyond_the_last_version_is_not_believed(fold, forged):
    view, _ = fold((topics.GlobalRelease(), forged))
    assert (view.served, view.judged, view.malformed) == ({}, None, 1)


@pytest.mark.parametrize("served", [3, 1])
def test_the_federation_is_final_when_it_is_decided_whether_nodes_serve_the_last_version(fold, served):
    head, before, decided = (
        (topics.GlobalHead(), pointer(3)),
        (topics.GlobalRelease(), serve(1, judged=2)),
        (topics.GlobalRelease(), serve(served, judged=3)),
    )
    assert not fold(head)[0].is_final
    assert not fold(head, before)[0].is_final
    assert not fold((topics.GlobalHead(), pointer(2)), before)[0].is_final
    assert fold(head, before, decided)[0].is_final


def test_an_update_that_is_sent_and_answered_twice_counts_once(fold):
    sent = (topics.UpdateManifestOf("home-1", BOOT), update(0))
    accepted = (topics.ReceiptFor("home-1"), Receipt(update_id=BOOT, status="accepted"))
    aggregated = (topics.ReceiptFor("home-1"), Receipt(update_id=BOOT, status="aggregated", version=1))
    view, lines = fold(sent, sent, accepted, accepted, aggregated)
    assert len(view.nodes["home-1"].sent) == len(view.nodes["home-1"].accepted) == 1
    assert lines == ["home-1: update 1 accepted, trained from version 0, loss 1.25"]


def test_a_refusal_is_told_with_its_reason_also_when_a_stranger_gets_it(fold):
    receipt = Receipt(update_id=BOOT, status="rejected", reason="the delta holds NaN")
    view, lines = fold((topics.ReceiptFor("intruder"), receipt))
    assert view.refused == 1
    assert lines == ["intruder: update rejected: the delta holds NaN"]


def test_a_version_is_news_once_with_its_inputs(fold):
    inputs = (VersionInput(node="home-1", update_id=BOOT, base_version=0, examples=8, weight=0.5),)
    made = GlobalManifest(
        epoch=1, version=1, parent=SHA, base_model=SHA, lora=LoraConfig(), layout=SHA, strategy="fedbuff",
        inputs=inputs, release=ReleaseReport(version=0, variant="head", judged=0), created_at_ns=0,
        body=Body(codec="safetensors", sha256=SHA, size=10),
    )  # fmt: skip
    published = ((topics.GlobalManifestOf(1), made), (topics.GlobalHead(), pointer(1)))
    _, lines = fold(*published, *published)
    assert lines == ["version 1 of 3 published bbbbbbbbbbbb from home-1@0"]


def test_what_nodes_serve_is_news_once_and_a_version_that_was_turned_down_is_none(fold):
    view, lines = fold(
        (topics.GlobalRelease(), serve(0, judged=0, variant="head")),
        (topics.GlobalRelease(), serve(1, judged=1)),
        (topics.GlobalRelease(), serve(1, judged=2)),
        (topics.GlobalRelease(), serve(1, judged=2)),
    )
    assert lines == ["nodes serve the head of version 0", "nodes serve the average of version 1"]
    assert (view.served, view.judged) == ({0: "head", 1: "average"}, 2)


def test_a_cleared_manifest_of_an_old_version_changes_nothing(fold):
    assert fold((topics.GlobalManifestOf(0), b""))[0] == FIRST


def test_a_restarted_coordinator_is_news(fold):
    _, lines = fold((topics.CoordinatorStateOf(), coordinator(1)), (topics.CoordinatorStateOf(), coordinator(2)))
    assert lines == ["coordinator online, epoch 1", "coordinator online, epoch 2"]


def test_joining_and_leaving_are_news_with_speed_and_newest_version(fold):
    _, lines = fold(
        (topics.GlobalHead(), pointer(2)),
        (topics.NodeStateOf("home-2"), birth()),
        (topics.NodeStateOf("home-2"), birth(online=False)),
    )
    assert lines[1:] == ["home-2 joined (25 % of full speed); the newest version is 2", "home-2 left"]


def test_training_progress_alone_is_no_news(fold):
    assert fold((topics.NodeMetricsOf("home-1"), training(0, step=1)))[1] == []


def test_nodes_that_nobody_started_are_counted_and_not_shown(fold):
    view, _ = fold((topics.NodeStateOf("stranger"), birth()), (topics.NodeMetricsOf("stranger"), training(0)))
    assert view.strangers == 2
    assert view.nodes == FIRST.nodes


@given(st.sampled_from(OBSERVED), st.binary(min_size=1, max_size=200))
def test_no_payload_on_any_topic_can_break_the_view(kind, payload):
    values = {"node": "home-1", "update_id": BOOT, "version": "1"}
    topic = "alignfed/v1/home/" + kind.spec.pattern.format(**values)
    view = observe(FIRST, Message(topic, payload, 1, False, False, MessageProperties(), 0, 1, 1))
    assert view == FIRST or view.malformed == 1
