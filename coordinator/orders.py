"""What an operator can order of a running coordinator, and the file through which orders reach it.

`give` appends an order to `orders.db` in the coordinator's data folder; the service asks for those after the last one
it took, and journals each raw before the core decides on it. A coordinator that is not running takes them at its start.
Nothing here knows what an order does.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, RootModel, ValidationError

from schemas.messages import InvalidMessage, Message, Sentence
from schemas.topics import Name

FILE = "orders.db"
PATIENCE_S = 10.0
_TABLE = "CREATE TABLE IF NOT EXISTS orders (number INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB NOT NULL) STRICT"


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


def give(data_dir: Path, order: Order) -> int:
    """Leave an order for the coordinator of this folder; on return it is on disk. Its number. Raises OSError."""
    if not data_dir.is_dir():
        raise FileNotFoundError(f"{data_dir} is no coordinator's folder: name it by --data-dir")
    with _open(data_dir / FILE) as connection:
        number = connection.execute("INSERT INTO orders (payload) VALUES (?)", (order.to_bytes(),)).lastrowid
        connection.commit()
    assert number is not None
    return number


def given(data_dir: Path, after: int) -> list[tuple[int, bytes]]:
    """The orders after that number, with their numbers, in order. Raises OSError."""
    if not (data_dir / FILE).exists():
        return []
    with _open(data_dir / FILE) as connection:
        return connection.execute(
            "SELECT number, payload FROM orders WHERE number > ? ORDER BY number", (after,)
        ).fetchall()


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(path, timeout=PATIENCE_S)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(_TABLE)
            yield connection
    except sqlite3.Error as error:
        raise OSError(f"{path}: {error}; if it is damaged, delete it: no order in it is lost that was taken") from None
