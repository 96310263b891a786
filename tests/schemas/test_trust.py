"""The coordinator believes the keys on its ring, a node believes whom the pinned root names."""

from dataclasses import replace

import pytest

from schemas.messages import InvalidMessage, KeyCertificate
from schemas.signing import InvalidSignature, SigningKey, sign
from schemas.topics import GlobalChunk, GlobalHead, GlobalKeys, UpdateManifestOf, route
from schemas.trust import Distrusted, KeyRing, Revoked, Trust, Uncertified, open_update

ROOT, ONLINE, NEXT, KITCHEN, OFFICE = (SigningKey.from_bytes(bytes([number]) * 32) for number in range(5))
TOPIC = route("home", UpdateManifestOf("kitchen", "a" * 32)).topic
HEAD = route("home", GlobalHead()).topic
KEYS = route("home", GlobalKeys()).topic
RING = KeyRing().with_key("kitchen", KITCHEN.public).with_key("office", OFFICE.public)
EXPIRY_NS = 1_000


def certificate(number: int = 1, key: SigningKey = ONLINE, federation: str = "home", root: SigningKey = ROOT) -> bytes:
    said = KeyCertificate(federation=federation, number=number, key=key.public, issued_at_ns=0, expires_at_ns=EXPIRY_NS)
    return sign(root, KEYS, said.to_bytes())


# --- the coordinator's side ---


def test_an_update_that_its_node_has_signed_is_opened() -> None:
    assert open_update(RING, "kitchen", TOPIC, sign(KITCHEN, TOPIC, b"delta")) == b"delta"


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"delta", "update that is not signed"),
        (sign(ONLINE, TOPIC, b"delta"), "signature of an unknown key"),
        (sign(OFFICE, TOPIC, b"delta"), "signature of another node's key"),
        (sign(KITCHEN, HEAD, b"delta"), "signature that does not fit"),
        (sign(KITCHEN, TOPIC, b"delta") + b"s", "signature that does not fit"),
    ],
)
def test_an_update_that_nobody_vouches_for_is_not(payload: bytes, reason: str) -> None:
    with pytest.raises(Distrusted) as refused:
        open_update(RING, "kitchen", TOPIC, payload)
    assert refused.value.reason == reason


def test_a_node_with_a_revoked_key_is_told_so() -> None:
    with pytest.raises(Revoked, match="enrol this node again"):
        open_update(RING.without_node("kitchen"), "kitchen", TOPIC, sign(KITCHEN, TOPIC, b"delta"))


def test_who_only_names_a_revoked_key_gets_no_answer_in_its_nodes_name() -> None:
    with pytest.raises(Distrusted):
        open_update(RING.without_node("kitchen"), "kitchen", TOPIC, sign(KITCHEN, TOPIC, b"delta") + b"s")


def test_a_node_that_was_enrolled_again_signs_with_its_new_key_only() -> None:
    ring = RING.without_node("kitchen").with_key("kitchen", NEXT.public)
    assert open_update(ring, "kitchen", TOPIC, sign(NEXT, TOPIC, b"delta")) == b"delta"
    with pytest.raises(Revoked):
        open_update(ring, "kitchen", TOPIC, sign(KITCHEN, TOPIC, b"delta"))
    assert ring.enrolled == {"kitchen", "office"}


def test_the_rings_number_rises_with_every_change() -> None:
    assert (RING.number, RING.without_node("kitchen").number) == (2, 3)


def test_a_ring_survives_its_file() -> None:
    assert KeyRing.from_bytes(RING.to_bytes()) == RING


@pytest.mark.parametrize("content", [b"", b"{", b"[]", RING.to_bytes()[:-20], RING.to_bytes().replace(b"kitchen", b"")])
def test_a_damaged_ring_is_said_to_be_none(content: bytes) -> None:
    with pytest.raises(InvalidMessage, match="no key ring"):
        KeyRing.from_bytes(content)


def test_no_key_is_enrolled_twice() -> None:
    with pytest.raises(ValueError, match="already"):
        RING.with_key("cellar", KITCHEN.public)
    doubled = RING.to_bytes().replace(OFFICE.public.encode(), KITCHEN.public.encode())
    with pytest.raises(InvalidMessage, match="twice"):
        KeyRing.from_bytes(doubled)


# --- a node's side ---

TRUST = Trust("home", ROOT.public)
CERTIFIED = TRUST.certified(KEYS, certificate())


def test_a_node_believes_the_key_that_its_root_names() -> None:
    assert CERTIFIED.opened(GlobalHead(), HEAD, sign(ONLINE, HEAD, b"pointer"), 0) == b"pointer"


def test_a_node_believes_nobody_before_a_certificate_came() -> None:
    with pytest.raises(Uncertified):
        TRUST.opened(GlobalHead(), HEAD, sign(ONLINE, HEAD, b"pointer"), 0)


@pytest.mark.parametrize("signer", [ROOT, NEXT, KITCHEN])
def test_a_node_believes_no_other_key_not_even_the_roots(signer: SigningKey) -> None:
    with pytest.raises(Uncertified):
        CERTIFIED.opened(GlobalHead(), HEAD, sign(signer, HEAD, b"pointer"), 0)


def test_what_is_signed_by_no_one_is_not_believed() -> None:
    with pytest.raises(InvalidSignature):
        CERTIFIED.opened(GlobalHead(), HEAD, b"pointer", 0)


def test_chunks_are_bound_by_hashes_and_carry_no_signature() -> None:
    assert CERTIFIED.opened(GlobalChunk(1, 0), "", b"bytes", 0) == b"bytes"


def test_a_key_whose_certificate_has_expired_vouches_for_nothing() -> None:
    payload = sign(ONLINE, HEAD, b"pointer")
    assert CERTIFIED.opened(GlobalHead(), HEAD, payload, EXPIRY_NS) == b"pointer"
    with pytest.raises(InvalidSignature, match="has expired"):
        CERTIFIED.opened(GlobalHead(), HEAD, payload, EXPIRY_NS + 1)


def test_a_newer_certificate_puts_the_older_key_out_of_force() -> None:
    rotated = CERTIFIED.certified(KEYS, certificate(2, NEXT))
    assert rotated.opened(GlobalHead(), HEAD, sign(NEXT, HEAD, b"pointer"), 0) == b"pointer"
    with pytest.raises(Uncertified):
        rotated.opened(GlobalHead(), HEAD, sign(ONLINE, HEAD, b"pointer"), 0)
    with pytest.raises(InvalidSignature, match="older than number 2"):
        rotated.certified(KEYS, certificate(1))


@pytest.mark.parametrize(
    "payload",
    [
        certificate(root=ONLINE),
        certificate(federation="other"),
        certificate(key=NEXT),
        b"{}",
        certificate()[:-1],
        sign(ROOT, HEAD, b"{}"),
        sign(ROOT, KEYS, b"{}"),
    ],
)
def test_a_certificate_that_the_root_did_not_give_this_federation_changes_nothing(payload: bytes) -> None:
    with pytest.raises(InvalidMessage):
        CERTIFIED.certified(KEYS, payload)


def test_the_same_certificate_may_come_again() -> None:
    assert CERTIFIED.certified(KEYS, certificate()) == CERTIFIED


def test_trust_is_of_one_federation() -> None:
    with pytest.raises(InvalidMessage):
        replace(TRUST, federation="other").certified(KEYS, certificate())
