"""From an order as it was given to the event that is journalled, and to what the operator is told.

An order that cannot be carried out is answered and leaves no event. One that is in the journal already, because the
coordinator died before it could answer, is answered and not repeated.
"""

import sqlite3

from coordinator.journal import was_taken
from coordinator.operations.order_file import GivenOrder
from coordinator.operations.orders import OrderAnswer, RollBack, order_from_bytes
from coordinator.registry import Registry, RegistryError
from coordinator.state import FederationState, Ordered, RolledBack
from schemas.messages import MAX_SENTENCE, InvalidMessage


def event_of_order(
    given: GivenOrder, taken: int, registry: Registry, journal: sqlite3.Connection, at_ns: int
) -> Ordered | RolledBack | str | None:
    """What is to be journalled; a sentence for an order that is refused, None for one that is journalled already."""
    if given.number <= taken:
        if was_taken(journal, given.number):
            return None
        return f"orders.db is older than the journal, and order {given.number} may have been obeyed: give it again"
    try:
        order = order_from_bytes(given.payload)
        return _rolled_back(order, given, registry, at_ns) if isinstance(order, RollBack) else _plain(given, at_ns)
    except (InvalidMessage, RegistryError) as fault:
        return str(fault)[:MAX_SENTENCE]


def answer_to(event: Ordered | RolledBack | str | None, state: FederationState) -> OrderAnswer:
    """What the operator is told, with the state after it."""
    return OrderAnswer(
        refused=event if isinstance(event, str) else None,
        epoch=state.epoch,
        head=state.head.version,
        release=state.release.version,
        variant=state.release.variant,
    )


def _plain(given: GivenOrder, at_ns: int) -> Ordered:
    return Ordered(at_ns, given.number, given.payload)


def _rolled_back(order: RollBack, given: GivenOrder, registry: Registry, at_ns: int) -> RolledBack:
    """A rollback with the adapter that it goes back to: what the version was served as, for the head the head."""
    decision = registry.decision(order.version)
    is_average = decision is not None and decision.is_taken and order.scope == "release"
    variant = decision.variant if decision is not None and is_average else "head"
    body = registry.body(order.version, variant)
    return RolledBack(at_ns, given.number, order.version, variant, order.scope, body)
