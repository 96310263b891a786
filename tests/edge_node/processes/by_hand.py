"""A node's process as its owner runs it, and the coordinator's side of its federation, played by the test."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from base_model.examples import Example
from base_model.layout import layout_of
from base_model.reference import ResolvedModel
from broker.client import Client
from broker.embedded import EmbeddedBroker
from broker.events import Message, Publication
from schemas import topics
from schemas.adapter import Adapter, LoraConfig
from schemas.chunks import describe, split
from schemas.codec import decode, encode
from schemas.messages import (
    CoordinatorState,
    GlobalManifest,
    GlobalPointer,
    NodeState,
    Receipt,
    ReleaseReport,
    UpdateManifest,
    split_body,
    update_id,
)
from tests.patience import PATIENCE_S

LORA = LoraConfig(rank=2)
EXAMPLES = tuple(Example(prompt=f"turn on lamp {number}", completion="TurnOn") for number in range(6))

NODE = """
import json, logging, sys
from base_model.settings import BaseModelSettings
from broker.settings import BrokerSettings
from edge_node.service import run
from edge_node.settings import EdgeSettings

logging.basicConfig(level="INFO", format="%(levelname)s %(message)s", stream=sys.stderr)
config = json.loads(sys.argv[1])
run(config["federation"], BaseModelSettings(**config["base_model"]), BrokerSettings(**config["broker"]),
    EdgeSettings(**config["edge"]))
