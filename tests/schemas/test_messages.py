"""Messages: what is said is read back to the last bit, and the fullest thing that can be said can be read."""

import hashlib
import json
from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import given
from pydantic import ValidationError

from schemas.adapter import LoraConfig
from schemas.messages import (
    MAX_BODY_SIZE,
    MAX_CHUNK_SIZE,
    MAX_CHUNKS,
    MAX_INPUTS,
    MAX_MESSAGE_SIZE,
    AnchorReport,
    Body,
    GlobalManifest,
    GroupReport,
    InvalidMessage,
    Message,
    NodeMetrics,
    NodeState,
    Receipt,
    ReleaseReport,
    UpdateManifest,
    VersionInput,
    join_body,
    split_body,
    update_id,
)

SHA = "0123456789abcdef" * 4
ID = SHA[:32]

COUNTS = st.integers(0, 10**12)
VERSIONS = st.integers(0, 10**9 - 1)
FLOATS = st.floats(0, allow_infinity=False)
SHAS = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
INLINE = st.builds(Body, codec=st.sampled_from(["int8", "fp32"]), sha256=SHAS, size=st.integers(1, MAX_CHUNK_SIZE))
MANIFESTS = st.builds(
    UpdateManifest,
    node=st.just("a"),
    boot_id=st.just(ID),
    sequence=COUNTS,
    base_version=VERSIONS,
    base_digest=SHAS,
    base_model=SHAS,
    layout=SHAS,
    examples=st.integers(1, 10**9),
    steps=st.integers(1, 10**9),
    participation=COUNTS,
    loss=FLOATS,
    seconds=FLOATS,
    body=INLINE,
)
RECEIPTS = st.builds(
    Receipt,
    update_id=st.just(ID),
    status=st.sampled_from(["accepted", "stale", "rejected", "overloaded"]),
    reason=st.none() | st.text(st.characters(codec="utf-8"), max_size=50),
    missing=st.lists(st.integers(0, MAX_CHUNKS - 1), max_size=5).map(tuple),
    version=st.none() | VERSIONS,
    retry_after_s=st.none() | st.floats(0, 600),
)
METRICS = st.builds(NodeMetrics, boot_id=st.just(ID), step=COUNTS, loss=st.none() | FLOATS, outbox=COUNTS)


def test_a_program_that_knows_no_pauses_reads_every_answer_that_asks_for_none() -> None:
    known = {"update_id", "status", "reason", "missing", "version"}
    assert json.loads(Receipt(update_id=ID, status="accepted").to_bytes()).keys() == known
    asked = Receipt(update_id=ID, status="overloaded", retry_after_s=30)
    assert json.loads(asked.to_bytes()).keys() == known | {"retry_after_s"}


def test_every_message_is_read_back(message: Message) -> None:
    assert type(message).from_bytes(message.to_bytes()) == message


@given(st.one_of(MANIFESTS, RECEIPTS, METRICS))
def test_any_message_is_one_line_and_is_read_back_to_the_last_bit(said: Message) -> None:
    payload = said.to_bytes()
    assert b"\n" not in payload
    read = type(said).from_bytes(payload)
    assert read == said
    assert read.to_bytes() == payload


@given(MANIFESTS, st.binary(max_size=50))
def test_a_body_behind_its_manifest_is_split_off_whatever_it_holds(manifest: UpdateManifest, body: bytes) -> None:
    assert split_body(join_body(manifest.to_bytes(), body)) == (manifest.to_bytes(), body)
    assert split_body(manifest.to_bytes()) == (manifest.to_bytes(), b"")


@given(st.binary(max_size=50))
def test_an_update_is_known_by_the_hash_of_its_manifest(manifest: bytes) -> None:
    assert update_id(manifest) == hashlib.sha256(manifest).hexdigest()[:32]


def test_a_message_cannot_be_changed(message: Message) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(message, next(iter(type(message).model_fields)), None)


@pytest.mark.parametrize(("served", "is_taken"), [(3, True), (2, False)])
def test_a_judged_version_is_taken_when_it_is_what_nodes_serve(served: int, is_taken: bool) -> None:
    assert ReleaseReport(version=served, variant="average", judged=3).is_taken is is_taken


def test_a_release_says_which_version_was_judged() -> None:
    with pytest.raises(ValidationError, match="judged"):
        ReleaseReport.model_validate({"version": 3, "variant": "average"})


# --- how much can be said ---


