"""What an operator can order of a running coordinator. Pure: how orders reach it is order_file.py's knowledge.

An order is journalled raw before the core decides on it, so that a replay obeys it at the same place.
"""

from typing import Annotated, Literal

from pydantic import Field, RootModel, ValidationError

from schemas.messages import InvalidMessage, Message, Sentence
from schemas.topics import Name


class Quarantine(Message):
    """Take nothing from a node any more, and use nothing of it that still waits."""

    kind: Literal["quarantine"] = "quarantine"
    node: Name
    reason: Sentence


class Forgive(Message):
    """End a node's quarantine, and forget what speaks against it."""

    kind: Literal["forgive"] = "forgive"
    node: Name


Order = Quarantine | Forgive


class _AnyOrder(RootModel[Annotated[Order, Field(discriminator="kind")]]):
    pass


def order_from_bytes(payload: bytes) -> Order:
    """Read an order; InvalidMessage for anything else."""
    try:
        return _AnyOrder.model_validate_json(payload).root
    except ValidationError as error:
        raise InvalidMessage(f"no order: {error.error_count()} faults") from None
