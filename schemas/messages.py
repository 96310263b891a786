"""Every message as a frozen model. What cannot be said in these types cannot reach the coordinator's decisions.

Payloads are compact JSON. A manifest may carry its body behind it: the JSON on one line, a newline, then raw bytes.
"""

import hashlib
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from schemas.adapter import LoraConfig
from schemas.faults import first_fault
from schemas.topics import Name

MAX_CHUNK_SIZE = 120 * 1024  # with headers it stays under 128 KiB, the smallest packet limit of the common brokers
MAX_BODY_SIZE = 1 << 30
MAX_MESSAGE_SIZE = 1 << 20
MAX_CHUNKS = 10_000
MAX_INPUTS = 500  # a global manifest of as many is one message of 100 KB
MAX_SENTENCE = 500
MAX_PAUSE_S = 600
MAX_VALUES = 20_000  # the fullest message holds fewer; parsing stays under 128 MB, whatever the bytes

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256, 64 hexadecimal digits")]
PublicKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="ed25519 public key, 64 hexadecimal digits")]
UpdateId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="first 32 hexadecimal digits of a SHA-256")]
Version = Annotated[int, Field(ge=0, lt=10**9)]
Count = Annotated[int, Field(ge=0, le=10**12)]
TimestampNs = Annotated[int, Field(ge=0, lt=1 << 63, description="nanoseconds since 1970, UTC")]
Sentence = Annotated[str, Field(max_length=MAX_SENTENCE)]

Rank = Annotated[int, Field(ge=1, le=1024, description="inner dimension of the factors A and B")]
CodecId = Literal["fp32", "fp16", "int8", "kltp", "safetensors"]
UpdateCodecId = Literal["kltp", "int8", "fp16", "fp32"]
Factors = Literal["both", "A", "B"]
Variant = Literal["head", "average"]
Loss = Annotated[float, Field(ge=0, description="mean over answer tokens, nats")]
IdleReason = Literal[
    "no_terms",
    "no_version",
    "finished",
    "outbox_full",
    "version_used",
    "resting",
    "newer_version_coming",
    "few_new_examples",
    "busy",
    "hot",
    "battery_low",
    "not_at_this_hour",
    "rank_not_taken",
]
ReceiptStatus = Literal["accepted", "aggregated", "duplicate", "stale", "rejected", "incomplete", "overloaded"]
Refusal = Literal["bad_request", "too_long", "overloaded", "loading", "timeout", "stopped", "fault"]
MAX_TURNS, MAX_ANSWER_TOKENS = 256, 4096
StopString = Annotated[str, Field(min_length=1, max_length=256)]


class InvalidMessage(ValueError):
    """A payload that is not the message it should be; the text says what is wrong with it."""


class Message(BaseModel):
    """Base of all payloads: immutable, no unknown fields, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    def to_bytes(self) -> bytes:
        """The payload: one line of compact JSON, fields in their declared order."""
        return self.model_dump_json().encode()

    @classmethod
    def from_bytes(cls, payload: bytes) -> Self:
        """Parse a payload; anything but this message raises InvalidMessage with the first fault."""
        if len(payload) > MAX_MESSAGE_SIZE:
            raise InvalidMessage(f"{cls.__name__} of {len(payload)} bytes is over {MAX_MESSAGE_SIZE}")
        # each JSON value but the first follows one of these
        if (values := sum(map(payload.count, (b",", b"[", b"{")))) > MAX_VALUES:
            raise InvalidMessage(f"{cls.__name__} of {values} values is over {MAX_VALUES}")
        try:
            return cls.model_validate_json(payload, strict=True)
        except ValidationError as error:
            raise InvalidMessage(f"{cls.__name__}: {first_fault(error).text}") from None


class Body(Message):
    """Where an adapter's bytes are: behind the manifest (`chunks` empty), or in chunks named by their SHA-256."""

    codec: CodecId = Field(description="how to turn the bytes into an adapter")
    sha256: Sha256 = Field(description="of the whole body")
    size: int = Field(ge=1, le=MAX_BODY_SIZE, description="bytes")
    chunks: tuple[Sha256, ...] = Field(
        default=(), max_length=MAX_CHUNKS, description="SHA-256 of each chunk in order; empty when inline"
    )

    @model_validator(mode="after")
    def _chunks_can_hold_the_body(self) -> Self:
        if self.chunks and not len(self.chunks) <= self.size <= len(self.chunks) * MAX_CHUNK_SIZE:
            raise ValueError(f"{len(self.chunks)} chunks cannot hold {self.size} bytes")
        if not self.chunks and self.size > MAX_CHUNK_SIZE:
            raise ValueError(f"an inline body of {self.size} bytes is over {MAX_CHUNK_SIZE}: send it in chunks")
        return self


