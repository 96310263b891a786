"""Whose signature counts: the coordinator's by the word of a pinned root, a node's by the coordinator's key ring. Pure.

A node knows one key from its bundle, the root's. The root certifies the key that the coordinator signs with; a newer
certificate puts every older one out of force. The coordinator knows its nodes by the key ring that `alignfed keys`
writes. Private keys and files are not known here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.faults import first_fault
from schemas.messages import Count, InvalidMessage, KeyCertificate, PublicKey
from schemas.signing import InvalidSignature, key_id, take_apart, verified
from schemas.topics import Address, Name

DistrustReason = Literal[
    "update that is not signed",
    "signature of an unknown key",
    "signature of another node's key",
    "signature that does not fit",
]


class NodeKey(BaseModel):
    """One key that a node signs with, or signed with until it was revoked."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    node: Name
    key: PublicKey
    revoked: bool = False


class KeyRing(BaseModel):
    """Every key that was ever enrolled. Its number rises with every change, so that an old ring is known as old."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: Count = 0
    nodes: tuple[NodeKey, ...] = Field(default=(), description="in order of enrolment")

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Parse a key ring; InvalidMessage with what is wrong with it."""
        try:
            ring = cls.model_validate_json(content)
        except ValidationError as error:
            raise InvalidMessage(f"this is no key ring: {first_fault(error).text}") from None
        if len(ring.by_id) != len(ring.nodes):
            raise InvalidMessage("this is no key ring: it has one key twice")
        return ring

    def to_bytes(self) -> bytes:
        """The ring as a line of JSON."""
        return self.model_dump_json().encode() + b"\n"

    @cached_property
    def by_id(self) -> Mapping[str, NodeKey]:
        """The keys by their short names."""
        return {key_id(entry.key): entry for entry in self.nodes}

    @cached_property
    def enrolled(self) -> frozenset[str]:
        """The nodes that have a key in force."""
        return frozenset(entry.node for entry in self.nodes if not entry.revoked)

    def with_key(self, node: str, key: PublicKey) -> "KeyRing":
        """The ring with one more key; ValueError for a key that is there already."""
        if key_id(key) in self.by_id:
            raise ValueError(f"key {key_id(key)} is on the ring already")
        return KeyRing(number=self.number + 1, nodes=(*self.nodes, NodeKey(node=node, key=key)))

    def without_node(self, node: str) -> "KeyRing":
        """The ring with every key of a node revoked."""
        nodes = (e.model_copy(update={"revoked": True}) if e.node == node else e for e in self.nodes)
        return KeyRing(number=self.number + 1, nodes=tuple(nodes))


class Distrusted(ValueError):
    """An update that nobody vouches for; `reason` is what it is counted under."""

    def __init__(self, reason: DistrustReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Revoked(ValueError):
    """An update that a node has signed with a key that is no longer in force."""


def open_update(ring: KeyRing, node: str, topic: str, payload: bytes) -> bytes:
    """The update's message, if a key in force of this very node has signed it. Raises Distrusted or Revoked."""
    try:
        name = take_apart(payload).key_id
    except InvalidSignature as error:
        raise Distrusted("update that is not signed", str(error)) from None
    if (entry := ring.by_id.get(name)) is None:
        raise Distrusted("signature of an unknown key", f"key {name} is not enrolled")
    if entry.node != node:
        raise Distrusted("signature of another node's key", f"key {name} is {entry.node}'s, not {node}'s")
    try:
        message = verified(entry.key, topic, payload)
    except InvalidSignature as error:
        raise Distrusted("signature that does not fit", str(error)) from None
    if entry.revoked:  # only now is it sure that the node itself asks
        raise Revoked(f"key {name} of {node} was revoked: ask the operator to enrol this node again")
    return message


@dataclass(frozen=True)
class Trust:
    """What a node believes in: its federation's root, and the newest certificate it has seen from it."""

    federation: str
    root: PublicKey
    certificate: KeyCertificate | None = None

    def certified(self, topic: str, payload: bytes) -> "Trust":
        """The trust with a certificate taken up; InvalidSignature unless the root signed it for us and it is newer."""
        message = verified(self.root, topic, payload)
        certificate = KeyCertificate.from_bytes(message)
        if certificate.federation != self.federation:
            raise InvalidSignature(f"the certificate is for federation {certificate.federation}")
        known = self.certificate
        if known is not None and certificate.number < known.number:
            raise InvalidSignature(f"certificate {certificate.number} is older than number {known.number}, seen before")
        if known is not None and certificate.number == known.number and certificate != known:
            raise InvalidSignature(f"there is another certificate of number {known.number}")
        return Trust(self.federation, self.root, certificate)

    def opened(self, address: Address, topic: str, payload: bytes, now_ns: int) -> bytes:
        """The message behind the signature that this address asks for; InvalidSignature if it is not there or false.

        `now_ns` is the wall clock: a certificate that has expired vouches for nothing.
        """
        if address.spec.signer != "coordinator":
            return payload
        if self.certificate is None:
            raise Uncertified("nothing is known yet of the coordinator's key")
        if take_apart(payload).key_id != key_id(self.certificate.key):
            raise Uncertified(f"this is not signed by {key_id(self.certificate.key)}, the coordinator's key")
        if now_ns > self.certificate.expires_at_ns:
            raise InvalidSignature(
                "the certificate of the coordinator's key has expired: run `alignfed keys rotate` and start the "
                "coordinator again; if it has not, this machine's clock is wrong"
            )
        return verified(self.certificate.key, topic, payload)


class Uncertified(InvalidSignature):
    """Signed by a key that no certificate names, as far as is known: one may be on its way."""
