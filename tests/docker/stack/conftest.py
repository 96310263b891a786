"""The stack of docker/compose.yaml as it runs, and an observer who sees on its broker what the federation does."""

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from broker.bundle import read_bundle
from broker.client import Client
from broker.events import Message
from broker.settings import BrokerSettings
from schemas.messages import GlobalPointer, NodeState, Receipt
from schemas.reading import message_on
from schemas.topics import GlobalHead, NodeStateOf, ReceiptFor, parse

FEDERATION, NODES = "home", 3
WATCHED = tuple(f"alignfed/v1/{FEDERATION}/{rest}" for rest in ("global/head", "node/+/state", "receipt/+"))
SERVICES = ("broker", "coordinator", "edge", "recorder")
FILES = ("docker/compose.yaml", "docker/compose.recorder.yaml", "tests/docker/stack/compose.test.yaml")
PATIENCE_S = 900.0
STATUS = "{{if .State.Health}}{{.State.Health.Status}}{{else}}{{.State.Status}}{{end}}"


@dataclass
class Stack:
    """The running stack: its containers, and what an observer has seen of the federation on the broker."""

    project: Any
    inspect: Callable[[str, str], str]
    files: tuple[str, ...] = FILES
    observer: Client | None = None
    heads: list[GlobalPointer] = field(default_factory=list)
    states: dict[str, NodeState] = field(default_factory=dict)
    receipts: list[tuple[str, Receipt]] = field(default_factory=list)

    @property
    def version(self) -> int:
        """The newest version that the head has pointed to."""
        return max((pointer.version for pointer in self.heads), default=-1)

    def compose(self, *words: str) -> str:
        printed: str = self.project.compose(self.files, *words)
        return printed

    def containers(self, *services: str) -> list[str]:
        return [one for service in services for one in self.project.containers(service)]

    def is_well(self, container: str) -> bool:
        """Whether its health check says so; without one, whether it runs."""
        return self.inspect(container, STATUS) in ("healthy", "running")

    def node_of(self, container: str) -> str:
        """The node that a replica is, by the file that says who holds an identity."""
        search = "import pathlib; print(*(f.parent.name for f in pathlib.Path('/nodes').glob('*/holder') "
        search += "if f.read_text() == __import__('platform').node()))"
        words = ["docker", "exec", container, "python3", "-c", search]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

    def kill(self, container: str) -> None:
        """End a container's first process as a power cut would; not `docker kill`, after which nothing is restarted."""
        restarts = int(self.inspect(container, "{{.RestartCount}}"))
        os.kill(int(self.inspect(container, "{{.State.Pid}}")), 9)
        self.until(lambda: int(self.inspect(container, "{{.RestartCount}}")) > restarts, "it is started again")
        self.until(lambda: self.is_well(container), "it is healthy again")

    def stop(self, service: str) -> float:
        """Send a service SIGTERM, and wait for its end; seconds that its slowest container took."""
        before = datetime.now().astimezone()
        self.compose("stop", service)
        ends = (self.inspect(container, "{{.State.FinishedAt}}") for container in self.containers(service))
        return max((datetime.fromisoformat(end) - before).total_seconds() for end in ends)

    def leave(self) -> None:
        """Let the observer go, before its broker does."""
        if self.observer is not None:
            self.observer.stop()
            self.observer = None

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Watch the federation until the condition holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                logs = self.compose("logs", "--no-color", "--tail", "30")
                raise AssertionError(f"never: {what}. At version {self.version}.\n{logs}")
            self.look(0.5)

    def look(self, seconds: float) -> None:
        """Take in what the broker sends for so long."""
        until = time.monotonic() + seconds
        if self.observer is None:
            time.sleep(seconds)
            return
        while (left := until - time.monotonic()) > 0:
            event = self.observer.next_event(left)
            if isinstance(event, Message):
                self._see(event)
                self.observer.ack(event)

    def _see(self, message: Message) -> None:
        match parse(FEDERATION, message.topic):
            case GlobalHead() as address:
                self.heads.append(message_on(address, message.payload))
            case NodeStateOf(node) as address:
                self.states[node] = message_on(address, message.payload)
            case ReceiptFor(node) as address:
                self.receipts.append((node, message_on(address, message.payload)))

    @contextmanager
    def observed(self, settings: BrokerSettings) -> Iterator[None]:
        """Let an observer look, as long as the broker is there."""
        with Client(settings, "observer-of-the-test", subscriptions=WATCHED) as self.observer:
            yield
            self.leave()


@pytest.fixture(scope="session")
def bundle(built: Any, docker: Callable[..., str]) -> Callable[[], BrokerSettings]:
    """bundle(): how the observer reaches the stack's broker."""

    def read() -> BrokerSettings:
        folder = built.checkout / "observer"
        if not folder.exists():
            docker("cp", f"{built.containers('broker')[0]}:/keys/broker/observer", folder)
        return read_bundle(folder).reaches(BrokerSettings(port=int(built.variables["TEST_PORT"])))

    return read


@pytest.fixture(scope="session")
def stack(
    built: Any, bundle: Callable[[], BrokerSettings], inspect: Any, figures: dict[str, str], tmp_path_factory: Any
) -> Iterator[Stack]:
    """The stack with three edge nodes and a recorder, every container healthy, and an observer on the broker."""
    running = Stack(built, inspect)
    begun = time.monotonic()
    with _weighed(tmp_path_factory.mktemp("memory") / "stats", figures):
        running.compose("up", "-d", "--no-build", "--scale", f"edge={NODES}")
        with running.observed(bundle()):
            containers = running.containers(*SERVICES)
            assert len(containers) == len(SERVICES) - 1 + NODES
            running.until(lambda: all(map(running.is_well, containers)), "every container is healthy")
            took = f"{time.monotonic() - begun:.0f} s"
            figures["first start, keys made and base model downloaded, until every container is healthy"] = took
            yield running


@contextmanager
def _weighed(file: Path, figures: dict[str, str]) -> Iterator[None]:
    """Note the most memory that a container of each service has had, page cache left out, beside its limit."""
    with file.open("w") as output:
        watching = subprocess.Popen(["docker", "stats", "--format", "{{.Name}} {{.MemUsage}}"], stdout=output)
        try:
            yield
        finally:
            watching.terminate()
            watching.wait(10)
    most: dict[str, tuple[float, str]] = {}
    for service, used, limit in re.findall(r"[_-]([a-z]+)[_-]\d+ ([\d.]+[KMG]iB) / ([\d.]+[KMG]iB)", file.read_text()):
        most[service] = max(most.get(service, (0.0, "")), (_mebibytes(used), limit))
    for service in SERVICES:
        figures[f"memory of `{service}`: most used, and its limit"] = (
            f"{most[service][0]:.0f} MiB of {most[service][1]}"
        )


def _mebibytes(size: str) -> float:
    return float(size[:-3]) * {"KiB": 2**-10, "MiB": 1, "GiB": 2**10}[size[-3:]]