class UpdateManifest(Message):
    """A node's update: what it trained from, on how much, and where the delta's bytes are."""

    node: Name = Field(description="the node that made it: must be the one in the topic")
    boot_id: UpdateId = Field(description="the node process that made it")
    sequence: Count = Field(description="the node's running number of updates")
    base_version: Version = Field(description="global version that the training started from")
    base_digest: Sha256 = Field(description="digest of that version")
    base_model: Sha256 = Field(description="digest of the frozen LLM")
    layout: Sha256 = Field(description="digest of the adapter layout")
    examples: int = Field(ge=1, le=10**9, description="private examples trained on")
    steps: int = Field(ge=1, le=10**9, description="optimiser steps")
    participation: Count = Field(description="updates this node believes were accepted before; a claim, never used")
    loss: float = Field(ge=0, description="mean training loss over the last steps, nats per answer token")
    seconds: float = Field(ge=0, description="duration of the training")
    held_out_loss: Loss | None = Field(
        default=None,
        description="of the base version, on examples this node never trains on: mean over answer tokens, nats",
    )
    body: Body


class Receipt(Message):
    """The coordinator's answer to one update, sent after it is on disk."""

    update_id: UpdateId
    status: ReceiptStatus = Field(
        description="accepted: durable, may be forgotten; aggregated: it went into `version`; "
        "duplicate: known already; stale: too old; rejected: see `reason`; incomplete: send the chunks in `missing`; "
        "overloaded: not taken for now, keep it"
    )
    reason: Sentence | None = Field(default=None, description="for stale, rejected and overloaded: what to do about it")
    missing: tuple[Annotated[int, Field(ge=0, lt=MAX_CHUNKS)], ...] = Field(
        default=(), max_length=MAX_CHUNKS, description="chunk numbers to send again"
    )
    version: Version | None = Field(default=None, description="the version that the update went into")
    # left out where it says nothing: a program that does not know it reads every other answer
    retry_after_s: float | None = Field(
        default=None,
        ge=0,
        le=MAX_PAUSE_S,
        exclude_if=lambda pause_s: pause_s is None,
        description="with overloaded: send nothing sooner than this",
    )


class GlobalPointer(Message):
    """The atomic switch: which global version is current. Readers trust it only if (epoch, version) never falls."""

    epoch: Count = Field(description="rises with every coordinator start and rollback")
    version: Version
    digest: Sha256 = Field(description="SHA-256 of the version's safetensors body")
    parent: Sha256 | None = Field(description="digest of the version before; none for the first")
    size: int = Field(ge=1, le=MAX_BODY_SIZE, description="bytes of the body")
    chunks: int = Field(ge=0, le=MAX_CHUNKS, description="number of chunks; 0 when the body is inline")
    variant: Variant = Field(default="head", description="which of the version's adapters: head, or the average")
    judged: Version | None = Field(
        default=None, description="on global/release: the last version that might have been served instead"
    )
    expires_at_ns: TimestampNs | None = Field(
        default=None, description="where messages are signed: not to be taken up after this; renewed well before"
    )


class KeyCertificate(Message):
    """The federation's root says which key the coordinator signs with. The highest number counts, and none below it."""

    federation: Name
    number: int = Field(ge=1, le=10**9, description="rises with every new certificate")
    key: PublicKey
    issued_at_ns: TimestampNs
    expires_at_ns: TimestampNs = Field(description="nothing that the key has signed is taken after this")


class VersionInput(Message):
    """One update that a global version was made of."""

    node: Name
    update_id: UpdateId
    base_version: Version
    examples: Count
    weight: float = Field(description="absolute factor of its delta in the step")


class GroupReport(Message):
    """The updates of one base version that went into a global version together."""

    base_version: Version
    updates: Count
    cosine: float | None = Field(default=None, description="mean, of its deltas to their mean; none for one alone")
    residual_before: float | None = Field(default=None, description="distance to what alignment aims at, before it")
    residual_after: float | None = Field(default=None, description="the same, after it")
    seconds: float = Field(default=0.0, description="processor time that the base model took to align them")


class AnchorReport(Message):
    """The coordinator's own steps on the calibration set's anchor fold."""

    base_version: Version = Field(description="the head that it was trained from")
    weight: float = Field(description="absolute factor of the anchor's delta in the step")
    loss_before: Loss | None = Field(description="of the first step; none if it is infinite")
    loss_after: Loss | None = Field(description="of the last step")
    seconds: float = Field(description="processor time that the base model took")


