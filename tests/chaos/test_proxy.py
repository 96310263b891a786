"""The link with faults: what an old connection said can arrive behind what a new one says."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.patience import PATIENCE_S

HELD_S = 4.0  # what is said a second from now is held back, also on a busy machine


class Target:
    """A program behind the link; `heard` is what arrived, in its order, each with the number of its connection."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, bytes]] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def has_heard(self, *pieces: tuple[int, bytes]) -> bool:
        deadline = time.monotonic() + PATIENCE_S
        while self.heard != list(pieces) and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.heard == list(pieces)

    def _serve(self) -> None:
        number = 0
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._hear, args=(number, connection), daemon=True).start()
            number += 1

    def _hear(self, number: int, connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(100):
                self.heard.append((number, data))


def is_cut(client: socket.socket) -> bool:
    """Waits until it is."""
    client.settimeout(PATIENCE_S)
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.fixture
def target() -> Iterator[Target]:
    running = Target()
    yield running
    running.close()


def test_the_end_of_an_old_connection_arrives_in_the_midst_of_the_new_one(target: Target, fault_proxy: Any) -> None:
    proxy = fault_proxy(target.port)
    with socket.create_connection(("127.0.0.1", proxy.port)) as old:
        old.sendall(b"first")
        assert target.has_heard((0, b"first"))
        proxy.deliver_late(held_s=HELD_S, late_s=HELD_S)
        time.sleep(HELD_S / 4)
        old.sendall(b"late")
        assert is_cut(old)
    with socket.create_connection(("127.0.0.1", proxy.port)) as new:
        new.sendall(b"second")
        assert target.has_heard((0, b"first"), (1, b"second"), (0, b"late"))
        new.sendall(b"third")
        assert target.has_heard((0, b"first"), (1, b"second"), (0, b"late"), (1, b"third"))


def test_a_connection_that_says_nothing_is_cut_and_the_next_one_is_not_held_back(
    target: Target, fault_proxy: Any
) -> None:
    proxy = fault_proxy(target.port)
    with socket.create_connection(("127.0.0.1", proxy.port)) as idle:
        idle.sendall(b"hello")
        assert target.has_heard((0, b"hello"))
        proxy.deliver_late(held_s=0.0, late_s=PATIENCE_S)
        assert is_cut(idle)
    with socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.sendall(b"again")
        assert target.has_heard((0, b"hello"), (1, b"again"))
