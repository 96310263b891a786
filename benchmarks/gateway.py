"""A node as its owner runs it, measured from outside: a broker, a coordinator played by hand, and `alignfed edge`.

It knows processes and messages; which figures to take and what they must be, others decide.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from base_model.examples import Example, save_examples
from base_model.reference import ResolvedModel
from broker.client import Client
from broker.embedded import EmbeddedBroker
from broker.events import Message, Publication
from schemas import topics
from schemas.adapter import Adapter
from schemas.chunks import describe, split
from schemas.messages import (
    CoordinatorState,
    GlobalManifest,
    GlobalPointer,
    NodeState,
    Receipt,
    ReleaseReport,
)

FEDERATION, NODE = "benchmark", "gateway"
PAUSE_S, PATIENCE_S = 0.02, 180.0


@dataclass(frozen=True)
class Memory:
    """Of one process or several, in MB of a million bytes; `pss` counts pages that processes share once."""

    rss: float = 0.0
    pss: float = 0.0
    anonymous: float = 0.0

    def __add__(self, other: "Memory") -> "Memory":
        return Memory(self.rss + other.rss, self.pss + other.pss, self.anonymous + other.anonymous)

    def most(self, other: "Memory") -> "Memory":
        """The larger of each."""
        return Memory(max(self.rss, other.rss), max(self.pss, other.pss), max(self.anonymous, other.anonymous))


def memory_of(pid: int) -> Memory:
    """What a process has now; nothing where it has just ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    except OSError:
        return Memory()
    lines = (line.split() for line in rollup.splitlines()[1:])
    kilobytes = {words[0]: int(words[1]) * 1024 / 1e6 for words in lines}
    return Memory(*(kilobytes.get(name, 0.0) for name in ("Rss:", "Pss:", "Anonymous:")))


