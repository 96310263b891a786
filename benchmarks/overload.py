"""Ten times the load that a coordinator can take: is its memory flat, and is anything lost that had a receipt?

    .venv/bin/python benchmarks/overload.py --minutes 10 --json overload.json --write PROMISES.md

A real coordinator on a real mosquitto, without keys, and updates of 65,536 parameters, written as nodes write them,
from fifty nodes that a client of another make plays. First each node sends its next update when the last is answered:
what is answered in a second is the load that the coordinator can take. Then ten times as many are sent whatever is
answered. The broker's queue overflows, as it would, and the coordinator drops what it has no room for; nothing is sent
twice, as nodes would do. At the end every update that was told `accepted` is looked up in the journal and in the
versions. Memory is resident memory, by minute; the bar is 10 % between the second minute and any later one.
"""

import argparse
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from generated import put
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from rich.progress import Progress
from safetensors.numpy import save_file

from base_model.layout import layout_of
from base_model.reference import resolve
from broker.embedded import EmbeddedBroker
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.chunks import describe
from schemas.codec import encode
from schemas.messages import CodecId, GlobalManifest, GlobalPointer, Receipt, UpdateManifest, join_body, update_id
from schemas.topics import GlobalHead, ReceiptFor, UpdateManifestOf, route, topic_filter

FEDERATION, NODES, RANK = "overload", 50, 16
CODEC: CodecId = "kltp"
BUFFER = 200  # so that what waits in the broker is not too old when its turn comes
LAYERS, WIDTH = 4, 256
TIMES = 10.5  # so that ten are left of it when the sender loses time
WARM_S, MEASURED_S = 5.0, 20.0
QUIET_S, LONGEST_WAIT_S = 5.0, 300.0
SLICE_S = 0.01
MOST_UNDER_WAY = 20_000  # publications that the broker has not acknowledged: more would fill this process instead
MIB = 2**20
BAR = 0.1  # memory in the minute that differs most from the second, as a share of that


@dataclass
class Flood:
    """A client that plays all nodes; what it was told is kept by update."""

    port: int
    layout: Layout
    base_model: str
    body: bytes
    told: Counter[str] = field(default_factory=Counter)  # by status
    accepted: set[str] = field(default_factory=set)
    aggregated: set[str] = field(default_factory=set)
    sent: int = 0
    under_way: int = 0
    head: GlobalPointer | None = None
    heard_at: float = 0.0
    is_in_turns: bool = True  # an answer is followed by the next update

    def __enter__(self) -> "Flood":
        self.client = Client(CallbackAPIVersion.VERSION2, "flood", protocol=MQTTProtocolVersion.MQTTv5)
        self.client.max_inflight_messages_set(0)
        self.client.on_message = self._hear
        self.client.on_publish = self._published
        # on a connection of its own: behind thousands of answers, news of the head would come too late
        self.listener = Client(CallbackAPIVersion.VERSION2, "listener", protocol=MQTTProtocolVersion.MQTTv5)
        self.listener.on_message = self._follow
        for client, kind in ((self.client, ReceiptFor), (self.listener, GlobalHead)):
            client.connect("127.0.0.1", self.port)
            client.subscribe(topic_filter(FEDERATION, kind), 1)
            client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        for client in (self.client, self.listener):
            client.disconnect()
            client.loop_stop()

    def begin(self) -> None:
        """One update of each node."""
        for number in range(NODES):
            self.send(f"node-{number}")

    def send(self, node: str) -> None:
        """Publish one more update of this node, trained from the head."""
        assert self.head is not None
        manifest = UpdateManifest(
            node=node,
            boot_id="0" * 32,
            sequence=self.sent,
            base_version=self.head.version,
            base_digest=self.head.digest,
            base_model=self.base_model,
            layout=self.layout.digest,
            examples=1,
            steps=1,
            participation=0,
            loss=1.0,
            seconds=0.0,
            body=describe(self.body, CODEC),
        ).to_bytes()
        self.sent += 1
        self.under_way += 1
        topic = route(FEDERATION, UpdateManifestOf(node, update_id(manifest))).topic
        self.client.publish(topic, join_body(manifest, self.body), qos=1)

    @property
    def answered(self) -> int:
        """Updates that were taken or refused; the later word on one that was taken is not counted."""
        return sum(count for status, count in self.told.items() if status != "aggregated")

    def _published(self, *_: object) -> None:
        self.under_way -= 1

    def _follow(self, client: Client, data: object, message: MQTTMessage) -> None:
        self.head = GlobalPointer.from_bytes(bytes(message.payload))

    def _hear(self, client: Client, data: object, message: MQTTMessage) -> None:
        self.heard_at = time.monotonic()
        receipt = Receipt.from_bytes(bytes(message.payload))
        self.told[receipt.status] += 1
        if receipt.status in ("accepted", "aggregated"):
            self.accepted.add(receipt.update_id)
        if receipt.status == "aggregated":
            self.aggregated.add(receipt.update_id)
        if self.is_in_turns and receipt.status != "aggregated":
            self.send(message.topic.rsplit("/", 1)[-1])


