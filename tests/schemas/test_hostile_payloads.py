"""Payloads from strangers: nothing that is said wrongly gets through, costs much memory, or writes on a terminal."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from schemas.messages import InvalidMessage, Message, NodeMetrics, NodeState, Receipt, VersionInput

Path = tuple[str | int, ...]
RunConfined = Callable[[str, str, int], str]

SHA = "0123456789abcdef" * 4
ID = SHA[:32]
METRICS = NodeMetrics(boot_id=ID, loss=0.5)
STATE = NodeState(online=True, boot_id=ID, base_model=SHA)
RECEIPT = Receipt(update_id=ID, status="stale", reason="too old")
INPUT = VersionInput(node="a", update_id=ID, base_version=1, examples=2, weight=-0.5)


def refusal(kind: type[Message], payload: bytes) -> str:
    """Why it is refused, in a line that can go into a receipt and a log."""
    with pytest.raises(InvalidMessage) as caught:
        kind.from_bytes(payload)
    text = str(caught.value)
    assert text.startswith(kind.__name__)
    assert text.isprintable() and len(text) <= 400
    return text


def refused_or_sayable(kind: type[Message], payload: bytes) -> None:
    """Either a refusal, or a message that is read back as it was understood."""
    try:
        read = kind.from_bytes(payload)
    except InvalidMessage as error:
        assert str(error).isprintable() and len(str(error)) <= 400
    else:
        assert kind.from_bytes(read.to_bytes()) == read


def places(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every place in a JSON tree with what is there."""
    yield path, value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def replaced(tree: Any, path: Path, value: Any) -> Any:
    """The tree with one place filled otherwise."""
    if not path:
        return value
    copy: Any = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = replaced(tree[path[0]], path[1:], value)
    return copy


def with_each(message: Message, others: Callable[[Any], list[Any]]) -> Iterator[bytes]:
    """The message's JSON with every value in turn replaced by each of `others(value)`."""
    fields = json.loads(message.to_bytes())
    for path, old in places(fields):
        for other in others(old):
            yield json.dumps(replaced(fields, path, other)).encode()


# --- any bytes, any JSON ---


@given(payload=st.binary(max_size=100))
def test_no_bytes_at_all_raise_anything_but_a_refusal(message: Message, payload: bytes) -> None:
    refusal(type(message), payload)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), st.just(SHA), st.just(ID)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@given(value=JSON, data=st.data())
def test_no_value_in_any_place_raises_anything_but_a_refusal(message: Message, value: Any, data: st.DataObject) -> None:
    fields = json.loads(message.to_bytes())
    path = data.draw(st.sampled_from([path for path, _ in places(fields)]))
    refused_or_sayable(type(message), json.dumps(replaced(fields, path, value)).encode())


def test_every_truncation_is_refused(message: Message) -> None:
    payload = message.to_bytes()
    for length in range(len(payload)):
        refusal(type(message), payload[:length])


