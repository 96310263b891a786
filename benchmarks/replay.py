"""How many messages a second a replay takes in without the base model, as a ratio to reading the same rows.

    .venv/bin/python benchmarks/replay.py --json replay.json --document docs/replay.md

Two journals of int8 updates from eight nodes, four to a version: small adapters of 16,384 parameters, one message each,
and large ones of 460,800, five messages of up to 120 KiB each. The baseline reads the same rows with their checksums
and does nothing with them; in turns, in CPU seconds, because disks and neighbours are noisy. The fastest of five rounds
counts: what else runs on a processor can only make a round slower. The aim is 1,000 messages a second; whether it is
met is in the figures. With --document they become the table between the marks in that file.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from broker.recording import Row, read_rows, transaction
from coordinator.core import step
from coordinator.journal import open_journal, record
from coordinator.recovery import restore
from coordinator.registry import Registry
from coordinator.replay.fuzzing import fuzz
from coordinator.replay.inside import replay_journal
from coordinator.replay.source import open_source
from coordinator.replay.what_if import Change, what_if
from coordinator.state import FederationConfig, FederationState, Received
from coordinator.strategies import FedBuff
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.chunks import describe, split
from schemas.codec import encode
from schemas.messages import UpdateManifest, join_body, update_id
from schemas.topics import UpdateChunk, UpdateManifestOf, route

AIM = 1_000  # messages a second
UPDATES, NODES, BUFFER, ROUNDS = 400, 8, 4, 5
BEGIN, END = "<!-- generated: replay speed -->", "<!-- end -->"


def layout(modules: int, width: int) -> Layout:
    """The layout of so many modules of rank 8, `width` features in and out."""
    factors = (("A", (8, width)), ("B", (width, 8)))
    names = [(f"layer.{i:02}.lora_{name}.weight", shape) for i in range(modules) for name, shape in factors]
    return Layout(lora=LoraConfig(rank=8), tensors=tuple(names))


LAYOUTS = {"small": layout(4, 256), "large": layout(50, 576)}


def terms(adapters: Layout) -> FederationConfig:
    """A federation of FedBuff, which asks the base model nothing."""
    strategy = FedBuff(buffer_size=BUFFER)
    return FederationConfig(
        federation="bench", base_model="0" * 64, base_model_name="none", layout=adapters, strategy=strategy
    )


def messages(number: int, body: bytes, state: FederationState) -> list[Received]:
    """What a node sends for one update: chunks, then the manifest, which has a small body behind it."""
    node = f"node-{number % NODES}"
    said = UpdateManifest(
        node=node,
        boot_id="0" * 32,
        sequence=number,
        base_version=state.head.version,
        base_digest=state.head.digest,
        base_model=state.config.base_model,
        layout=state.config.layout.digest,
        examples=32,
        steps=8,
        participation=0,
        loss=1.0,
        seconds=1.0,
        body=describe(body, "int8"),
    )
    text = said.to_bytes()
    id_, parts = update_id(text), split(body) if said.body.chunks else ()
    chunks = [(route("bench", UpdateChunk(node, id_, k)).topic, chunk) for k, chunk in enumerate(parts)]
    topics = [*chunks, (route("bench", UpdateManifestOf(node, id_)).topic, text if parts else join_body(text, body))]
    return [Received(number * 10**9, topic, payload) for topic, payload in topics]


def write_journal(path: Path, adapters: Layout) -> int:
    """A journal of all updates; returns how many messages are in it."""
    random = np.random.default_rng(0)
    count = 0
    with closing(open_journal(path)) as journal:
        registry = Registry(path.with_name("adapters"))
        state, _ = restore(journal, registry, terms(adapters), Adapter.zeros(adapters), 1)
        for number in range(UPDATES):
            delta = Adapter(adapters, random.normal(0, 1e-3, adapters.size).astype(np.float32))
            with transaction(journal):
                for message in messages(number, encode(delta, "int8"), state):
                    state, effects = step(state, message)
                    record(journal, Row(message.at_ns, message.topic, message.payload), effects)
                    count += 1
    return count


def cpu_seconds(work: Callable[[], object]) -> float:
    """What a piece of work takes of the processor."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measured(adapters: Layout) -> dict[str, Any]:
    """Messages a second, reading and in each way of replaying."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.db"
        count = write_journal(path, adapters)
        if not replay_journal(path).agrees:
            sys.exit("the replay makes other versions than were recorded")
        ways: dict[str, Callable[[], object]] = {
            "read": lambda: sum(1 for _ in read_rows(path)),
            "replay": lambda: replay_journal(path),
            "what_if": lambda: what_if(open_source(path), Change(without=("node-0",))),
            "fuzz": lambda: fuzz(open_source(path), 0),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, work in ways.items():
                taken[name].append(cpu_seconds(work))
    rates = {name: count / min(seconds) for name, seconds in taken.items()}
    return {
        "parameters": adapters.size,
        "messages": count,
        "versions": UPDATES // BUFFER,
        "messages_per_second": rates,
        "ratio_to_read": {name: rates["read"] / rate for name, rate in rates.items()},
        "meets_the_aim": rates["replay"] >= AIM,
    }


def table(figures: dict[str, Any]) -> str:
    """The figures as a table of Markdown, with the machine on which they were measured."""
    columns = [f"{name}: {found['parameters']:,} parameters" for name, found in figures.items()]
    lines = [
        "| messages a second, times as long as `read` | " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|---|",
    ]
    for way in next(iter(figures.values()))["messages_per_second"]:
        cells = [f"{f['messages_per_second'][way]:,.0f}, {f['ratio_to_read'][way]:.1f}" for f in figures.values()]
        lines.append(f"| `{way}` | " + " | ".join(cells) + " |")
    verdicts = [f"{name} adapters {verdict(found)}" for name, found in figures.items()]
    said = f"The aim is {AIM:,}: {', '.join(verdicts)}. {machine()}"
    return "\n".join([*lines, "", textwrap.fill(said, 120)])


def verdict(found: dict[str, Any]) -> str:
    """Whether the aim was met, and how far off it was."""
    share = found["messages_per_second"]["replay"] / AIM - 1
    return f"are {abs(share):.0%} {'over' if share >= 0 else 'under'} it"


def machine() -> str:
    """What the figures were measured on, as far as it bears on them."""
    processor = f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    busy = f"{os.getloadavg()[2]:.1f} processes ready to run on average"
    return f"Measured on {processor}, numpy {np.__version__}, with {busy}, {time.strftime('%B %Y')}."


def written_into(document: str, text: str) -> str:
    """The document with this text between its marks."""
    before, found, rest = document.partition(BEGIN)
    if not found:
        sys.exit(f"the document has no part {BEGIN}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Measure, print, and write the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--document", type=Path, metavar="FILE", help="write them into it as a table")
    given = parser.parse_args()
    file: Path | None = given.json
    document: Path | None = given.document
    figures = {name: measured(adapters) for name, adapters in LAYOUTS.items()}
    if file is not None:
        file.write_text(json.dumps({"aim": AIM, **figures}, indent=2) + "\n", encoding="utf-8")
    if document is not None:
        document.write_text(written_into(document.read_text(encoding="utf-8"), table(figures)), encoding="utf-8")
    for name, found in figures.items():
        print(
            f"{name}: {found['messages']} messages, {found['versions']} versions of {found['parameters']:,} parameters"
        )
        for way, rate in found["messages_per_second"].items():
            print(f"  {way:<8} {rate:>9,.0f} messages/s   {found['ratio_to_read'][way]:5.1f} times a plain read")


if __name__ == "__main__":
    main()