class ReturnReport(Message):
    """Why a version is one that was there before: the average made since was clearly worse on the gate fold."""

    version: Version = Field(description="whose adapter it is again")
    variant: Variant
    candidate: Loss | None = Field(description="gate loss of the average that raised the alarm; none if it is infinite")
    before: Loss | None = Field(description="gate loss of what nodes serve, and now train from")


class ReleaseReport(Message):
    """What nodes serve, and how that was decided: the last version that was judged may have been turned down."""

    version: Version = Field(description="whose adapter is served")
    variant: Variant
    judged: Version = Field(description="the last version whose adapter might have been served")
    candidate: Loss | None = Field(default=None, description="its loss on the gate fold; none if it was not measured")
    before: Loss | None = Field(default=None, description="loss of what was served by then")
    seconds: float = Field(default=0.0, description="processor time that the base model took to judge it")

    @property
    def is_taken(self) -> bool:
        """Whether the version that was judged is served."""
        return self.version == self.judged

    @property
    def is_overruled(self) -> bool:
        """Whether it is served although the gate found it worse, since nodes find it better."""
        measured = self.candidate is not None and self.before is not None
        return self.is_taken and measured and self.candidate > self.before  # type: ignore[operator]


class GlobalManifest(Message):
    """A global version: its lineage, its inputs with their weights, why it is so, and where its bytes are."""

    epoch: Count
    version: Version
    parent: Sha256 | None = Field(description="digest of the version before; none for the first")
    base_model: Sha256
    lora: LoraConfig
    layout: Sha256
    strategy: str = Field(max_length=64)
    calibration: Sha256 | None = Field(default=None, description="digest of the calibration set; none without one")
    inputs: tuple[VersionInput, ...] = Field(max_length=MAX_INPUTS)
    groups: tuple[GroupReport, ...] = Field(default=(), max_length=MAX_INPUTS, description="the inputs by base version")
    anchor: AnchorReport | None = None
    returned: ReturnReport | None = Field(default=None, description="set where the head went back; there are no inputs")
    release: ReleaseReport = Field(description="what nodes serve when this version is made")
    rolled_back_to: Version | None = Field(
        default=None, description="the earlier version whose adapter this is, by the operator's word"
    )
    created_at_ns: TimestampNs
    body: Body = Field(description="the head: what nodes train from")
    average: Body | None = Field(
        default=None, description="the running average, where there is one; its chunks are there once it is served"
    )

    @model_validator(mode="after")
    def _fits_one_message(self) -> Self:
        chunks = len(self.body.chunks) + (len(self.average.chunks) if self.average else 0)
        if chunks > MAX_CHUNKS:
            raise ValueError(f"head and average of {chunks} chunks are over {MAX_CHUNKS}")
        return self

    @property
    def digest(self) -> str:
        """The head's content address: the SHA-256 of its body."""
        return self.body.sha256


class CoordinatorState(Message):
    """The coordinator's birth (with the terms of the federation) and, with `online` false, its will."""

    online: bool
    boot_id: UpdateId
    epoch: Count
    base_model: Sha256
    base_model_name: str = Field(max_length=500)
    lora: LoraConfig
    layout: Sha256
    strategy: str = Field(max_length=64)
    one_update_per_version: bool = Field(description="nodes wait for the next version before they train again")
    trained_factors: Factors = Field(default="both", description="which of a module's two factors nodes train")
    codecs: tuple[CodecId, ...] = Field(description="codecs taken for updates, best first")
    node_ranks: tuple[Rank, ...] | None = Field(
        default=None, max_length=16, description="ranks that nodes may train beside `lora`'s; none if not announced"
    )
    max_staleness: Version | None = Field(
        default=None, description="updates whose base version is more versions old are refused; none if not announced"
    )
    clip_norm: float | None = Field(
        default=None, gt=0, description="nodes shorten deltas whose Euclidean norm is larger to this; none: as they are"
    )
    finished: bool = Field(default=False, description="the last version is published: no more training")


class NodeState(Message):
    """A node's birth and, with `online` false, its will; equal boot_ids tie a will to its birth."""

    online: bool
    boot_id: UpdateId
    base_model: Sha256
    version: Version | None = Field(default=None, description="global version held")
    serving: Version | None = Field(default=None, description="global version served; none for a node that only trains")
    serves: bool = Field(default=False, description="whether it answers questions")
    rank: Rank | None = Field(default=None, description="LoRA rank that it trains at; none: the federation's")
    codecs: tuple[CodecId, ...] = Field(
        default=(), max_length=16, description="codecs that it can send updates in, its owner's choice first"
    )
    limits: Sentence | None = Field(
        default=None, description="what has to be so before it trains, as its owner has it, in words; none: nothing"
    )


