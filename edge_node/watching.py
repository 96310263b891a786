"""What a node shows over HTTP: /healthz and /metrics, and the server for these and for others, on a thread of its own.

There is no login: who can reach the address can read. It changes nothing.
"""

import asyncio
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge_node.health import Look
from edge_node.metrics import CONTENT_TYPE, Metrics

MOST_CONNECTIONS = 256  # beyond them 503 at once, so that strangers cannot hold more than 64 MB of bodies
FAREWELL_S = 5


class HttpServer:
    """Serves an application on a socket, from `start` to `stop`."""

    def __init__(self, app: Starlette, host: str, port: int) -> None:
        """Take the address, 0 for any free port; OSError when it cannot be had."""
        self._socket = socket.create_server((host, port), family=_family(host))
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=FAREWELL_S,
            limit_concurrency=MOST_CONNECTIONS,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="http", daemon=True
        )

    @property
    def port(self) -> int:
        """The port that it listens on."""
        port: int = self._socket.getsockname()[1]
        return port

    def start(self) -> None:
        """Begin to serve; returns at once, and connections are taken from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more connections, let answers under way end for a moment, and end."""
        self._server.should_exit = True
        self._thread.join(FAREWELL_S + 1)
        self._socket.close()


@contextmanager
def served_on(http: str, app: Starlette, setting: str) -> Iterator[None]:
    """While this lasts, an application answers at `http`, HOST:PORT. OSError names the `setting` to change."""
    host, _, port = http.rpartition(":")
    try:
        server = HttpServer(app, host.strip("[]"), int(port))
    except OSError as fault:
        reason = os.strerror(fault.errno) if fault.errno else fault
        raise OSError(f"cannot answer on {http}: {reason}; choose another {setting}") from fault
    server.start()
    try:
        yield
    finally:
        server.stop()


def watching(metrics: Metrics, looks: Sequence[Look]) -> Starlette:
    """All that a node shows which does not answer questions over HTTP."""
    return Starlette(routes=watching_routes(metrics, looks))


def watching_routes(metrics: Metrics, looks: Sequence[Look]) -> list[Route]:
    """Whether the node does its work, by looking at all its parts, and its figures."""

    async def health(request: Request) -> Response:
        told = await asyncio.to_thread(lambda: [look() for look in looks])
        faults = [fault for part in told for fault in part.faults]
        about = {name: value for part in told for name, value in part.about.items()}
        body = {"status": "failing" if faults else "ok", "faults": faults, **about}
        return JSONResponse(body, 503 if faults else 200)

    async def figures(request: Request) -> Response:
        return Response(metrics.page(), headers={"content-type": CONTENT_TYPE})

    return [Route("/healthz", health, methods=["GET"]), Route("/metrics", figures, methods=["GET"])]


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