def fullest() -> Iterator[Message]:
    """Every list as long and every text as wide as its type allows."""
    body = Body(codec="safetensors", sha256=SHA, size=MAX_BODY_SIZE, chunks=(SHA,) * MAX_CHUNKS)
    half = Body(codec="safetensors", sha256=SHA, size=MAX_BODY_SIZE // 2, chunks=(SHA,) * (MAX_CHUNKS // 2))
    widest = VersionInput(
        node="n" * 64, update_id=ID, base_version=10**9 - 1, examples=10**12, weight=-(2 / 3) * 1e-300
    )
    yield UpdateManifest(
        node="n" * 64,
        boot_id=ID,
        sequence=10**12,
        base_version=10**9 - 1,
        base_digest=SHA,
        base_model=SHA,
        layout=SHA,
        examples=10**9,
        steps=10**9,
        participation=10**12,
        loss=1e300 / 3,
        seconds=1e300 / 3,
        body=body,
    )
    yield GlobalManifest(
        epoch=10**12,
        version=10**9 - 1,
        parent=SHA,
        base_model=SHA,
        lora=LoraConfig(target_modules=("m" * 100,) * 64),
        layout=SHA,
        strategy="\x01" * 64,  # a control character takes six bytes of JSON
        calibration=SHA,
        inputs=(widest,) * MAX_INPUTS,
        groups=(
            GroupReport(
                base_version=10**9 - 1,
                updates=10**12,
                cosine=-(2 / 3) * 1e-300,
                residual_before=1e300 / 3,
                residual_after=1e300 / 3,
                seconds=1e300 / 3,
            ),
        )
        * MAX_INPUTS,
        anchor=AnchorReport(
            base_version=10**9 - 1, weight=1e300 / 3, loss_before=1e300 / 3, loss_after=1e300 / 3, seconds=1e300 / 3
        ),
        release=ReleaseReport(
            version=10**9 - 1,
            variant="average",
            judged=10**9 - 1,
            candidate=1e300 / 3,
            before=1e300 / 3,
            seconds=1e300 / 3,
        ),
        created_at_ns=2**63 - 1,
        body=half,
        average=half,
    )
    yield Receipt(update_id=ID, status="incomplete", reason="\x01" * 500, missing=(MAX_CHUNKS - 1,) * MAX_CHUNKS)


def test_the_fullest_message_that_can_be_made_can_be_read() -> None:
    for message in fullest():
        assert type(message).from_bytes(message.to_bytes()) == message


def test_one_more_of_anything_cannot_be_made() -> None:
    update, manifest, receipt = fullest()
    assert isinstance(update, UpdateManifest) and isinstance(manifest, GlobalManifest) and isinstance(receipt, Receipt)
    for kind, fields in (
        (GlobalManifest, {**dict(manifest), "inputs": (*manifest.inputs, manifest.inputs[0])}),
        (GlobalManifest, {**dict(manifest), "groups": (*manifest.groups, manifest.groups[0])}),
        (Body, {**dict(update.body), "chunks": (*update.body.chunks, SHA)}),
        (Receipt, {**dict(receipt), "missing": (*receipt.missing, 0)}),
    ):
        with pytest.raises(ValidationError, match="at most"):
            kind(**fields)


def test_head_and_average_together_cannot_have_more_chunks_than_a_body() -> None:
    _, manifest, _ = fullest()
    assert isinstance(manifest, GlobalManifest)
    more = manifest.body.model_copy(update={"chunks": (*manifest.body.chunks, SHA)})
    with pytest.raises(ValidationError, match=f"of {MAX_CHUNKS + 1} chunks are over {MAX_CHUNKS}"):
        GlobalManifest(**{**dict(manifest), "average": more})


def test_a_payload_over_the_limit_is_refused_unread() -> None:
    state = NodeState(online=True, boot_id=ID, base_model=SHA)
    assert NodeState.from_bytes(state.to_bytes().ljust(MAX_MESSAGE_SIZE)) == state
    with pytest.raises(InvalidMessage, match=f"of {MAX_MESSAGE_SIZE + 1} bytes is over {MAX_MESSAGE_SIZE}"):
        NodeState.from_bytes(state.to_bytes().ljust(MAX_MESSAGE_SIZE + 1))


def test_of_a_repeated_key_the_last_one_counts() -> None:
    payload = NodeState(online=True, boot_id=ID, base_model=SHA).to_bytes()
    twice = payload.replace(b'"online":true', b'"online":false,"online":true')
    assert twice != payload
    assert NodeState.from_bytes(twice).to_bytes() == payload
