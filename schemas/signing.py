"""Signed payloads: a line with the key's id and the signature, then the message's bytes exactly as they are unsigned.

    {"key":"<16 hexadecimal digits>","signature":"<128 hexadecimal digits>"}\n<message>

The signature is ed25519 over a prefix, the full topic and the message, so it holds in one federation, on one topic and
for one kind of message. The line has one spelling only, so it can be checked before anything is parsed. Whose key is
believed in is schemas/trust.py's knowledge. Pure: keys are made elsewhere.
"""

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from schemas.messages import InvalidMessage, PublicKey

if TYPE_CHECKING:  # a process without keys needs none of its memory
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

HEAD_SIZE = 8 + 16 + 15 + 128 + 3  # bytes of the line with its line break
KEY_ID_DIGITS = 16

_DOMAIN = b"alignfed/v1 signed message\0"
_HEAD = re.compile(rb'\{"key":"([0-9a-f]{16})","signature":"([0-9a-f]{128})"\}\n')


class InvalidSignature(InvalidMessage):
    """A payload that is not signed, or not by the key that it should be signed by."""


class Signed(NamedTuple):
    """A signed payload in its parts; nothing is verified yet."""

    key_id: str
    signature: bytes
    message: bytes


@dataclass(frozen=True)
class SigningKey:
    """A private ed25519 key with its public half in hexadecimal digits."""

    private: "Ed25519PrivateKey" = field(repr=False, compare=False)
    public: PublicKey

    @classmethod
    def from_bytes(cls, secret: bytes) -> "SigningKey":
        """The key of these 32 secret bytes; any other number of bytes raises ValueError."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        private = Ed25519PrivateKey.from_private_bytes(secret)
        return cls(private, private.public_key().public_bytes_raw().hex())


def sign(key: SigningKey, topic: str, message: bytes) -> bytes:
    """The payload to publish on `topic`. The same key, topic and message give the same bytes."""
    signature = key.private.sign(_signed_bytes(topic, message)).hex()
    return f'{{"key":"{key_id(key.public)}","signature":"{signature}"}}\n'.encode() + message


def take_apart(payload: bytes) -> Signed:
    """The parts of a signed payload; InvalidSignature for one without a signature."""
    if (head := _HEAD.match(payload)) is None:
        raise InvalidSignature("the message is not signed, and this federation asks for signatures")
    return Signed(head[1].decode(), bytes.fromhex(head[2].decode()), payload[head.end() :])


def verified(key: PublicKey, topic: str, payload: bytes) -> bytes:
    """The message of a payload that this key has signed for this topic; InvalidSignature for any other."""
    from cryptography.exceptions import InvalidSignature as Mismatch
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    signed = take_apart(payload)
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(
            signed.signature, _signed_bytes(topic, signed.message)
        )
    except (Mismatch, ValueError):  # ValueError: some builds of OpenSSL look at the key's bytes first
        raise InvalidSignature(f"the signature on {topic[:200]!r} is not one of key {key_id(key)}") from None
    if signed.key_id != key_id(key):
        raise InvalidSignature(f"the message names key {signed.key_id}, key {key_id(key)} has signed it")
    return signed.message


def is_signed(payload: bytes) -> bool:
    """Whether a payload begins with a signature, true or not."""
    return _HEAD.match(payload) is not None


def unsigned(payload: bytes) -> bytes:
    """The message of a payload, signed or not, believed as it is: for who only looks."""
    head = _HEAD.match(payload)
    return payload if head is None else payload[head.end() :]


def key_id(key: PublicKey) -> str:
    """The short name of a public key: the first digits of its SHA-256."""
    return hashlib.sha256(bytes.fromhex(key)).hexdigest()[:KEY_ID_DIGITS]


def _signed_bytes(topic: str, message: bytes) -> bytes:
    # with its length in front, no topic and message can be read as another topic and message
    name = topic.encode("utf-8", errors="surrogatepass")
    return _DOMAIN + len(name).to_bytes(4, "big") + name + message
