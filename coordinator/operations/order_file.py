"""The one way from an operator to a coordinator: `orders.db` in its data folder. It knows nothing of what orders say.

Commands and the page `give` an order and look for its answer; the service takes those that `waiting` names, in order,
and answers each. A coordinator that is not running does so when it starts. Who may write into the folder may order;
the network cannot. Numbers rise for ever, also when the file was lost.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from coordinator.operations.orders import Order, OrderAnswer

FILE = "orders.db"
PATIENCE_S = 10.0  # with another process that writes
LOOK_EVERY_S = 0.05
MOST_WAITING = 100  # orders without an answer; more are refused
KEPT = 1000  # the newest orders whose answers can be read
_TABLE = """
CREATE TABLE IF NOT EXISTS orders (number INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB NOT NULL, answer BLOB) STRICT
"""


class OrdersRefused(OSError):
    """An order cannot be left for a coordinator; says why and what to do."""


class GivenOrder(NamedTuple):
    """An order that has no answer yet, raw."""

    number: int
    payload: bytes


def give(data_dir: Path, order: Order) -> int:
    """Leave an order for the coordinator of this folder; on return it is on disk. Its number. Raises OSError."""
    if not data_dir.is_dir():
        raise FileNotFoundError(f"{data_dir} is no coordinator's folder: name it by --data-dir")
    with _open(data_dir) as file:
        file.execute("BEGIN IMMEDIATE")
        [waiting] = file.execute("SELECT count(*) FROM orders WHERE answer IS NULL").fetchone()
        if waiting >= MOST_WAITING:
            raise OrdersRefused(f"{waiting} orders wait in {data_dir / FILE} already: start the coordinator first")
        number = file.execute("INSERT INTO orders (payload) VALUES (?)", (order.to_bytes(),)).lastrowid
        assert number is not None
        file.execute("DELETE FROM orders WHERE answer IS NOT NULL AND number <= ?", (number - KEPT,))
        file.execute("COMMIT")
    return number


def answer_of(data_dir: Path, number: int, wait_s: float = 0) -> OrderAnswer | None:
    """What came of an order, waited for; None if nothing did in that time. Raises OSError."""
    deadline = time.monotonic() + wait_s
    while True:
        with _open(data_dir) as file:
            row = file.execute("SELECT answer FROM orders WHERE number = ?", (number,)).fetchone()
        if row is not None and row[0] is not None:
            return OrderAnswer.from_bytes(row[0])
        if time.monotonic() >= deadline:
            return None
        time.sleep(LOOK_EVERY_S)


def begin(data_dir: Path, taken: int) -> None:
    """Have numbers go on after that of the last order that was taken, also in a file that is new. Raises OSError."""
    with _open(data_dir) as file:
        file.execute("BEGIN IMMEDIATE")
        counted = file.execute("SELECT seq FROM sqlite_sequence WHERE name = 'orders'").fetchone()
        if counted is None:
            file.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('orders', ?)", (taken,))
        elif counted[0] < taken:
            file.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'orders'", (taken,))
        file.execute("COMMIT")


def waiting(data_dir: Path, taken: int) -> list[GivenOrder]:
    """The orders without an answer, oldest first; `taken` is the last one's number. Raises OSError."""
    if not (data_dir / FILE).exists():
        begin(data_dir, taken)
        return []
    with _open(data_dir) as file:
        rows = file.execute("SELECT number, payload FROM orders WHERE answer IS NULL ORDER BY number").fetchall()
    return [GivenOrder(*row) for row in rows]


def answer(data_dir: Path, number: int, said: OrderAnswer) -> None:
    """Say what came of an order. Raises OSError."""
    with _open(data_dir) as file:
        file.execute("UPDATE orders SET answer = ? WHERE number = ?", (said.to_bytes(), number))


@contextmanager
def _open(data_dir: Path) -> Iterator[sqlite3.Connection]:
    path = data_dir / FILE
    try:
        with closing(sqlite3.connect(path, timeout=PATIENCE_S, isolation_level=None)) as file:
            file.execute("PRAGMA journal_mode = WAL")  # who reads waits for nobody
            file.execute("PRAGMA synchronous = FULL")
            file.execute(_TABLE)
            if len(file.execute("PRAGMA table_info(orders)").fetchall()) < 3:  # from before orders were answered
                file.execute("ALTER TABLE orders ADD COLUMN answer BLOB")
            yield file
    except sqlite3.Error as error:
        raise OSError(f"{path}: {error}; if it is damaged, delete it: no order in it is lost that was taken") from None
