"""Who may publish and read what on a federation's broker, made from the table of topics: nothing is typed in twice.

A node publishes below its own name and reads what is for all or for itself, the coordinator publishes what is its own
and reads what nodes send to it, and the observer reads everything. Whoever has a certificate may ask any node, and read
the answers that bear its own name: devices and nodes are alike here, for a broker cannot tell them apart. Where Home
Assistant is let in, it reads what it is told of nodes, and may do nothing else.
"""

from collections.abc import Iterable
from dataclasses import fields

from broker.config import AclRule
from schemas.topics import (
    ADDRESSES,
    ROOT,
    Address,
    CoordinatorStateOf,
    InferenceAnswerFor,
    InferenceRequestTo,
    NodeFiguresOf,
    NodeStateOf,
    home_assistant_filter,
)

COORDINATOR, OBSERVER, HOME_ASSISTANT = "coordinator", "observer", "home-assistant"
RESERVED = (COORDINATOR, OBSERVER, HOME_ASSISTANT, "broker")  # names that no node may have

QUESTIONS = (InferenceRequestTo, InferenceAnswerFor)
FOR_HOME_ASSISTANT = (NodeStateOf, NodeFiguresOf, CoordinatorStateOf)  # what discovery messages refer to


def federation_rules(federation: str) -> tuple[AclRule, ...]:
    """The access rules of a federation, for nodes whose user name is their own name."""
    return (
        *(_for_nodes(federation, kind) for kind in ADDRESSES),
        AclRule("write", _pattern(federation, InferenceRequestTo, node="+")),
        AclRule("read", _pattern(federation, InferenceAnswerFor, node="+", device="%u")),
        # what people ask their homes is none of the coordinator's business
        *(_for_coordinator(federation, kind) for kind in ADDRESSES if kind not in QUESTIONS),
        AclRule("read", f"{ROOT}/{federation}/#", OBSERVER),
        # a rule for everybody would let it speak as a node of its name
        *(
            AclRule("deny", _pattern(federation, kind, node=OBSERVER), OBSERVER)
            for kind in ADDRESSES
            if _is_of_node(kind)
        ),
        AclRule("readwrite", _pattern(federation, InferenceRequestTo, node="+"), OBSERVER),
        AclRule("read", "$SYS/#", OBSERVER),
        AclRule("read", "$SYS/#", COORDINATOR),
    )


def home_assistant_rules(federation: str, prefix: str) -> tuple[AclRule, ...]:
    """The access rules for discovery below this prefix: the coordinator tells of nodes, and Home Assistant reads it."""
    discovery = home_assistant_filter(prefix)
    return (
        AclRule("write", discovery, COORDINATOR),
        # what everybody with a certificate may do is not for it: it would be a node, and could read all versions
        *(
            AclRule("deny", _pattern(federation, kind), HOME_ASSISTANT)
            for kind in ADDRESSES
            if kind not in FOR_HOME_ASSISTANT
        ),
        AclRule("deny", _pattern(federation, NodeStateOf, node=HOME_ASSISTANT), HOME_ASSISTANT),
        *(AclRule("read", _pattern(federation, kind), HOME_ASSISTANT) for kind in FOR_HOME_ASSISTANT),
        AclRule("read", discovery, HOME_ASSISTANT),
    )


def denied(users: Iterable[str]) -> str:
    """Lines of an ACL file that take every right from these users, at once when mosquitto reads the file again."""
    return "".join(f"\nuser {user}\ntopic deny #\n" for user in sorted(users))


def _for_nodes(federation: str, kind: type[Address]) -> AclRule:
    # its own topics a node may also read: preflight checks look whether what is published there arrives
    return AclRule("readwrite" if _is_of_node(kind) else "read", _pattern(federation, kind, node="%u"))


def _is_of_node(kind: type[Address]) -> bool:
    return kind.spec.sender == "node"


def _for_coordinator(federation: str, kind: type[Address]) -> AclRule:
    is_own = kind.spec.sender == "coordinator"
    return AclRule("readwrite" if is_own else "read", _pattern(federation, kind, node="+"), COORDINATOR)


def _pattern(federation: str, kind: type[Address], **named: str) -> str:
    names = {field.name: "+" for field in fields(kind)} | named
    return f"{ROOT}/{federation}/{kind.spec.pattern.format(**names)}"
