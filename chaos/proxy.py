"""A TCP proxy with faults: a slow link, cuts in the midst of a payload, bytes that arrive wrong or late."""

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable


class FaultProxy:
    """A TCP proxy on a loopback port, for one program to reach another over a link with faults.

    Set the faults at any time: `delay_s` and `bytes_per_s` make the link slow, `cuts` are the bytes towards the target
    after which each next connection is cut, `cuts_down` those on the way back, `corrupt` are those towards the target
    (counted in all, from 0) that arrive inverted. Exactly the bytes before a cut get through; what is on its way in the
    other direction is lost.
    """

    def __init__(self, target_port: int) -> None:
        self.delay_s = self.bytes_per_s = 0.0
        self.cuts: deque[int] = deque()
        self.cuts_down: deque[int] = deque()
        self.corrupt: set[int] = set()
        self.bytes_up = self.bytes_down = self.connections = 0  # that got through so far
        self._target_port = target_port
        self._open: set[asyncio.StreamWriter] = set()
        self._up: dict[asyncio.StreamWriter, asyncio.Event] = {}  # towards clients: may their bytes go on?
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        started: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve(started)), daemon=True)
        self._thread.start()
        self.port = started.get(timeout=10)

    def cut(self) -> None:
        """Drop every connection now; new ones are let through."""
        self._loop.call_soon_threadsafe(self._drop)

    def deliver_late(self, held_s: float, late_s: float) -> None:
        """Hold back what clients say from now on, drop them after `held_s`, and let it arrive `late_s` after that.

        What a client takes for lost then arrives all the same, before or after what it says on its next connection.
        """
        asyncio.run_coroutine_threadsafe(self._deliver_late(held_s, late_s), self._loop)

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
        self._up[client_out] = may_go_on = asyncio.Event()
        may_go_on.set()
        up, down = (cuts.popleft() if cuts else None for cuts in (self.cuts, self.cuts_down))
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(
                self._pump(client_in, target_out, client_out, up, self._carried_up, may_go_on),
                self._pump(target_in, client_out, target_out, down, self._carried_down),
            )
        self._up.pop(client_out, None)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
        left: int | None,
        carried: Callable[[bytes], bytes],
        may_go_on: asyncio.Event | None = None,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(4096 if left is None else min(4096, left)):
                await self._linger(len(data))
                if may_go_on is not None:
                    await may_go_on.wait()
                sink.write(carried(data))
                await sink.drain()
                left = None if left is None else left - len(data)
                if left == 0:
                    back.transport.abort()
                    break
        sink.close()

    def _carried_up(self, data: bytes) -> bytes:
        arrives = bytes(b ^ 0xFF if self.bytes_up + i in self.corrupt else b for i, b in enumerate(data))
        self.bytes_up += len(data)
        return arrives

    def _carried_down(self, data: bytes) -> bytes:
        self.bytes_down += len(data)
        return data

    async def _linger(self, size: int) -> None:
        await asyncio.sleep(self.delay_s + (size / self.bytes_per_s if self.bytes_per_s else 0))

    async def _deliver_late(self, held_s: float, late_s: float) -> None:
        old = dict(self._up)
        for may_go_on in old.values():
            may_go_on.clear()
        await asyncio.sleep(held_s)
        for client_out in old:
            client_out.transport.abort()
        await asyncio.sleep(late_s)
        for may_go_on in old.values():
            may_go_on.set()

    def _drop(self) -> None:
        for end in self._open:
            end.transport.abort()
        self._open.clear()
