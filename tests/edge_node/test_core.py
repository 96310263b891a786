"""Terms, announcements, and what holds whatever is said."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_node.core import next_deadline, node_metrics, step
from edge_node.effects import AbortTraining, DescribeLayout, PublishMetrics, PublishState, RememberTerms, Stop, Warn
from edge_node.events import Heard, LayoutDescribed, StepTrained, Ticked
from schemas.adapter import Layout, LoraConfig
from schemas.topics import (
    Address,
    CoordinatorStateOf,
    GlobalChunk,
    GlobalHead,
    GlobalManifestOf,
    GlobalRelease,
    NodeStateOf,
    ReceiptFor,
    route,
)


def only(kind: type, effects: Any) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


def test_a_node_with_another_base_model_stops_and_says_what_to_do(node: Any, coordinator: Any) -> None:
    node.connects()
    effects = node.hears(CoordinatorStateOf(), coordinator.terms(base_model="0" * 64, base_model_name="hub/other"))
    (stop,) = only(Stop, effects)
    assert "0" * 64 in stop.reason
    assert node.state.identity.base_model in stop.reason
    assert "Name that model under [base_model]" in stop.reason
    assert "hub/other" in stop.reason


def test_a_node_with_another_layout_stops_and_says_what_to_do(node: Any, coordinator: Any) -> None:
    effects = node.joins(coordinator.terms(layout="0" * 64))
    (stop,) = only(Stop, effects)
    assert "0" * 64 in stop.reason
    assert coordinator.adapter(0).layout.digest in stop.reason
    assert "same release" in stop.reason


def test_new_terms_are_kept_for_a_start_without_the_broker(node: Any, coordinator: Any) -> None:
    terms = coordinator.terms()
    effects = node.hears(CoordinatorStateOf(), terms)
    assert RememberTerms(terms) in effects
    assert DescribeLayout(terms.lora) in effects
    assert node.hears(CoordinatorStateOf(), terms) == ()


def test_terms_on_disk_of_another_base_model_are_as_good_as_none(start_node: Any, coordinator: Any) -> None:
    node = start_node(terms=coordinator.terms(base_model="0" * 64), held=coordinator.held(3))
    assert (node.state.terms, node.state.layout, node.state.held) == (None, None, None)


def test_a_federation_that_changes_its_lora_settings_is_joined_afresh(member: Any, coordinator: Any) -> None:
    member.receives(coordinator.version(3))
    lora = LoraConfig(rank=1, target_modules=("x",))
    layout = Layout(lora=lora, tensors=(("x.lora_A.weight", (1, 2)), ("x.lora_B.weight", (2, 1))))
    effects = member.hears(CoordinatorStateOf(), coordinator.terms(lora=lora, layout=layout.digest))
    assert AbortTraining() in effects
    assert DescribeLayout(lora) in effects
    assert (member.state.held, member.state.training) == (None, None)
    member.tell(LayoutDescribed(member.now, layout))
    assert member.state.layout == layout


def test_an_answer_about_terms_that_have_changed_meanwhile_is_not_used(node: Any, coordinator: Any) -> None:
    lora = LoraConfig(rank=1, target_modules=("x",))
    node.hears(CoordinatorStateOf(), coordinator.terms(lora=lora, layout="0" * 64))
    assert node.tell(LayoutDescribed(node.now, coordinator.adapter(0).layout)) == ()
    assert node.state.layout is None


def test_the_log_tells_when_the_coordinator_goes(member: Any, coordinator: Any) -> None:
    (warning,) = only(Warn, member.hears(CoordinatorStateOf(), coordinator.terms(online=False)))
    assert "the coordinator is offline" in warning.text


def test_a_node_says_in_its_birth_what_it_can_do(start_node: Any) -> None:
    node = start_node(rank=4, codec="fp16", serving={"http": "127.0.0.1:8000"})
    (birth,) = only(PublishState, node.connects())
    assert (birth.state.rank, birth.state.serves) == (4, True)
    assert birth.state.codecs == ("fp16", "kltp", "int8", "fp32")


def test_a_node_says_what_it_is_on_every_connect(node: Any) -> None:
    for _ in range(2):
        (birth,) = only(PublishState, node.connects())
        assert (birth.state.online, birth.state.version) == (True, None)


def test_a_node_says_which_version_it_holds(member: Any, coordinator: Any) -> None:
    (news,) = only(PublishState, member.receives(coordinator.version(3)))
    assert news.state.version == 3


def test_progress_is_published_at_most_twice_a_second(member: Any, coordinator: Any) -> None:
    member.receives(coordinator.version(3))
    published = 0
    for number in range(1, 101):
        member.now += 0.1
        published += len(only(PublishMetrics, member.tell(StepTrained(member.now, 0, number, loss=1.0))))
    assert 15 <= published <= 20


def test_the_metrics_tell_what_happened(member: Any, coordinator: Any) -> None:
    member.receives(coordinator.version(3))
    member.tell(StepTrained(1.0, 0, step=5, loss=0.5))
    training = node_metrics(member.state, member.now)
    assert (training.base_version, training.step, training.steps, training.loss) == (3, 5, 8, 0.5)
    accepted, rejected = member.learns(2.0), member.learns(3.0)
    member.is_told(accepted, "accepted")
    member.is_told(rejected, "rejected", reason="norm too large")
    member.learns(4.0)
    counts = node_metrics(member.state, member.now)
    assert (counts.updates_sent, counts.updates_accepted, counts.updates_rejected, counts.outbox) == (3, 1, 1, 1)


def test_a_loss_that_is_no_number_is_left_out(member: Any, coordinator: Any) -> None:
    member.receives(coordinator.version(3))
    member.tell(StepTrained(1.0, 0, step=1, loss=float("nan")))
    assert node_metrics(member.state, member.now).loss is None


def test_a_flood_of_garbage_is_counted_but_does_not_flood_the_log(member: Any) -> None:
    warnings = [only(Warn, member.hears(GlobalHead(), b"garbage")) for _ in range(1000)]
    assert member.state.ignored == 1000
    assert sum(map(len, warnings)) == 10


TOPICS: tuple[Address, ...] = (
    CoordinatorStateOf(),
    GlobalHead(),
    GlobalRelease(),
    GlobalManifestOf(4),
    GlobalChunk(4, 0),
    GlobalChunk(4, 9999),
    ReceiptFor("home-1"),
    NodeStateOf("home-2"),
)


@pytest.fixture(scope="module")
def busy(start_node: Any, coordinator: Any) -> Any:
    """The state of a node that trains on version 3, has sent an update, and fetches version 4."""
    member = start_node()
    member.joins(coordinator.terms())
    member.receives(coordinator.version(3))
    member.learns(2.0)
    member.hears(GlobalHead(), coordinator.version(4, chunk_size=100).pointer)
    return member.state


def size_of(state: Any) -> int:
    """Bytes and texts in the parts of the state that messages can fill."""
    parts = (state.terms, state.head, state.release, state.fetch, state.outbox)
    return len(repr(parts))


messages = st.lists(st.tuples(st.sampled_from(TOPICS), st.binary(max_size=300)), max_size=20)


@settings(deadline=None)  # a busy machine is no error
@given(messages)
def test_any_bytes_on_any_topic_are_an_answer_and_never_an_error(busy: Any, said: list[tuple[Address, bytes]]) -> None:
    state = busy
    for address, payload in said:
        state, effects = step(state, Heard(5.0, route("home", address).topic, payload))
        assert not only(Stop, effects)
    assert size_of(state) <= size_of(busy) + 2 * 1000  # the version on its way, as announced


@settings(deadline=None)
@given(st.data())
def test_messages_with_some_bytes_changed_are_an_answer_and_never_an_error(
    busy: Any, coordinator: Any, data: Any
) -> None:
    version = coordinator.version(4, chunk_size=100)
    true: list[tuple[Address, bytes]] = [
        (CoordinatorStateOf(), coordinator.terms(epoch=7).to_bytes()),
        (GlobalHead(), version.pointer.to_bytes()),
        (GlobalManifestOf(4), version.manifest),
        *((GlobalChunk(4, index), chunk) for index, chunk in enumerate(version.chunks)),
    ]
    state = busy
    for address, payload in data.draw(st.permutations(true)):
        at = data.draw(st.integers(0, len(payload) - 1))
        changed = payload[:at] + data.draw(st.binary(max_size=5)) + payload[at + data.draw(st.integers(0, 3)) :]
        state, _ = step(state, Heard(5.0, route("home", address).topic, changed))
    assert size_of(state) <= size_of(busy) + 10_000


@settings(deadline=None)
@given(st.text(max_size=200), st.binary(max_size=20))
def test_any_topic_at_all_is_an_answer_and_never_an_error(busy: Any, topic: str, payload: bytes) -> None:
    step(busy, Heard(5.0, topic, payload))


@settings(deadline=None)
@given(st.lists(st.floats(0, 2000), max_size=30))
def test_when_time_is_up_something_is_done_so_that_the_node_can_sleep_again(busy: Any, waits: list[float]) -> None:
    state, now = busy, 0.0
    for wait in waits:
        deadline = next_deadline(state)
        now = max(now, deadline if deadline is not None else now + wait)
        state, _ = step(state, Ticked(now))
        following = next_deadline(state)
        assert following is None or following > now
