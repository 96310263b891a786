"""Whom a node believes: certificates of the coordinator's key, signed messages, and how long a pointer is fresh. Pure.

What comes before the certificate that vouches for it is kept, one message a topic, and heard again once that is here:
a broker may send what is retained in any order.
"""

from dataclasses import replace

from edge_node.effects import Effects, Note, RememberCertificate, Warn
from edge_node.events import Heard
from edge_node.state import EdgeState
from schemas import topics
from schemas.messages import GlobalPointer
from schemas.signing import is_signed
from schemas.trust import Uncertified

NS_PER_S = 1_000_000_000
LARGEST_KEPT = 64 * 1024  # bytes of a message that waits for its certificate
KEPT = (topics.CoordinatorStateOf, topics.GlobalHead, topics.GlobalRelease)


def open_message(state: EdgeState, address: topics.Address, message: Heard) -> bytes:
    """What was signed; InvalidSignature, and Uncertified where a certificate may be on its way."""
    if state.trust is None:
        if address.spec.signer is not None and is_signed(message.payload):
            raise Uncertified("this federation signs its messages: set security.keys to the bundle of this node")
        return message.payload
    return state.trust.opened(address, message.topic, message.payload, message.wall_ns)


def keep_for_later(state: EdgeState, address: topics.Address, message: Heard) -> EdgeState:
    """Keep what cannot be verified yet, in place of what was kept of this topic."""
    if state.trust is None or not isinstance(address, KEPT) or len(message.payload) > LARGEST_KEPT:
        return state
    return replace(state, unverified={**state.unverified, message.topic: message})


def on_certificate(state: EdgeState, message: Heard) -> tuple[EdgeState, Effects, tuple[Heard, ...]]:
    """Take up a certificate; what it may vouch for is to be heard again. InvalidMessage for a false or older one."""
    if state.trust is None:
        return state, (), ()
    trust = state.trust.certified(message.topic, message.payload)
    if trust == state.trust or trust.certificate is None:
        return state, (), ()
    waiting = tuple(replace(kept, at=message.at, wall_ns=message.wall_ns) for kept in state.unverified.values())
    note = Note(f"the coordinator's key is certified: certificate {trust.certificate.number}")
    return replace(state, trust=trust, unverified={}), (RememberCertificate(message.payload), note), waiting


def expired(state: EdgeState, address: topics.Address, payload: bytes, wall_ns: int) -> str | None:
    """Why a pointer is not taken up, if it has outlived its time. Where nothing is signed, pointers do not expire."""
    if state.trust is None or not isinstance(address, topics.GlobalHead | topics.GlobalRelease):
        return None
    pointer = GlobalPointer.from_bytes(payload)
    if pointer.expires_at_ns is not None and wall_ns <= pointer.expires_at_ns:
        return None
    return (
        f"ignored an expired pointer to version {pointer.version}: the coordinator has not renewed it, somebody holds "
        "newer ones back, or this machine's clock is wrong"
    )


def fresh(state: EdgeState, address: topics.Address, payload: bytes, message: Heard) -> EdgeState:
    """Note until when the head that was just heard is fresh."""
    if state.trust is None or not isinstance(address, topics.GlobalHead):
        return state
    expires_at_ns = GlobalPointer.from_bytes(payload).expires_at_ns or message.wall_ns
    until = message.at + (expires_at_ns - message.wall_ns) / NS_PER_S
    return replace(state, fresh_until=max(until, state.fresh_until or until))


def warn_when_stale(state: EdgeState, at: float) -> tuple[EdgeState, Effects]:
    """Say once that nothing has confirmed the head in its time: coordinator away, or a broker that holds back."""
    if state.fresh_until is None or at < state.fresh_until:
        return state, ()
    text = "no pointer has been renewed in its time: the coordinator is away, or the broker holds newer ones back"
    return replace(state, fresh_until=None), (Warn(text),)