class NodeMetrics(Message):
    """A node's progress and counters since its process started."""

    boot_id: UpdateId
    base_version: Version | None = Field(default=None, description="version being trained from; none while idle")
    step: Count = 0
    steps: Count = 0
    loss: float | None = Field(default=None, ge=0, description="of the last step")
    updates_sent: Count = 0
    updates_accepted: Count = 0
    updates_rejected: Count = 0
    outbox: Count = Field(default=0, description="updates that wait for their receipt")
    idle: IdleReason | None = Field(default=None, description="why it does not train now; none while it does")
    held_out_loss: Loss | None = Field(
        default=None,
        description="of a version to train from, on examples this node never trains on: mean over answer tokens, nats",
    )
    held_out_version: Version | None = Field(default=None, description="the version that has this loss")
    held_out_examples: Count = Field(default=0, description="how many examples the loss is of")
    served_loss: Loss | None = Field(default=None, description="the same, of what it serves")
    served_loss_version: Version | None = Field(default=None, description="the version that was served with this loss")
    served_loss_examples: Count = Field(default=0, description="how many examples that is of")


class NodeFigures(Message):
    """What the coordinator has counted of one node, for home automation and dashboards; nobody else needs it."""

    node: Name
    version: Version | None = Field(description="global version that it holds")
    behind: Count | None = Field(description="versions between the head and that one")
    loss: float | None = Field(description="of its last training step")
    held_out_loss: Loss | None = Field(
        default=None, description="on its own held-out examples, of what it serves, or trains from if it serves nothing"
    )
    participation: Count = Field(description="updates accepted since the federation began")
    contribution: float = Field(ge=0, le=1, description="its share of the weight in the newest versions")
    staleness: float | None = Field(description="mean over its updates in those, in versions")
    refused: Count = Field(description="updates refused")
    outbox: Count | None = Field(description="updates that wait at the node for their receipt")
    problem: Sentence | None = Field(description="what a person should look at; none when all is well")
    adapter: dict[Literal["installed_version", "latest_version"], str] = Field(
        description="version that it serves, or trains from if it serves nothing, and the one that it should"
    )


class ChatTurn(Message):
    """One turn of a conversation with a node."""

    role: Literal["system", "user", "assistant"]
    content: str


class InferenceRequest(Message):
    """What a device asks of a node; the same in meaning as OpenAI's chat completions."""

    messages: tuple[ChatTurn, ...] = Field(min_length=1, max_length=MAX_TURNS)
    model: Literal["alignfed", "base"] = Field(
        default="alignfed", description="with the adapter that is served, or without any"
    )
    stream: bool = Field(default=False, description="send the answer piece by piece, a message for each")
    max_tokens: int | None = Field(
        default=None, ge=1, le=MAX_ANSWER_TOKENS, description="of the answer; the node's own limit when unset"
    )
    temperature: float = Field(default=0, ge=0, le=2, description="0 gives the likeliest answer")
    top_p: float = Field(default=1, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=1 << 64, description="for drawing the same answer again")
    stop: tuple[StopString, ...] = Field(default=(), max_length=4, description="the answer ends before any of these")


class InferenceError(Message):
    """Why there is no answer, or no more of it."""

    code: Refusal = Field(
        description="overloaded, loading, timeout: ask again later; bad_request, too_long: ask otherwise; "
        "stopped: the node is shutting down; fault: see its log"
    )
    reason: Sentence


class InferenceAnswer(Message):
    """An answer, or one piece of it; always with what made it."""

    index: Count = Field(description="number of this message within the answer, from 0")
    last: bool = Field(description="no more of this answer comes")
    text: str = Field(description="the whole text, or the next piece of it")
    base_model: Sha256
    epoch: Count | None = Field(default=None, description="of the adapter that made the answer")
    version: Version | None = Field(default=None, description="the adapter's; none for the base model alone")
    digest: Sha256 | None = Field(default=None, description="the adapter's")
    finish: Literal["stop", "length"] | None = Field(
        default=None, description="with the last: whether it came to its end or to max_tokens"
    )
    prompt_tokens: Count | None = Field(default=None, description="with the last: of the conversation")
    tokens: Count | None = Field(default=None, description="with the last: of the answer")
    error: InferenceError | None = Field(default=None, description="with the last: why it is not whole")


def join_body(manifest: bytes, body: bytes) -> bytes:
    """A manifest's JSON with its body behind it."""
    return manifest + b"\n" + body


def split_body(payload: bytes) -> tuple[bytes, bytes]:
    """The manifest's JSON and the body behind it, empty when there is none."""
    manifest, _, body = payload.partition(b"\n")
    return manifest, body


def update_id(manifest: bytes) -> str:
    """An update's id is the hash of its manifest's JSON: the same update sent twice is the same update."""
    return hashlib.sha256(manifest).hexdigest()[:32]
