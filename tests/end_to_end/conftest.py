"""A small fleet of real processes: broker, coordinator and nodes, on a randomly initialised two-layer model."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from broker.client import Client
from broker.embedded import EmbeddedBroker
from broker.events import Message
from schemas.messages import GlobalPointer, NodeState, Receipt
from schemas.topics import GlobalHead, NodeStateOf, ReceiptFor, parse
from tests.patience import PATIENCE_S

FEDERATION = "home"


@dataclass
class Fleet:
    """Processes by name, and what an observer has seen of them on the broker."""

    folder: Path
    broker: EmbeddedBroker
    observer: Client
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    pointers: list[GlobalPointer] = field(default_factory=list)
    held: dict[str, int | None] = field(default_factory=dict)
    receipts: list[tuple[str, Receipt]] = field(default_factory=list)

    @property
    def journal(self) -> Path:
        return self.folder / "coordinator" / "journal.db"

    @property
    def version(self) -> int:
        """The newest version that the head has pointed to."""
        return max((pointer.version for pointer in self.pointers), default=-1)

    def write(self, name: str, **settings: Any) -> None:
        """Write a process's configuration file: JSON strings, numbers and arrays are TOML too."""
        lines = [f"federation = {json.dumps(FEDERATION)}", f"broker.port = {self.broker.settings.port}"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        (self.folder / f"{name}.toml").write_text("\n".join(lines) + "\n")

    def start(self, name: str) -> None:
        role = "coordinator" if name == "coordinator" else "edge"
        command = [sys.executable, "-m", "alignfed", role, "--config", str(self.folder / f"{name}.toml")]
        self.processes[name] = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def until(self, condition: Callable[[], bool]) -> None:
        """Watch the broker until the condition holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"still waiting at version {self.version}; held: {self.held}"
            event = self.observer.next_event(0.2)
            if isinstance(event, Message):
                self._see(event)
                self.observer.ack(event)

    def _see(self, message: Message) -> None:
        match parse(FEDERATION, message.topic):
            case GlobalHead():
                self.pointers.append(GlobalPointer.from_bytes(message.payload))
            case NodeStateOf(node):
                self.held[node] = NodeState.from_bytes(message.payload).version
            case ReceiptFor(node):
                self.receipts.append((node, Receipt.from_bytes(message.payload)))


@pytest.fixture(params=["mosquitto", "iotcore"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path, tiny_model_dir: Path) -> Iterator[Fleet]:
    """Three nodes, the last half as fast, that make six versions of two updates each."""
    with EmbeddedBroker(request.param) as broker, Client(broker.settings, "observer", subscriptions=["#"]) as observer:
        fleet = Fleet(tmp_path, broker, observer)
        model = {"base_model.name": str(tiny_model_dir), "base_model.cache_dir": str(tmp_path / "cache")}
        fleet.write(
            "coordinator",
            **model,
            **{
                "coordinator.data_dir": str(tmp_path / "coordinator"),
                "coordinator.final_version": 6,
                "coordinator.strategy.name": "fedbuff",
                "coordinator.strategy.buffer_size": 2,
            },
        )
        for number, slowdown in enumerate((1, 1, 2)):
            name = f"node-{number}"
            examples = [{"prompt": f"lamp {number} {i}", "completion": f"on {number}"} for i in range(8)]
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
            fleet.write(
                name,
                **model,
                **{
                    "edge.node": name,
                    "edge.data": str(tmp_path / f"{name}.jsonl"),
                    "edge.data_dir": str(tmp_path / name),
                    "edge.slowdown": slowdown,
                    "edge.resend_after_s": 2,
                    "edge.training.steps": 2,
                    "edge.training.batch_size": 2,
                },
            )
        yield fleet
        for name in fleet.processes:
            fleet.kill(name)
