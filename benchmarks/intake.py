"""What an update costs the coordinator, as a ratio to what cannot be avoided.

    .venv/bin/python benchmarks/intake.py

Both sides take in the same updates (460,800 parameters, int8, five messages each), in turns, and write to their own
SQLite file in one commit for each update. The baseline stores the raw messages, hashes the body once, decompresses it
and adds it to a vector: no checks, no state, no versions. CPU seconds, not wall-clock: disks are noisy.
"""

import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median

import numpy as np
import zstandard

from broker.recording import Row, append, open_recording, transaction
from coordinator.core import step
from coordinator.journal import fold, open_journal, record
from coordinator.recovery import restore
from coordinator.registry import Registry
from coordinator.state import FederationConfig, FederationState, Received
from coordinator.strategies import FedBuff
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.chunks import describe, split
from schemas.codec import encode
from schemas.messages import UpdateManifest, update_id
from schemas.topics import UpdateChunk, UpdateManifestOf, route

UPDATES = 100
FACTORS = (("A", (8, 576)), ("B", (576, 8)))
LAYOUT = Layout(
    lora=LoraConfig(rank=8),
    tensors=tuple((f"layer.{i:02}.lora_{name}.weight", shape) for i in range(50) for name, shape in FACTORS),
)
CONFIG = FederationConfig(
    federation="bench", base_model="0" * 64, base_model_name="none", layout=LAYOUT, strategy=FedBuff(buffer_size=4)
)


def bodies() -> Iterator[bytes]:
    """Encoded deltas of normal random values: the worst case for an entropy coder."""
    random = np.random.default_rng(0)
    for _ in range(UPDATES):
        yield encode(Adapter(LAYOUT, random.normal(0, 1e-3, LAYOUT.size).astype(np.float32)), "int8")


def messages(number: int, body: bytes, state: FederationState) -> list[Received]:
    """What a node sends for one update: chunks, then the manifest."""
    node, head = f"node-{number % 4}", state.head
    manifest = UpdateManifest(
        node=node,
        boot_id="0" * 32,
        sequence=number,
        base_version=head.version,
        base_digest=head.digest,
        base_model=CONFIG.base_model,
        layout=LAYOUT.digest,
        examples=32,
        steps=8,
        participation=0,
        loss=1.0,
        seconds=1.0,
        body=describe(body, "int8"),
    ).to_bytes()
    id_ = update_id(manifest)
    chunks = [(route("bench", UpdateChunk(node, id_, k)).topic, chunk) for k, chunk in enumerate(split(body))]
    topics = [*chunks, (route("bench", UpdateManifestOf(node, id_)).topic, manifest)]
    return [Received(number, topic, payload) for topic, payload in topics]


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.db"
        with closing(open_journal(path)) as journal, closing(open_recording(Path(folder) / "raw.db")) as raw:
            first = Adapter(LAYOUT, np.zeros(LAYOUT.size, np.float32))
            state, _ = restore(journal, Registry(Path(folder) / "adapters"), CONFIG, first, 1)
            total, ours, baseline = np.zeros(LAYOUT.size, np.float32), list[float](), list[float]()
            for number, body in enumerate(bodies()):
                arrived = messages(number, body, state)
                start = time.process_time()
                with transaction(raw):
                    for message in arrived:
                        append(raw, Row(message.at_ns, message.topic, message.payload))
                hashlib.sha256(body).digest()
                total += np.frombuffer(zstandard.decompress(body), np.int8)[-LAYOUT.size :]
                middle = time.process_time()
                with transaction(journal):
                    for message in arrived:
                        state, effects = step(state, message)
                        record(journal, Row(message.at_ns, message.topic, message.payload), effects)
                baseline.append(middle - start)
                ours.append(time.process_time() - middle)
        start = time.process_time()
        rows = sum(1 for _ in fold(path))
        folded = time.process_time() - start
    mean_ours, mean_baseline = sum(ours) / UPDATES, sum(baseline) / UPDATES
    print(
        f"{UPDATES} updates of {LAYOUT.size:,} parameters, {state.head.version} versions, {rows} rows; CPU ms an update"
    )
    print(f"  baseline     mean {1e3 * mean_baseline:6.2f}   median {1e3 * median(baseline):6.2f}")
    print(f"  coordinator  mean {1e3 * mean_ours:6.2f}   median {1e3 * median(ours):6.2f}")
    print(f"  ratio        mean {mean_ours / mean_baseline:6.2f}")
    print(f"  replay       mean {1e3 * folded / UPDATES:6.2f}   of the journal, without writing")
    sys.exit(state.head.version != UPDATES // 4)


if __name__ == "__main__":
    main()
