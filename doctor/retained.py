"""What the broker keeps of the federation, and whether a process of these settings would fit in."""

from collections.abc import Sequence
from typing import NamedTuple

from base_model.reference import ResolvedModel
from broker.preflight import BrokerUnreachable, look
from broker.settings import BrokerSettings
from doctor.check import Check
from schemas.messages import CoordinatorState, GlobalPointer, InvalidMessage
from schemas.reading import message_on
from schemas.topics import CoordinatorStateOf, GlobalHead, GlobalKeys, NodeStateOf, ReceiptFor, topic_filter


class Kept(NamedTuple):
    """Retained messages as they are, None where there is none."""

    coordinator: bytes | None = None
    key: bytes | None = None
    head: bytes | None = None
    node: bytes | None = None


def look_around(broker: BrokerSettings, federation: str, node: str | None) -> tuple[Kept, Sequence[Check]]:
    """What is kept, and what is wrong with looking."""
    filters = [topic_filter(federation, kind) for kind in (CoordinatorStateOf, GlobalKeys, GlobalHead)]
    if node is not None:
        filters += [topic_filter(federation, kind, node=node) for kind in (NodeStateOf, ReceiptFor)]
    try:
        retained, refused = look(broker, filters)
    except BrokerUnreachable as fault:
        advice = "look at the broker's log: it let this client in a moment ago"
        return Kept(), (Check("coordinator", "fail", str(fault), advice),)
    advice = "the broker's access rules must let this client read there"
    text = "the broker refused the subscription to"
    checks = tuple(Check("access", "fail", f"{text} {topic}: {why}", advice) for topic, why in refused.items())
    return Kept(*(retained.get(topic) for topic in filters[:4])), checks


def check_coordinator(said: bytes | None, federation: str) -> Check:
    """Whether the federation has a coordinator that is online."""
    advice = f"start one with `alignfed coordinator --federation {federation}`, or check the name of the federation"
    if not said:
        return Check("coordinator", "warn", f"none was ever on this broker for the federation {federation}", advice)
    try:
        state = message_on(CoordinatorStateOf(), said)
    except InvalidMessage as fault:
        advice = "another release, or another program, publishes there: run the same release everywhere"
        return Check("coordinator", "fail", f"what it says of itself cannot be read: {fault}", advice)
    if not state.online:
        return Check("coordinator", "warn", "it is offline; nodes work on, and their updates wait", advice)
    return Check("coordinator", "ok", f"online, {state.strategy} on {state.base_model_name}, epoch {state.epoch}")


def announced(kept: Kept) -> CoordinatorState | None:
    """The terms that the coordinator has last announced, if they can be read."""
    try:
        return message_on(CoordinatorStateOf(), kept.coordinator) if kept.coordinator else None
    except InvalidMessage:
        return None


def head_of(kept: Kept) -> GlobalPointer | None:
    """Where the head is, if it can be read."""
    try:
        return message_on(GlobalHead(), kept.head) if kept.head else None
    except InvalidMessage:
        return None


def check_same_model(ours: ResolvedModel, announced: CoordinatorState) -> Check:
    """Whether this machine's base model is the federation's: a node with another one ends with exit code 3."""
    if ours.digest == announced.base_model:
        return Check("federation's model", "ok", f"it is {announced.base_model_name}, as here")
    found = (
        f"{ours.name} has digest {ours.digest[:16]} here, and the federation trains {announced.base_model_name} with "
        f"digest {announced.base_model[:16]}"
    )
    return Check("federation's model", "fail", found, "name that model in [base_model], with the same files")


def check_node_name(said: bytes | None, node: str) -> Check:
    """Whether another process goes by this node's name: they would push each other off the broker."""
    try:
        is_online = bool(said) and message_on(NodeStateOf(node), said or b"").online
    except InvalidMessage:
        is_online = False
    if not is_online:
        return Check("node name", "ok", f"nobody else is online as {node}")
    advice = "if that is not this very node, already running, give one of them another name: --node"
    return Check("node name", "warn", f"{node} is online already", advice)