"""


class NodeProcess:
    """One node as its owner runs it; `log` is what it wrote to standard error so far."""

    def __init__(self, config: dict[str, Any], log: Path, group: Path | None = None) -> None:
        self._log = log
        with log.open("ab") as output:
            command = [sys.executable, "-c", NODE, json.dumps(config)]
            if group is not None:  # a control group, which it enters before it is what it is
                command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group), *command]
            self.process = subprocess.Popen(command, stderr=output, env=os.environ | {"OMP_NUM_THREADS": "1"})

    @property
    def log(self) -> str:
        return self._log.read_text()

    def training_process(self) -> psutil.Process:
        """The process of the training under way."""
        trainings = [
            child for child in psutil.Process(self.process.pid).children() if "training" in child.cmdline()[-1]
        ]
        assert len(trainings) == 1
        return trainings[0]

    def ends(self) -> int:
        """Its exit code, once it has ended by itself."""
        return self.process.wait(PATIENCE_S)

    def is_asked_to_end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.ends()

    def says(self, text: str, patience_s: float = PATIENCE_S) -> None:
        """Wait until the log has this."""
        deadline = time.monotonic() + patience_s
        while text not in self.log:
            assert self.process.poll() is None and time.monotonic() < deadline, f"{text!r} is not in:\n{self.log}"
            time.sleep(0.05)


class Federation:
    """The coordinator's side, by hand: it publishes what the test says and hears what the node publishes."""

    def __init__(self, broker: EmbeddedBroker, resolved: ResolvedModel) -> None:
        self.name = f"test-{uuid.uuid4().hex[:8]}"
        self.resolved = resolved
        self.layout = layout_of(resolved, LORA)
        self._client = self._connect(broker)

    def _connect(self, broker: EmbeddedBroker) -> Client:
        filters = [topics.topic_filter(self.name, kind) for kind in (topics.UpdateManifestOf, topics.NodeStateOf)]
        client = Client(broker.settings, f"{self.name}-coordinator", subscriptions=filters)
        client.start()
        return client

    def comes_back(self, broker: EmbeddedBroker) -> None:
        """Connect afresh, without the patience that a client has grown while the broker was away."""
        self.close()
        self._client = self._connect(broker)

    def close(self) -> None:
        self._client.stop(1)

    def say(self, address: topics.Address, payload: bytes) -> None:
        self._client.publish(Publication(payload=payload, **topics.route(self.name, address)._asdict()))

    def announce(self, **changes: Any) -> None:
        usual: dict[str, Any] = {
            "online": True,
            "boot_id": "c0" * 16,
            "epoch": 1,
            "base_model": self.resolved.digest,
            "base_model_name": "tiny",
            "lora": LORA,
            "layout": self.layout.digest,
            "strategy": "by hand",
            "one_update_per_version": True,
            "codecs": ("int8", "fp32"),
        }
        self.say(topics.CoordinatorStateOf(), CoordinatorState(**(usual | changes)).to_bytes())

    def publish(
        self, version: int, adapter: Adapter, chunk_size: int = 4096, average: Adapter | None = None
    ) -> GlobalPointer:
        """Chunks, manifest, and the pointer last; the pointer to what would be served, the average if there is one."""
        body = encode(adapter, "safetensors")
        entry = describe(body, "safetensors", chunk_size, inline=0)
        averaged = encode(average, "safetensors") if average is not None else b""
        average_entry = describe(averaged, "safetensors", chunk_size, inline=0) if average is not None else None
        for index, chunk in enumerate(split(averaged, chunk_size) if averaged else ()):
            self.say(topics.GlobalAverageChunk(version, index), chunk)
        manifest = GlobalManifest(
            epoch=1,
            version=version,
            parent=None,
            base_model=self.resolved.digest,
            lora=LORA,
            layout=self.layout.digest,
            strategy="by hand",
            inputs=(),
            release=ReleaseReport(version=version, variant="head", judged=version),
            created_at_ns=0,
            body=entry,
            average=average_entry,
        )
        for index, chunk in enumerate(split(body, chunk_size)):
            self.say(topics.GlobalChunk(version, index), chunk)
        self.say(topics.GlobalManifestOf(version), manifest.to_bytes())
        pointer = GlobalPointer(
            epoch=1, version=version, digest=entry.sha256, parent=None, size=len(body), chunks=len(entry.chunks)
        )
        self.say(topics.GlobalHead(), pointer.to_bytes())
        if average_entry is None:
            return pointer
        sizes = {"size": len(averaged), "chunks": len(average_entry.chunks)}
        return pointer.model_copy(update={"digest": average_entry.sha256, "variant": "average", **sizes})

    def release(self, pointer: GlobalPointer) -> None:
        self.say(topics.GlobalRelease(), pointer.to_bytes())

    def answer(self, node: str, update: str, **receipt: Any) -> None:
        self.say(topics.ReceiptFor(node), Receipt(update_id=update, **receipt).to_bytes())

    def hears(self, wanted: Callable[[topics.Address, bytes], Any]) -> Any:
        """The first thing that `wanted` makes of a message from a node."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            event = self._client.next_event(1.0)
            if isinstance(event, Message):
                self._client.ack(event)
                address = topics.parse(self.name, event.topic)
                assert address is not None
                if (found := wanted(address, event.payload)) is not None:
                    return found
        raise AssertionError("the node did not say what was expected")

    def hears_update(self) -> tuple[str, UpdateManifest, Adapter]:
        """The next update: its id, its manifest, and its decoded delta."""

        def update(address: topics.Address, payload: bytes) -> tuple[str, UpdateManifest, Adapter] | None:
            if not isinstance(address, topics.UpdateManifestOf):
                return None
            head, body = split_body(payload)
            assert update_id(head) == address.update_id
            manifest = UpdateManifest.from_bytes(head)
            return address.update_id, manifest, decode(body, self.layout, manifest.body.codec)

        found: tuple[str, UpdateManifest, Adapter] = self.hears(update)
        return found

    def hears_state(self, wanted: Callable[[NodeState], bool]) -> NodeState:
        """The first state of a node that is as wanted."""

        def state(address: topics.Address, payload: bytes) -> NodeState | None:
            if not isinstance(address, topics.NodeStateOf):
                return None
            told = NodeState.from_bytes(payload)
            return told if wanted(told) else None

        found: NodeState = self.hears(state)
        return found


def asked(port: int) -> tuple[str | None, dict[str, Any]]:
    """The version that a node says has answered, and the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    body = json.dumps({"messages": [{"role": "user", "content": "turn on lamp 1"}], "max_tokens": 8})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer: dict[str, Any] = json.load(response)
    connection.close()
    return response.headers["x-adapter-version"], answer
