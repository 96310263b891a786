"""Ports for servers that a test starts: from a range that no system hands out by itself."""

import itertools
import os
import socket

# Below where Linux looks for a client's end of a connection (32768): a port that was free when a test asked is not
# taken by somebody's outgoing connection before its server is up. Every worker of pytest-xdist has its own hundreds.
_FIRST, _EACH, _WORKERS = 10_000, 500, 40
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
_ports = itertools.cycle(range(_FIRST + _EACH * _worker, _FIRST + _EACH * (_worker + 1)))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on; another each time, until all were given out."""
    for port in itertools.islice(_ports, _EACH):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closed connection's end takes none
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"all of {_EACH} ports are taken")
