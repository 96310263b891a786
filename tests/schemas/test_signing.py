"""A signature holds for one key, one topic and one message, and for nothing else."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import join_body, split_body, update_id
from schemas.signing import HEAD_SIZE, InvalidSignature, SigningKey, key_id, sign, take_apart, unsigned, verified
from schemas.topics import GlobalHead, GlobalRelease, ReceiptFor, route

KEY, OTHER = (SigningKey.from_bytes(bytes([number]) * 32) for number in (1, 2))
TOPIC = route("home", GlobalHead()).topic
SIGNED = sign(KEY, TOPIC, b'{"version":3}\nbody\n')


def test_what_was_signed_comes_out_as_it_went_in() -> None:
    assert verified(KEY.public, TOPIC, SIGNED) == b'{"version":3}\nbody\n'
    assert len(SIGNED) == HEAD_SIZE + len(b'{"version":3}\nbody\n')


def test_the_same_message_is_signed_with_the_same_bytes() -> None:
    assert sign(KEY, TOPIC, b"x") == sign(SigningKey.from_bytes(bytes([1]) * 32), TOPIC, b"x")


def test_a_key_is_named_by_the_first_digits_of_its_hash() -> None:
    assert key_id(KEY.public) == hashlib.sha256(bytes.fromhex(KEY.public)).hexdigest()[:16]


def test_an_updates_id_is_that_of_the_manifest_without_the_signature() -> None:
    manifest = b'{"node":"kitchen"}'
    signed = sign(KEY, TOPIC, join_body(manifest, b"body"))
    assert update_id(split_body(unsigned(signed))[0]) == update_id(manifest)


def test_a_signature_of_another_key_is_refused() -> None:
    with pytest.raises(InvalidSignature, match="not one of key"):
        verified(OTHER.public, TOPIC, SIGNED)


@pytest.mark.parametrize(
    "topic",
    [
        route("home", GlobalRelease()).topic,
        route("other", GlobalHead()).topic,
        route("home", ReceiptFor("kitchen")).topic,
        TOPIC + "/",
        "",
    ],
)
def test_a_signature_holds_on_its_own_topic_only(topic: str) -> None:
    with pytest.raises(InvalidSignature):
        verified(KEY.public, topic, SIGNED)


def test_bytes_do_not_move_between_topic_and_message() -> None:
    with pytest.raises(InvalidSignature):
        verified(KEY.public, "a/bc", sign(KEY, "a/b", b"cd")[:HEAD_SIZE] + b"d")


def test_a_key_that_signs_under_anothers_name_is_refused() -> None:
    lie = SIGNED.replace(key_id(KEY.public).encode(), key_id(OTHER.public).encode())
    with pytest.raises(InvalidSignature, match="has signed it"):
        verified(KEY.public, TOPIC, lie)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b'{"version":3}',
        SIGNED[:-20][: HEAD_SIZE - 1],
        b" " + SIGNED,
        SIGNED.replace(b'"key":', b'"key": ', 1),
        SIGNED.replace(b'"signature":"', b'"signature":"00', 1),
        SIGNED[:30].upper() + SIGNED[30:],
    ],
)
def test_a_line_that_is_spelled_otherwise_is_no_signature(payload: bytes) -> None:
    with pytest.raises(InvalidSignature):
        verified(KEY.public, TOPIC, payload)
    assert unsigned(payload) == payload


@given(st.integers(0, len(SIGNED) * 8 - 1))
def test_no_bit_of_a_signed_payload_can_be_turned(bit: int) -> None:
    turned = bytearray(SIGNED)
    turned[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidSignature):
        verified(KEY.public, TOPIC, bytes(turned))


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_and_never_crash(payload: bytes) -> None:
    with pytest.raises(InvalidSignature):
        verified(KEY.public, TOPIC, payload)
    assert payload.endswith(unsigned(payload))


@given(st.text(max_size=20), st.binary(max_size=50))
def test_any_topic_and_message_can_be_signed(topic: str, message: bytes) -> None:
    signed = sign(KEY, topic, message)
    assert verified(KEY.public, topic, signed) == take_apart(signed).message == unsigned(signed) == message
