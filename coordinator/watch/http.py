"""The coordinator's HTTP face: the page, its status as JSON and as events, metrics, traces, and whether all is well.

It runs on a thread of its own and only reads what the board shows and what is on disk. A fault in it never reaches the
service. There is no login: who can reach the address can read. It changes nothing; where there is a token for it,
whoever has that may leave orders for the coordinator: ordering.py.
"""

import asyncio
import logging
import os
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from broker.recording import RecordingError
from coordinator.watch.board import Board
from coordinator.watch.metrics import CONTENT_TYPE, metrics_page
from coordinator.watch.ordering import Guard, can_order, take_order
from coordinator.watch.trace import NoSuchUpdate, trace
from coordinator.watch.whole_page import policy, whole_page

log = logging.getLogger("coordinator")

MOST_CONNECTIONS = 128  # beyond them 503 at once
FAREWELL_S = 1
EVENT_EVERY_S = 1.0
SILENT_S = 30.0  # a loop that has not come by for so long hangs; aggregating large adapters takes seconds
LITTLE_DISK = 32 << 20
SAFE = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@contextmanager
def watching(http: str, data_dir: Path, federation: str, board: Board, guard: Guard) -> Iterator[None]:
    """While this lasts, whoever asks at `http`, HOST:PORT, is shown the board; whom the guard lets pass gives orders.

    Raises OSError when the address cannot be had.
    """
    host, _, port = http.rpartition(":")
    window = _Window(board, data_dir, federation, guard)
    server = _Server(window.application(), host.strip("[]"), int(port))
    server.start()
    log.info("what goes on is shown on http://%s", http)
    try:
        yield
    finally:
        window.is_closed = True
        server.stop()


class _Server:
    """Serves an application from `start` to `stop`, on a thread of its own."""

    def __init__(self, app: Starlette, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family)
        except OSError as fault:
            reason = os.strerror(fault.errno) if fault.errno else fault
            raise OSError(f"cannot show anything on {host}:{port}: {reason}; choose another --http") from fault
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

    def start(self) -> None:
        """Begin to serve; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more connections, and end."""
        self._server.should_exit = True
        self._thread.join(FAREWELL_S + 1)
        self._socket.close()


class _Window:
    """What the routes answer from."""

    def __init__(self, board: Board, data_dir: Path, federation: str, guard: Guard) -> None:
        self._board, self._data_dir, self._federation, self._guard = board, data_dir, federation, guard
        self._page = whole_page()
        self._page_headers = SAFE | {"content-security-policy": policy(self._page)}
        self._tracing = asyncio.Lock()  # a trace reads the whole journal: one at a time
        self.is_closed = False

    def application(self) -> Starlette:
        """The routes."""
        return Starlette(
            routes=[
                Route("/", self.page, methods=["GET"]),
                Route("/api/status", self.status, methods=["GET"]),
                Route("/api/events", self.events, methods=["GET"]),
                Route("/api/trace/{update_id}", self.trace, methods=["GET"]),
                Route("/api/orders", self.can_order, methods=["GET"]),
                Route("/api/orders", self.order, methods=["POST"]),
                Route("/metrics", self.metrics, methods=["GET"]),
                Route("/healthz", self.health, methods=["GET"]),
            ]
        )

    async def page(self, request: Request) -> Response:
        return Response(self._page, media_type="text/html", headers=self._page_headers)

    async def status(self, request: Request) -> Response:
        if (status := self._board.status()) is None:
            return _not_yet()
        return Response(status.model_dump_json(), media_type="application/json", headers=SAFE)

    async def metrics(self, request: Request) -> Response:
        if (status := self._board.status()) is None:
            return _not_yet()
        return Response(metrics_page(status), headers=SAFE | {"content-type": CONTENT_TYPE})

    async def events(self, request: Request) -> Response:
        return StreamingResponse(self._statuses(), media_type="text/event-stream", headers=SAFE)

    async def _statuses(self) -> AsyncIterator[str]:
        """A status every second; when the coordinator stops, the end."""
        while not self.is_closed:
            if (status := self._board.status()) is not None:
                yield f"event: status\ndata: {status.model_dump_json()}\n\n"
            await asyncio.sleep(EVENT_EVERY_S)

    async def trace(self, request: Request) -> Response:
        update_id = request.path_params["update_id"]
        try:
            async with self._tracing:
                found = await asyncio.to_thread(trace, self._data_dir, self._federation, update_id)
        except NoSuchUpdate as fault:
            return JSONResponse({"error": str(fault)}, 404, headers=SAFE)
        except RecordingError as fault:
            log.warning("%s", fault)
            return JSONResponse({"error": "the journal cannot be read now; the coordinator's log says why"}, 503)
        return Response(found.model_dump_json(), media_type="application/json", headers=SAFE)

    async def can_order(self, request: Request) -> Response:
        return await can_order(self._guard, request)

    async def order(self, request: Request) -> Response:
        return await take_order(self._guard, self._data_dir, request)

    async def health(self, request: Request) -> Response:
        faults = await asyncio.to_thread(self._faults)
        body = {"status": "failing" if faults else "ok", "faults": faults}
        return JSONResponse(body, 503 if faults else 200, headers=SAFE)

    def _faults(self) -> list[str]:
        """What keeps the coordinator from its work, in sentences."""
        facts = self._board.facts
        if facts is None or facts.process is None:
            return ["the service has not begun"]
        silent_s = (time.time_ns() - facts.turned_at_ns) / 1e9
        faults = [f"the loop has not come by for {silent_s:.0f} s"] if silent_s > SILENT_S else []
        if not facts.process.connected:
            faults.append("there is no connection to the broker")
        return faults + _faults_of_journal(self._data_dir / "journal.db")


def _faults_of_journal(path: Path) -> list[str]:
    """Why the journal cannot be written to; nothing is."""
    if (free := shutil.disk_usage(path.parent).free) < LITTLE_DISK:
        return [f"only {free >> 20} MiB are free on the journal's disk"]
    try:
        with closing(sqlite3.connect(path.resolve().as_uri() + "?mode=rw", uri=True, isolation_level=None)) as journal:
            journal.execute("BEGIN IMMEDIATE")
            journal.execute("ROLLBACK")
    except sqlite3.Error as fault:
        return [f"the journal cannot be written to: {fault}"]
    return []


def _not_yet() -> Response:
    return JSONResponse({"error": "the coordinator has not begun yet; try again in a moment"}, 503, headers=SAFE)
