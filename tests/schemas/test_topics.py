"""Topics: what is built is parsed back, and no other string means anything."""

import dataclasses

import hypothesis.strategies as st
import pytest
from hypothesis import given

from schemas.messages import MAX_CHUNKS
from schemas.topics import (
    ADDRESSES,
    NAME_PATTERN,
    Address,
    CoordinatorStateOf,
    GlobalAverageChunk,
    GlobalChunk,
    GlobalHead,
    GlobalKeys,
    GlobalManifestOf,
    GlobalRelease,
    InferenceAnswerFor,
    InferenceRequestTo,
    NodeFiguresOf,
    NodeMetricsOf,
    NodeStateOf,
    ReceiptFor,
    UpdateChunk,
    UpdateManifestOf,
    may_answer_on,
    parse,
    route,
    topic_filter,
)

NAMES = st.from_regex(NAME_PATTERN, fullmatch=True)
FIELDS: dict[str, st.SearchStrategy[str | int]] = {
    "node": NAMES,
    "device": NAMES,
    "update_id": st.from_regex(r"[0-9a-f]{32}", fullmatch=True),
    "version": st.integers(0, 10**9 - 1),
    "index": st.integers(0, MAX_CHUNKS - 1),
}
ID = "0123456789abcdef" * 2


def addresses_of(kind: type[Address]) -> st.SearchStrategy[Address]:
    return st.builds(kind, **{field.name: FIELDS[field.name] for field in dataclasses.fields(kind)})


ANY_ADDRESS = st.one_of(*map(addresses_of, ADDRESSES))


def matches(topic_filter: str, topic: str) -> bool:
    """MQTT's own rule for '+'."""
    levels, wanted = topic.split("/"), topic_filter.split("/")
    return len(levels) == len(wanted) and all(w in ("+", got) for w, got in zip(wanted, levels, strict=True))


# --- there and back ---


@given(NAMES, ANY_ADDRESS)
def test_every_address_is_parsed_back_from_its_topic(federation: str, address: Address) -> None:
    assert parse(federation, route(federation, address).topic) == address


@given(NAMES, ANY_ADDRESS)
def test_a_topic_is_matched_by_the_filter_of_its_kind_and_of_no_other(federation: str, address: Address) -> None:
    topic = route(federation, address).topic
    assert [kind for kind in ADDRESSES if matches(topic_filter(federation, kind), topic)] == [type(address)]


@given(NAMES, ANY_ADDRESS, st.data())
def test_a_field_that_is_fixed_in_a_filter_narrows_it_to_that_field(
    federation: str, address: Address, data: st.DataObject
) -> None:
    fields = {field.name: getattr(address, field.name) for field in dataclasses.fields(address)}
    fixed = {name: value for name, value in fields.items() if data.draw(st.booleans())}
    narrowed = topic_filter(federation, type(address), **fixed)
    assert matches(narrowed, route(federation, address).topic)
    assert narrowed.count("+") == len(fields) - len(fixed)


@given(NAMES, NAMES, ANY_ADDRESS)
def test_another_federations_topics_mean_nothing_here(one: str, other: str, address: Address) -> None:
    if one != other:
        assert parse(one, route(other, address).topic) is None


def test_a_dot_in_a_federations_name_is_a_dot() -> None:
    assert parse("a.b", "alignfed/v1/a.b/global/head") == GlobalHead()
    assert parse("a.b", "alignfed/v1/axb/global/head") is None


# --- strings from strangers ---


def builds_back(federation: str, topic: str) -> None:
    address = parse(federation, topic)
    assert address is None or route(federation, address).topic == topic


@given(st.text(max_size=100))
def test_any_text_means_nothing_or_builds_back_to_itself(topic: str) -> None:
    builds_back("home", topic)


LEVELS = st.one_of(
    st.sampled_from(["alignfed", "v1", "home", "global", "head", "release", "v", "manifest", "chunk", "average"]),
    st.sampled_from(
        ["update", "receipt", "node", "state", "metrics", "coordinator", "a", ID, ID.upper(), "0", "00", "1", "-1"]
    ),
    st.sampled_from(["", "+", "#", "$SYS", "..", "1.0", "1e3", "٣", "²", "1_0", " 1", "1\n", "\0", "\ud800"]),
)


@given(st.lists(LEVELS, max_size=9).map("/".join))
def test_any_row_of_plausible_levels_means_nothing_or_builds_back_to_itself(topic: str) -> None:
    builds_back("home", topic)


