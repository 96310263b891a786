"""Targets for what arrives on topics: the topic itself, every message by its type, signatures, and chunks."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any

from fuzz.mutators import in_json
from fuzz.target import Target, hold, sayable
from schemas.chunks import Assembly, CorruptChunk, describe, split
from schemas.messages import InvalidMessage, KeyCertificate, Message
from schemas.reading import MODELS, read
from schemas.signing import InvalidSignature, SigningKey, is_signed, sign, unsigned, verified
from schemas.topics import ADDRESSES, GlobalHead, GlobalKeys, home_assistant_topic, may_answer_on, parse, route
from schemas.trust import Distrusted, KeyRing, Revoked, Trust, open_update

FEDERATION = "home"
TYPES: tuple[type[Message], ...] = tuple(dict.fromkeys(MODELS.values()))
BODY = bytes(range(256)) * 3
CHUNK = 100


def check_topic(data: bytes) -> None:
    """What is understood of a topic is what makes this very topic, and none is answered that is another's."""
    topic = data.decode("utf-8", "surrogateescape")
    address = parse(FEDERATION, topic)
    hold(address is None or route(FEDERATION, address).topic == topic, "another topic is read as this one")
    if may_answer_on(FEDERATION, "kitchen", topic):
        hold(topic.isprintable() and not set("+#") & set(topic), "an answer on a wildcard")
        hold(not topic.startswith("alignfed/") or topic.startswith("alignfed/v1/home/answer/kitchen/"), "not its own")


def check_route(data: bytes) -> None:
    """Fields make a topic that is read as these fields, or ValueError."""
    kind = ADDRESSES[data[0] % len(ADDRESSES)] if data else ADDRESSES[0]
    words = data[1:].decode("utf-8", "surrogateescape").split("\n")
    names = [field.name for field in fields(kind)]
    given = dict(zip(names, words + [""] * len(names), strict=False))
    try:
        numbers: dict[str, Any] = {
            name: int(text) if name in ("version", "index") else text for name, text in given.items()
        }
        address = kind(**numbers)
        topic = route(words[-1], address).topic
    except ValueError as refusal:
        sayable(refusal, 5000)
        return
    hold(parse(words[-1], topic) == address, "a topic is not read as what it was made of")


def check_discovery(data: bytes) -> None:
    """A discovery topic has no place for another level or a wildcard."""
    prefix, _, name = data.decode("utf-8", "surrogateescape").partition("\n")
    try:
        topic = home_assistant_topic(prefix, name)
    except ValueError as refusal:
        sayable(refusal, 5000)
        return
    hold(topic.count("/") == 3 and not set("+#") & set(topic), "a topic of another shape")


def checker(kind: type[Message]) -> Callable[[bytes], str]:
    """A payload is refused in words, or read as something that is written and read again; how it went."""

    def check(data: bytes) -> str:
        try:
            message = kind.from_bytes(data)
        except InvalidMessage as refusal:
            sayable(refusal, 400)
            return re.sub(r"\d+", "", str(refusal))[:60]
        hold(kind.from_bytes(message.to_bytes()) == message, "it is read again as something else")
        return " ".join(sorted(message.model_fields_set))

    return check


def check_reading(data: bytes) -> None:
    """A topic and a payload, divided by a line break: whatever they are, they are described."""
    topic, _, payload = data.partition(b"\n")
    said = read(topic.decode("utf-8", "surrogateescape"), payload)
    hold(said.fault is None or said.fault.isprintable(), "a fault that is not printable")


@cache
def key(name: str) -> SigningKey:
    """A key that is the same in every process; what it signs is worth nothing."""
    return SigningKey.from_bytes(hashlib.sha256(name.encode()).digest())


@cache
def ring() -> KeyRing:
    """Two nodes in force and one that is revoked."""
    whole = KeyRing()
    for node in ("kitchen", "garage", "cellar"):
        whole = whole.with_key(node, key(node).public)
    return whole.without_node("cellar")


UPDATE_TOPIC = f"alignfed/v1/home/update/kitchen/{'0' * 32}/manifest"
HEAD_TOPIC = route(FEDERATION, GlobalHead()).topic
KEYS_TOPIC = route(FEDERATION, GlobalKeys()).topic


def check_signed_update(data: bytes) -> None:
    """What a node is believed to have said is what it has signed, to the byte."""
    try:
        message = open_update(ring(), "kitchen", UPDATE_TOPIC, data)
    except (Distrusted, Revoked) as refusal:
        sayable(refusal)
        return
    hold(sign(key("kitchen"), UPDATE_TOPIC, message) == data, "a payload that was not signed so is believed")


def check_signed_pointer(data: bytes) -> None:
    """What the coordinator is believed to have said is what it has signed; so is the root's word for its key."""
    root, online = key("root"), key("coordinator")
    certificate = KeyCertificate(
        federation=FEDERATION, number=1, key=online.public, issued_at_ns=1, expires_at_ns=2**62
    )
    trust = Trust(FEDERATION, root.public, certificate)
    hold(unsigned(data) == data or is_signed(data), "a signature was taken off that is not there")
    try:
        message = trust.opened(GlobalHead(), HEAD_TOPIC, data, now_ns=3)
        hold(sign(online, HEAD_TOPIC, message) == data, "a pointer that was not signed so is believed")
    except InvalidSignature as refusal:
        sayable(refusal)
    try:
        hold(sign(root, KEYS_TOPIC, verified(root.public, KEYS_TOPIC, data)) == data, "not signed so, and believed")
        trust.certified(KEYS_TOPIC, data)
    except InvalidMessage as refusal:
        sayable(refusal)


def check_key_ring(data: bytes) -> None:
    """A ring is refused in words, or read as one that is written and read again."""
    try:
        whole = KeyRing.from_bytes(data)
    except InvalidMessage as refusal:
        sayable(refusal)
        return
    hold(KeyRing.from_bytes(whole.to_bytes()) == whole, "it is read again as something else")
    hold(whole.enrolled <= {entry.node for entry in whole.nodes}, "a node is enrolled that is not there")


def check_assembly(data: bytes) -> None:
    """Chunks in any order, true ones, false ones and none: what is joined is the body, and no more is held."""
    body = describe(BODY, "fp32", CHUNK, inline=0)
    parts = split(BODY, CHUNK)
    assembly = Assembly()
    for position in range(0, len(data) - 1, 2):
        index, what = data[position] % 12, data[position + 1]
        if what == 0:
            assembly = assembly.with_manifest(body)
            continue
        chunk = parts[index % len(parts)] if what < 128 else data[position : position + what]
        try:
            assembly = assembly.with_chunk(index, chunk)
        except CorruptChunk as refusal:
            sayable(refusal)
    hold(assembly.body is None or assembly.held <= len(BODY), "more is held than the body has")
    if assembly.is_complete:
        hold(assembly.join() == BODY, "another body was put together")


TARGETS = (
    Target("topic", check_topic, 90, largest=600),
    Target("route", check_route, 20, largest=300),
    Target("discovery-topic", check_discovery, 20, largest=200),
    *(Target(f"message-{kind.__name__}", checker(kind), 40, in_json, largest=3000) for kind in TYPES),
    Target("reading", check_reading, 30, in_json, largest=3000),
    Target("signed-update", check_signed_update, 30, largest=1500),
    Target("signed-pointer", check_signed_pointer, 15, largest=1500),
    Target("key-ring", check_key_ring, 20, in_json, largest=2000),
    Target("chunks", check_assembly, 30, largest=200),
)