def test_every_flipped_bit_is_refused_or_read_as_what_can_be_said(message: Message) -> None:
    payload = message.to_bytes()
    for position in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[position // 8] ^= 1 << position % 8
        refused_or_sayable(type(message), bytes(flipped))


# --- types ---


def test_nothing_is_taken_for_a_number_that_is_none(message: Message) -> None:
    def others(old: Any) -> list[Any]:
        if type(old) not in (int, float):
            return []
        as_float = [float(old)] if type(old) is int else []
        return [True, str(old), [old], {"0": old}, float("inf"), float("nan"), 10**400, *as_float]

    for payload in with_each(message, others):
        refusal(type(message), payload)


def test_nothing_is_taken_for_a_yes_a_text_or_a_list_that_is_none(message: Message) -> None:
    def others(old: Any) -> list[Any]:
        match old:
            case bool():
                return [0, 1, "true", "yes", None]
            case str():
                return [0, True, [old], {old: 0}]
            case list():
                return ["", {}, 0, {"0": old[0]}, old[0]]
        return []

    for payload in with_each(message, others):
        refusal(type(message), payload)


def test_an_unknown_field_is_refused_wherever_it_is(message: Message) -> None:
    for payload in with_each(message, lambda old: [{**old, "surprise": 1}] if isinstance(old, dict) else []):
        assert "surprise" in refusal(type(message), payload)


INFINITE = ["NaN", "Infinity", "-Infinity", "nan", "1e400", "-1e400", "1" + "0" * 400, "9" * 10_000]
MALFORMED = ["0x10", "1_0", "+1", ".5", "1.", "01", "--1", "1e", "\u0663"]


@pytest.mark.parametrize("number", ["-1", "-0.1", *INFINITE, *MALFORMED])
def test_a_loss_that_is_no_finite_positive_number_is_refused(number: str) -> None:
    payload = METRICS.to_bytes()
    assert payload.count(b'"loss":0.5') == 1
    refusal(NodeMetrics, payload.replace(b'"loss":0.5', b'"loss":' + number.encode()))


@pytest.mark.parametrize(
    "name",
    ["", "+", "#", "a/b", "..", "é", " a", "a\\n", "\\u0000", "\0", "\\u001b[2J", "\\ud800", "\\x", '"', "a" * 65],
)
def test_a_node_that_could_not_be_in_a_topic_is_refused(name: str) -> None:
    payload = INPUT.to_bytes()
    assert payload.count(b'"node":"a"') == 1
    refusal(VersionInput, payload.replace(b'"node":"a"', f'"node":"{name}"'.encode()))


@pytest.mark.parametrize("text", [b"\\ud800", b"\\udc00\\ud800", b"\xff", b"\xed\xa0\x80", b"\0", b"x" * 501])
def test_a_reason_that_is_no_text_or_too_long_is_refused(text: bytes) -> None:
    refusal(Receipt, RECEIPT.to_bytes().replace(b"too old", text))


# --- what a refusal says and costs ---


@pytest.mark.parametrize("name", ["\x1b[2J\n", "\u202e", "\0", "\U0001f4a9" * 1000, "x" * 100_000])
def test_a_hostile_field_name_cannot_write_on_a_terminal_or_fill_a_receipt(name: str) -> None:
    reason = refusal(NodeState, json.dumps({**dict(STATE), name: 1}).encode())
    Receipt(update_id=ID, status="rejected", reason=reason)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"body":', b'{"inputs":[', b'[{"a":'])
@pytest.mark.parametrize("depth", [100, 1000, 100_000])
def test_deep_nesting_is_refused(message: Message, opening: bytes, depth: int) -> None:
    refusal(type(message), opening * depth)
    refusal(type(message), opening * depth + b"1" + b"}]" * depth)


HOGS = r"""
import json
from schemas.messages import *

def keys(count, width, value):
    fields = {str(i) + "\U0001f600" * width: value for i in range(count)}
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()

def listed(value, count):
    return b"[" + b",".join([value] * count) + b"]"

nested = b"[" * 190 + b"]" * 190
hogs = [
    keys(19_000, 6, 1),
    keys(6_000, 30, []),
    keys(100, 2_000, {}),
    keys(90_000, 0, 1),
    b'{"body":' + keys(19_000, 6, 1) + b"}",
    b'{"inputs":' + listed(b"{}", 340_000) + b"}",
    b'{"inputs":' + listed(b"{}", 9_900) + b"}",
    b'{"inputs":' + listed(b"1", 19_900) + b"}",
    b'{"body":{"chunks":' + listed(b"1", 500_000) + b"}}",
    b'{"body":{"chunks":' + listed(b"1", 19_900) + b"}}",
    b'{"missing":' + listed(b"-1", 19_900) + b"}",
    b'{"a":' + listed(nested, 2_700) + b"}",
    b'{"a":' + listed(nested, 100) + b"}",
    b'"' + rb"\u0041" * 170_000 + b'"',
    b"[" * MAX_MESSAGE_SIZE,
    b"9" * MAX_MESSAGE_SIZE,
]
assert all(len(hog) <= MAX_MESSAGE_SIZE for hog in hogs)
"""
REFUSE = """
for kind in Message.__subclasses__():
    for hog in hogs:
        try:
            kind.from_bytes(hog)
        except InvalidMessage:
            continue
        raise AssertionError(f"{kind.__name__} takes {hog[:80]}")
print("all refused")
"""


def test_no_payload_takes_more_than_128_megabytes_to_refuse(run_confined: RunConfined) -> None:
    assert run_confined(HOGS, REFUSE, 128 << 20) == "all refused\n"
