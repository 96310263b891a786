"""What an operator can order of a running coordinator, and what is said of it. Pure: order_file.py is how it travels.

An order is journalled before the core decides on it, so that a replay obeys it at the same place.
"""

from typing import Annotated, Literal

from pydantic import Field, RootModel, ValidationError

from schemas.messages import Count, InvalidMessage, Message, Sentence, Variant, Version
from schemas.topics import Name

LARGEST = 4096  # bytes of one order

Scope = Literal["release", "head"]


class Quarantine(Message):
    """Take nothing from a node any more, and use nothing of it that still waits."""

    kind: Literal["quarantine"] = "quarantine"
    node: Name
    reason: Sentence


class Forgive(Message):
    """End a node's quarantine, and forget what speaks against it."""

    kind: Literal["forgive"] = "forgive"
    node: Name


class RollBack(Message):
    """Serve what an earlier version was served as; for the head, train from that version too."""

    kind: Literal["rollback"] = "rollback"
    version: Version
    scope: Scope = "release"


Order = Quarantine | Forgive | RollBack


class OrderAnswer(Message):
    """What came of an order: why it was refused, or nothing; and what nodes serve and train from since."""

    refused: Sentence | None = None
    epoch: Count
    head: Version
    release: Version
    variant: Variant


class _AnyOrder(RootModel[Annotated[Order, Field(discriminator="kind")]]):
    pass


def order_from_bytes(payload: bytes) -> Order:
    """Read an order; InvalidMessage for anything else."""
    if len(payload) > LARGEST:
        raise InvalidMessage(f"no order: {len(payload)} bytes, at most {LARGEST}")
    try:
        return _AnyOrder.model_validate_json(payload).root
    except ValidationError as error:
        raise InvalidMessage(f"no order: {error.error_count()} faults") from None
