"""A TCP proxy with faults: a slow link, cuts in the midst of a payload, bytes that arrive wrong. It knows no MQTT."""

import asyncio
import contextlib
import queue
import threading
from collections import deque


class FaultProxy:
    """A TCP proxy on a loopback port, for one program to reach another over a link with faults.

    Set the faults at any time: `delay_s` and `bytes_per_s` make the link slow, `cuts` are the bytes towards the target
    after which each next connection is cut, `corrupt` are those (counted in all, from 0) that arrive inverted. Exactly
    the bytes before a cut reach the target; what is on its way back is lost.
    """

    def __init__(self, target_port: int) -> None:
        self.delay_s = self.bytes_per_s = 0.0
        self.cuts: deque[int] = deque()
        self.corrupt: set[int] = set()
        self.bytes_up = self.connections = 0  # that reached the target so far
        self._target_port = target_port
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        started: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve(started)), daemon=True)
        self._thread.start()
        self.port = started.get(timeout=10)

    def cut(self) -> None:
        """Drop every connection now; new ones are let through."""
        self._loop.call_soon_threadsafe(self._drop)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, started: "queue.SimpleQueue[int]") -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        started.put(server.sockets[0].getsockname()[1])
        await self._ended.wait()
        server.close()
        self._drop()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        try:
            target_in, target_out = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            client_out.transport.abort()
            return
        self._open |= {client_out, target_out}
        self.connections += 1
        left = self.cuts.popleft() if self.cuts else None
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(self._up(client_in, target_out, client_out, left), self._down(target_in, client_out))

    async def _up(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, back: asyncio.StreamWriter, left: int | None
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(4096 if left is None else min(4096, left)):
                await self._linger(len(data))
                sink.write(bytes(b ^ 0xFF if self.bytes_up + i in self.corrupt else b for i, b in enumerate(data)))
                self.bytes_up += len(data)
                await sink.drain()
                left = None if left is None else left - len(data)
                if left == 0:
                    back.transport.abort()
                    break
        sink.close()

    async def _down(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(4096):
                await self._linger(len(data))
                sink.write(data)
                await sink.drain()
        sink.close()

    async def _linger(self, size: int) -> None:
        await asyncio.sleep(self.delay_s + (size / self.bytes_per_s if self.bytes_per_s else 0))

    def _drop(self) -> None:
        for end in self._open:
            end.transport.abort()
        self._open.clear()