@given(ANY_ADDRESS, st.integers(0, 200), st.integers(0, 200), st.text(max_size=3))
def test_a_topic_with_a_piece_replaced_means_nothing_or_builds_back_to_itself(
    address: Address, start: int, length: int, piece: str
) -> None:
    topic = route("home", address).topic
    builds_back("home", topic[:start] + piece + topic[start + length :])


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "/",
        "#",
        "+/+/+/global/head",
        "$SYS/broker/version",
        "$share/group/alignfed/v1/home/global/head",
        "/alignfed/v1/home/global/head",
        "alignfed/v1/home/global/head/",
        "alignfed/v1/home/global/head\n",
        "alignfed/v1/home/global/head\0",
        "alignfed/v1/home//global/head",
        "alignfed/v2/home/global/head",
        "Alignfed/v1/home/global/head",
        "alignfed/v1/home/global/v/01/manifest",
        "alignfed/v1/home/global/v/-1/manifest",
        "alignfed/v1/home/global/v/1000000000/manifest",
        "alignfed/v1/home/global/v/٣/manifest",
        "alignfed/v1/home/global/v/1/chunk/100000",
        "alignfed/v1/home/global/v/1/average",
        "alignfed/v1/home/global/v/1/average/chunk/100000",
        "alignfed/v1/home/global/v/01/average/chunk/0",
        "alignfed/v1/home/global/v/1/head/chunk/0",
        f"alignfed/v1/home/update/a/{ID.upper()}/manifest",
        f"alignfed/v1/home/update/a/{ID}0/manifest",
        f"alignfed/v1/home/update/a/{ID[1:]}/manifest",
        f"alignfed/v1/home/update/+/{ID}/manifest",
        f"alignfed/v1/home/update/#/{ID}/manifest",
        f"alignfed/v1/home/update/../{ID}/manifest",
        f"alignfed/v1/home/update/a\n/{ID}/manifest",
        f"alignfed/v1/home/update/é/{ID}/manifest",
        f"alignfed/v1/home/update/{'a' * 65}/{ID}/manifest",
        "alignfed/v1/home/node/" + "a" * 65_000 + "/state",
        "alignfed/v1/home/" * 4000,
    ],
)
def test_a_topic_that_is_not_quite_ours_means_nothing(topic: str) -> None:
    assert parse("home", topic) is None


# --- bad calls ---


@pytest.mark.parametrize(
    "address",
    [
        NodeStateOf("+"),
        NodeStateOf("#"),
        NodeStateOf("a/b"),
        NodeStateOf(""),
        NodeStateOf("a\n"),
        NodeStateOf(".."),
        NodeMetricsOf("é"),
        InferenceRequestTo("+"),
        InferenceAnswerFor("kitchen", "a/b"),
        ReceiptFor("a" * 65),
        UpdateManifestOf("a", "xyz"),
        UpdateChunk("a", ID, -1),
        UpdateChunk("a", ID, 100_000),
        GlobalManifestOf(10**9),
        GlobalChunk(1, True),
        GlobalAverageChunk(1, -1),
    ],
)
def test_an_address_that_could_not_be_parsed_back_is_not_built(address: Address) -> None:
    with pytest.raises(ValueError, match="is not a valid"):
        route("home", address)


@pytest.mark.parametrize("federation", ["", "+", "#", "a/b", "a\n", "$SYS"])
def test_a_federation_that_is_no_name_is_neither_routed_to_nor_subscribed_to(federation: str) -> None:
    with pytest.raises(ValueError, match="not a valid federation"):
        route(federation, GlobalHead())
    with pytest.raises(ValueError, match="not a valid federation"):
        topic_filter(federation, GlobalHead)


def test_a_filter_fixed_to_nonsense_is_a_bad_call_not_a_wide_subscription() -> None:
    with pytest.raises(ValueError, match="not a valid node"):
        topic_filter("home", ReceiptFor, node="#")
    with pytest.raises(ValueError, match="has no field nod; it has node"):
        topic_filter("home", ReceiptFor, nod="a")


# --- where a node answers strangers ---


@given(NAMES, ANY_ADDRESS)
def test_of_all_our_topics_a_node_answers_only_on_its_own_answer_topics(federation: str, address: Address) -> None:
    own = isinstance(address, InferenceAnswerFor) and address.node == "kitchen"
    assert may_answer_on(federation, "kitchen", route(federation, address).topic) is own


@given(NAMES, NAMES)
def test_a_node_answers_each_device_below_its_own_name(node: str, device: str) -> None:
    topic = route("home", InferenceAnswerFor(node, device)).topic
    assert may_answer_on("home", node, topic)
    assert not may_answer_on("away", node, topic) and not may_answer_on("home", node + "x", topic)


@given(st.lists(LEVELS, max_size=9).map("/".join))
def test_below_our_root_nothing_else_is_answered_on_whatever_it_looks_like(rest: str) -> None:
    topic = f"alignfed/{rest}"
    assert not may_answer_on("home", "kitchen", topic) or parse("home", topic) == InferenceAnswerFor(
        "kitchen", topic.rpartition("/")[2]
    )


@pytest.mark.parametrize(
    ("topic", "allowed"),
    [
        ("shop/lamp/said", True),
        ("lampe/küche", True),
        ("/alignfed/v1/home/global/head", True),  # another topic than ours
        ("alignfed", False),
        ("alignfed/", False),
        ("", False),
        ("$SYS/broker/version", False),
        ("$share/group/shop/lamp", False),
        ("shop/+/said", False),
        ("shop/#", False),
        ("shop/\nlamp", False),
        ("shop/\0", False),
        ("shop/\ud800", False),
        ("a" * 256, True),
        ("a" * 257, False),
    ],
)
def test_outside_our_root_a_topic_is_the_brokers_to_allow_if_it_is_a_plain_one(topic: str, allowed: bool) -> None:
    assert may_answer_on("home", "kitchen", topic) is allowed


# --- the flags ---


def test_what_a_late_joiner_needs_is_retained_and_nothing_else() -> None:
    retained = {kind for kind in ADDRESSES if kind.spec.retain}
    assert retained == {
        GlobalKeys,
        GlobalHead,
        GlobalRelease,
        GlobalManifestOf,
        GlobalChunk,
        GlobalAverageChunk,
        NodeStateOf,
        NodeFiguresOf,
        CoordinatorStateOf,
    }


def test_only_counters_may_be_lost() -> None:
    assert {kind for kind in ADDRESSES if kind.spec.qos == 0} == {NodeMetricsOf}


def test_what_waits_for_somebody_away_does_not_wait_for_ever() -> None:
    assert all(kind.spec.retain != (kind.spec.expiry_s is not None) for kind in ADDRESSES)
