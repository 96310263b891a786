"""Any message by its topic: as a value, or in words with what is wrong with it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.chunks import describe
from schemas.messages import InvalidMessage, NodeMetrics, Receipt, UpdateManifest, join_body, update_id
from schemas.reading import MODELS, OTHER, kind_of, message_on, read
from schemas.signing import SigningKey, sign
from schemas.topics import (
    ADDRESSES,
    GlobalChunk,
    GlobalHead,
    GlobalManifestOf,
    NodeMetricsOf,
    ReceiptFor,
    UpdateChunk,
    UpdateManifestOf,
    route,
)

ID = "a" * 32
BODY = b"the body"


def manifest(node: str = "kitchen") -> UpdateManifest:
    return UpdateManifest(
        node=node,
        boot_id=ID,
        sequence=0,
        base_version=7,
        base_digest="0" * 64,
        base_model="0" * 64,
        layout="0" * 64,
        examples=1,
        steps=1,
        participation=0,
        loss=1.0,
        seconds=1.0,
        body=describe(BODY, "fp32"),
    )


def topic(address) -> str:
    return route("home", address).topic


def test_every_kind_of_topic_has_a_name_of_its_own_and_a_reader():
    kinds = [kind_of(address) for address in ADDRESSES]
    assert len(set(kinds)) == len(kinds)
    assert {"update/manifest", "global/average/chunk", "receipt"} <= set(kinds)
    assert set(ADDRESSES) - MODELS.keys() == {a for a in ADDRESSES if kind_of(a).endswith("chunk")}


def test_a_message_is_the_same_signed_or_not_with_its_body_behind_it_or_without():
    key, text = SigningKey.from_bytes(bytes(32)), manifest().to_bytes()
    where = UpdateManifestOf("kitchen", update_id(text))
    for plain in (text, join_body(text, BODY)):
        assert message_on(where, plain) == message_on(where, sign(key, topic(where), plain)) == manifest()
    receipt = Receipt(update_id=ID, status="aggregated", version=3)
    signed = sign(key, topic(ReceiptFor("kitchen")), receipt.to_bytes())
    assert message_on(ReceiptFor("kitchen"), receipt.to_bytes()) == message_on(ReceiptFor("kitchen"), signed) == receipt


def test_a_message_of_another_topic_and_a_signature_where_there_is_none_are_invalid():
    with pytest.raises(InvalidMessage, match="GlobalPointer"):
        message_on(GlobalHead(), Receipt(update_id=ID, status="accepted").to_bytes())
    where, said = NodeMetricsOf("kitchen"), NodeMetrics(boot_id=ID)
    assert message_on(where, said.to_bytes()) == said
    with pytest.raises(InvalidMessage, match="NodeMetrics"):  # nobody signs these
        message_on(where, sign(SigningKey.from_bytes(bytes(32)), topic(where), said.to_bytes()))


def test_an_update_is_told_with_its_node_its_base_version_and_its_body():
    text = manifest().to_bytes()
    said = read(topic(UpdateManifestOf("kitchen", update_id(text))), join_body(text, BODY))
    assert (said.kind, said.federation, said.node, said.version) == ("update/manifest", "home", "kitchen", 7)
    assert (said.content["examples"], said.content["inline_body"]["size"], said.fault) == (1, len(BODY), None)


def test_a_manifest_under_a_false_name_or_with_a_false_body_is_faulty():
    text = manifest().to_bytes()
    assert "its hash is another" in str(read(topic(UpdateManifestOf("kitchen", ID)), text).fault)
    right = UpdateManifestOf("kitchen", update_id(text))
    assert "is not the 8 bytes" in str(read(topic(right), join_body(text, b"short")).fault)
    other = manifest("attic").to_bytes()
    said = read(topic(UpdateManifestOf("kitchen", update_id(other))), join_body(other, BODY))
    assert said.fault == "the manifest says it is from attic"


def test_a_receipt_names_its_update_and_version():
    receipt = Receipt(update_id=ID, status="aggregated", version=3)
    said = read(topic(ReceiptFor("kitchen")), receipt.to_bytes())
    assert (said.node, said.update_id, said.version, said.content["status"]) == ("kitchen", ID, 3, "aggregated")


def test_of_a_chunk_the_size_and_hash_are_told():
    said = read(topic(GlobalChunk(4, 2)), b"abc")
    assert (said.kind, said.version, said.content["index"], said.content["size"]) == ("global/chunk", 4, 2, 3)
    assert read(topic(UpdateChunk("kitchen", ID, 1)), b"").node == "kitchen"


def test_an_empty_retained_message_is_a_deletion():
    said = read(topic(GlobalManifestOf(4)), b"")
    assert (said.content, said.fault) == ({"deleted": True}, None)


@given(
    st.sampled_from(["x", "alignfed/v1", "alignfed/v1//x", topic(ReceiptFor("a")), topic(GlobalManifestOf(1))]),
    st.binary(),
)
def test_no_bytes_on_any_topic_are_too_much(where, payload):
    said = read(where, payload)
    assert said.kind in (OTHER, "receipt", "global/manifest")