class Watch:
    """A thread that looks fifty times a second how much memory a process has, alone and with its children."""

    def __init__(self, pid: int | None = None) -> None:
        """Without a number it is this process."""
        self._process = psutil.Process(pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.node, self.together = Memory(), Memory()  # the most so far

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def forget(self) -> None:
        """What was until now no longer counts."""
        self.node, self.together = Memory(), Memory()

    def _look(self) -> None:
        while not self._ended.wait(PAUSE_S):
            try:
                children = [memory_of(child.pid) for child in self._process.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            own = memory_of(self._process.pid)
            self.node = self.node.most(own)
            self.together = self.together.most(sum(children, own))


class Coordinator:
    """The federation's side on a broker: terms, versions and receipts, and what the node says."""

    def __init__(self, broker: EmbeddedBroker, resolved: ResolvedModel, first: Adapter) -> None:
        self._resolved, self._layout = resolved, first.layout
        kinds = (topics.UpdateManifestOf, topics.NodeStateOf)
        filters = [topics.topic_filter(FEDERATION, kind) for kind in kinds]
        self._client = Client(broker.settings, "coordinator", subscriptions=filters)

    def __enter__(self) -> Self:
        self._client.start()
        terms = CoordinatorState(
            online=True,
            boot_id="c0" * 16,
            epoch=1,
            base_model=self._resolved.digest,
            base_model_name=self._resolved.name,
            lora=self._layout.lora,
            layout=self._layout.digest,
            strategy="by hand",
            one_update_per_version=True,
            codecs=("kltp",),
        )
        self._say(topics.CoordinatorStateOf(), terms.to_bytes())
        return self

    def __exit__(self, *_: object) -> None:
        self._client.stop(1)

    def publish(self, version: int, adapter: Adapter) -> None:
        """A version to train from and to serve."""
        body = adapter.to_safetensors()
        entry = describe(body, "safetensors", inline=0)
        manifest = GlobalManifest(
            epoch=1,
            version=version,
            parent=None,
            base_model=self._resolved.digest,
            lora=self._layout.lora,
            layout=self._layout.digest,
            strategy="by hand",
            inputs=(),
            release=ReleaseReport(version=version, variant="head", judged=version),
            created_at_ns=0,
            body=entry,
        )
        for index, chunk in enumerate(split(body)):
            self._say(topics.GlobalChunk(version, index), chunk)
        self._say(topics.GlobalManifestOf(version), manifest.to_bytes())
        size, chunks = len(body), len(entry.chunks)
        pointer = GlobalPointer(
            epoch=1, version=version, digest=entry.sha256, parent=None, size=size, chunks=chunks
        ).to_bytes()
        self._say(topics.GlobalHead(), pointer)
        self._say(topics.GlobalRelease(), pointer)

    def until_state(self, wanted: Callable[[NodeState], bool]) -> None:
        """Wait until the node says something like this of itself."""
        self._hear(topics.NodeStateOf, lambda _, payload: wanted(NodeState.from_bytes(payload)))

    def take_update(self) -> None:
        """Wait for the node's next update, and accept it."""

        def accept(address: Any, _: bytes) -> bool:
            receipt = Receipt(update_id=address.update_id, status="accepted")
            self._say(topics.ReceiptFor(NODE), receipt.to_bytes())
            return True

        self._hear(topics.UpdateManifestOf, accept)

    def _hear(self, kind: type, wanted: Callable[[Any, bytes], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            event = self._client.next_event(1.0)
            if not isinstance(event, Message):
                continue
            self._client.ack(event)
            address = topics.parse(FEDERATION, event.topic)
            if isinstance(address, kind) and wanted(address, event.payload):
                return
        raise AssertionError("the node did not say what was expected")

    def _say(self, address: topics.Address, payload: bytes) -> None:
        self._client.publish(Publication(payload=payload, **topics.route(FEDERATION, address)._asdict()))


@dataclass(frozen=True)
class Answer:
    """What came over HTTP: the version that it names, the text, and seconds to its first piece and to its end.

    `begun_at` is when the node had begun with it, of time.monotonic.
    """

    version: str
    begun_at: float
    text: str
    first_s: float
    whole_s: float


class Gateway:
    """A running node with its broker and its coordinator."""

    def __init__(
        self,
        folder: Path,
        resolved: ResolvedModel,
        first: Adapter,
        examples: tuple[Example, ...],
        group: Path | None = None,
        *,
        serves: bool = False,
        **edge: Any,
    ) -> None:
        self.port = _free_port()
        self._folder, self._running, self._group = folder, ExitStack(), group
        save_examples(examples, folder / "examples.jsonl")
        self._edge = {
            "node": NODE,
            "data": str(folder / "examples.jsonl"),
            "data_dir": str(folder / NODE),
            **({"serving.http": f"127.0.0.1:{self.port}"} if serves else {}),
            **edge,
        }
        self._broker = EmbeddedBroker()
        self.coordinator = Coordinator(self._broker, resolved, first)

    def __enter__(self) -> Self:
        self._running.enter_context(self._broker)
        self._running.enter_context(self.coordinator)
        settings = {"federation": FEDERATION, "broker.port": self._broker.settings.port}
        settings |= {f"edge.{name}": value for name, value in self._edge.items()}
        config = self._folder / "alignfed.toml"
        # JSON's strings, numbers and lists are TOML's too
        config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
        log = self._running.enter_context((self._folder / "log").open("wb"))
        command = [sys.executable, "-m", "alignfed", "edge", "--config", str(config)]
        if self._group is not None:  # which it enters before it is what it is
            command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self._group), *command]
        self.process = subprocess.Popen(command, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
        self._running.callback(self._end)
        self.watch = self._running.enter_context(Watch(self.process.pid))
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    @property
    def log(self) -> str:
        """What the node has logged so far."""
        return (self._folder / "log").read_text(encoding="utf-8")

    def figure(self, name: str) -> float | None:
        """One of the node's own figures, as /metrics shows it; None before there is one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        finally:
            connection.close()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), None)

    def until_figure(self, name: str, wanted: float) -> None:
        """Wait until one of its figures is at least this."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := self.figure(name)) is None or found < wanted:
            assert time.monotonic() < deadline, f"{name} does not come to {wanted}"
            time.sleep(0.1)

    def until_log(self, text: str) -> None:
        """Wait until the node has logged this."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.log:
            assert self.process.poll() is None and time.monotonic() < deadline, f"{text!r} is not in:\n{self.log}"
            time.sleep(0.02)

    def now(self) -> Memory:
        """What the node's own process has."""
        return memory_of(self.process.pid)

    def ask(self, prompt: str, tokens: int, model: str = "alignfed") -> Answer:
        """A question over HTTP, and its streamed answer."""
        body = json.dumps(
            {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "stream": True}
        )
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        begun, first, text = time.monotonic(), None, ""
        try:
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == 200, response.read()
            begun_at = time.monotonic()
            version, fingerprints = response.headers["x-adapter-version"], set[str]()
            for line in iter(response.readline, b"data: [DONE]\n"):
                assert line, f"the answer ends in its midst: {text!r}"
                if line.startswith(b"data: "):
                    event = json.loads(line.removeprefix(b"data: "))
                    assert "error" not in event, event
                    fingerprints.add(event["system_fingerprint"])
                    piece = event["choices"][0]["delta"].get("content", "")
                    first = time.monotonic() if first is None and piece else first
                    text += piece
        finally:
            connection.close()
        assert len(fingerprints) == 1, fingerprints
        ended = time.monotonic()
        return Answer(version, begun_at, text, (first or ended) - begun, ended - begun)

    def _end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
