"""The file through which an operator's orders reach a running coordinator; it knows nothing of what they say.

`give` appends an order to `orders.db` in the coordinator's data folder; the service asks for those after the last one
it took. A coordinator that is not running takes them at its start.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from coordinator.operations.orders import Order

FILE = "orders.db"
PATIENCE_S = 10.0
_TABLE = "CREATE TABLE IF NOT EXISTS orders (number INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB NOT NULL) STRICT"


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