class Memory:
    """Resident memory of a process, looked at once a second in a thread."""

    def __init__(self, pid: int) -> None:
        self._status, self.samples = Path(f"/proc/{pid}/status"), list[float]()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def by_minute(self) -> list[float]:
        """The median of each whole minute, in MiB."""
        whole = len(self.samples) // 60
        return [median(self.samples[60 * k : 60 * (k + 1)]) for k in range(whole)]

    def _look(self) -> None:
        while not self._ended.wait(1.0):
            (line,) = (line for line in self._status.read_text().splitlines() if line.startswith("VmRSS"))
            self.samples.append(int(line.split()[1]) * 1024 / MIB)


def main() -> None:
    """Measure, print, and write the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the sentence there, between its markers")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="alignfed-overload-"))
    try:
        figures = measured(folder, options.minutes)
    finally:
        shutil.rmtree(folder)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if options.write is not None:
        put(options.write, "overload", sentence(figures))
    print("\n".join(f"{name:<24}{value}" for name, value in figures.items()))


def sentence(figures: dict[str, Any]) -> str:
    """What PROMISES.md says of it."""
    memory, told, growth = figures["rss_mib_by_minute"], figures["told"], figures["rss_growth"]
    verdict = "not measured" if growth is None else "held" if abs(growth) <= BAR else "**missed**"
    per_s = {name: f"{figures[f'{name}_per_s']:,.0f}" for name in ("accepted", "decided", "offered")}
    lost = f"{figures['lost']} are lost and {figures['used_twice']} used twice"
    lines = (
        f"- {figures['times_capacity']:.1f} times what a coordinator can take, for {figures['minutes']:.0f} minutes",
        f"(`benchmarks/overload.py`): of {per_s['offered']} updates a second {per_s['decided']} answered, "
        f"{per_s['accepted']} of these accepted;",
        f"{min(memory):.1f} to {max(memory):.1f} MiB resident, minute by minute; "
        f"at most {abs(growth or 0):.1%} from the second minute on; the bar of {BAR:.0%} is {verdict}.",
        f"Of {told['accepted']:,} that were told `accepted`, {lost}",
    )
    return "\n  ".join(lines)


def measured(folder: Path, minutes: float) -> dict[str, Any]:
    """The whole of it, in this folder."""
    model = write_model(folder / "model")
    with EmbeddedBroker("mosquitto", folder / "broker") as broker:
        config = write_settings(folder, model, broker.settings.port)
        with (folder / "coordinator.log").open("wb") as log:
            command = [sys.executable, "-m", "alignfed", "coordinator", "--config", str(config)]
            coordinator = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            figures = _flood(folder, model, broker, coordinator, minutes)
        finally:
            coordinator.terminate()
            coordinator.wait(60)
    return figures


def _flood(
    folder: Path, model: Path, broker: EmbeddedBroker, coordinator: "subprocess.Popen[bytes]", minutes: float
) -> dict[str, Any]:
    resolved = resolve(str(model), folder / "cache")
    layout = layout_of(resolved, LoraConfig(rank=RANK))
    step = np.random.default_rng(0).normal(0, 1e-3, layout.size).astype(np.float32)
    body = encode(Adapter(layout, step), CODEC)
    with Flood(broker.settings.port, layout, resolved.digest, body) as flood:
        _until(lambda: flood.head is not None)
        flood.begin()
        time.sleep(WARM_S)
        before, begun = flood.answered, time.monotonic()
        time.sleep(MEASURED_S)
        capacity = (flood.answered - before) / (time.monotonic() - begun)
        flood.is_in_turns = False
        sent, answered, accepted, begun = flood.sent, flood.answered, flood.told["accepted"], time.monotonic()
        with Memory(coordinator.pid) as memory, Memory(broker.pid) as of_broker:
            _pour(flood, TIMES * capacity, 60 * minutes)
            taken_s = time.monotonic() - begun
            offered, decided = (flood.sent - sent) / taken_s, (flood.answered - answered) / taken_s
            taken = (flood.told["accepted"] - accepted) / taken_s
        _until(lambda: time.monotonic() - flood.heard_at > QUIET_S, LONGEST_WAIT_S)  # what waits in the broker
        if coordinator.poll() is not None:
            sys.exit(f"the coordinator has ended with code {coordinator.returncode}")
        coordinator.terminate()
        coordinator.wait(60)
    by_minute = memory.by_minute
    return {
        "parameters": layout.size,
        "minutes": taken_s / 60,
        "capacity_per_s": capacity,
        "offered_per_s": offered,
        "times_capacity": offered / capacity,
        "decided_per_s": decided,
        "accepted_per_s": taken,
        "sent": flood.sent,
        "told": dict(flood.told),
        "rss_mib_by_minute": [round(value, 1) for value in by_minute],
        "rss_growth": max((now / by_minute[1] - 1 for now in by_minute[2:]), key=abs, default=None),
        "broker_rss_mib_by_minute": [round(value, 1) for value in of_broker.by_minute],
        **_checked(folder / "coordinator" / "journal.db", flood),
    }


def _pour(flood: Flood, rate: float, seconds: float) -> None:
    """Send so many in a second, whatever is answered; what the broker cannot take is not sent, and the rate says so."""
    begun = time.monotonic()
    number = 0
    with Progress(transient=True) as progress:
        task = progress.add_task(f"{rate:,.0f} updates a second", total=seconds)
        while (elapsed := time.monotonic() - begun) < seconds:
            due = int(rate * elapsed) - number
            for _ in range(due):
                if flood.under_way < MOST_UNDER_WAY:
                    flood.send(f"node-{flood.sent % NODES}")
            number += due
            progress.update(task, completed=elapsed)
            time.sleep(SLICE_S)


def _checked(journal: Path, flood: Flood) -> dict[str, int]:
    """What the files say of the updates that had been accepted; not by our own readers, which check all of the file."""
    with closing(sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True)) as database:
        updates = database.execute(
            "SELECT update_id FROM updates WHERE status IN ('accepted', 'aggregated')"
        ).fetchall()
        rows = database.execute("SELECT manifest FROM versions ORDER BY version").fetchall()
    kept = {id_ for (id_,) in updates}
    versions = [GlobalManifest.from_bytes(manifest) for (manifest,) in rows]
    uses = Counter(given.update_id for manifest in versions for given in manifest.inputs)
    numbers = [manifest.version for manifest in versions]
    return {
        "versions": len(versions) - 1,
        "lost": len(flood.accepted - kept) + len(flood.aggregated - uses.keys()),
        "used_twice": sum(count > 1 for count in uses.values()),
        "gaps": sum(number != place for place, number in enumerate(numbers)),
    }


def _until(condition: Callable[[], bool], patience_s: float = 60.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"{patience_s:.0f} s have passed, and it has not come to that")
        time.sleep(0.05)


def write_model(folder: Path) -> Path:
    """The files of a model with projections alone: a coordinator without calibration reads their headers."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    names = [f"model.layers.{i}.self_attn.{name}.weight" for i in range(LAYERS) for name in ("q_proj", "v_proj")]
    save_file({name: np.zeros((WIDTH, WIDTH), np.float32) for name in names}, folder / "model.safetensors")
    return folder


def write_settings(folder: Path, model: Path, port: int) -> Path:
    """The coordinator's settings: FedBuff, and no limit for how often a node may send."""
    config = folder / "alignfed.toml"
    config.write_text(
        f"""
federation = "{FEDERATION}"
base_model = {{name = "{model}", cache_dir = "{folder / "cache"}"}}
broker = {{port = {port}}}
[coordinator]
data_dir = "{folder / "coordinator"}"
lora = {{rank = {RANK}}}
strategy = {{name = "fedbuff", buffer_size = {BUFFER}}}
limits = {{updates_per_hour = 1_000_000_000}}
"""
    )
    return config


if __name__ == "__main__":
    main()
