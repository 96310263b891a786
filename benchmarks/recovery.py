"""What a start folds with a checkpoint and without, as the journal grows, as a ratio.

    .venv/bin/python benchmarks/recovery.py

Updates of 460,800 parameters, int8, from 16 nodes; a version of every 8. The checkpoint is as old as it gets: a
coordinator has decided for CHECKPOINT_S of processor time since. Opening is what SQLite checks of the whole file, with
it in memory. CPU seconds, not wall-clock: disks are noisy.
"""

import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from broker.recording import Row, last_seq, transaction
from coordinator import checkpoint
from coordinator.checkpoint import Checkpoint
from coordinator.core import step
from coordinator.journal import fold_history, open_journal, record
from coordinator.recovery import keep, restore_with_history
from coordinator.registry import Registry
from coordinator.service import CHECKPOINT_S
from coordinator.state import FederationConfig, FederationState, Limits, Received
from coordinator.strategies import FedBuff
from coordinator.watch.history import observe
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.chunks import describe, split
from schemas.codec import encode
from schemas.messages import UpdateManifest, update_id
from schemas.topics import UpdateChunk, UpdateManifestOf, route

SIZES = (250, 500, 1000, 2000)
NODES = 16
BUFFER = 8
FACTORS = (("A", (8, 576)), ("B", (576, 8)))
LAYOUT = Layout(
    lora=LoraConfig(rank=8),
    tensors=tuple((f"layer.{i:02}.lora_{name}.weight", shape) for i in range(50) for name, shape in FACTORS),
)
CONFIG = FederationConfig(
    federation="bench",
    base_model="0" * 64,
    base_model_name="none",
    layout=LAYOUT,
    strategy=FedBuff(buffer_size=BUFFER),
    limits=Limits(updates_per_hour=1_000_000),
)


def messages(number: int, state: FederationState, random: np.random.Generator) -> list[Received]:
    """What a node sends for one update: chunks, then the manifest."""
    node = f"node-{number % NODES}"
    body = encode(Adapter(LAYOUT, random.normal(0, 1e-3, LAYOUT.size).astype(np.float32)), "int8")
    manifest = UpdateManifest(
        node=node,
        boot_id="0" * 32,
        sequence=number,
        base_version=state.head.version,
        base_digest=state.head.digest,
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


def seconds_of_opening(path: Path) -> float:
    """Processor time before anything is folded."""
    begun = time.process_time()
    open_journal(path).close()
    return time.process_time() - begun


def seconds_of_whole_fold(path: Path) -> float:
    """Processor time of a start without a checkpoint."""
    begun = time.process_time()
    for _ in fold_history(path):
        pass
    return time.process_time() - begun


def seconds_from_checkpoint(path: Path, registry: Registry) -> float:
    """Processor time of a start with one."""
    begun = time.process_time()
    since = checkpoint.load(path, registry)
    assert since is not None
    for _ in fold_history(path, since):
        pass
    return time.process_time() - begun


def main() -> None:
    """Measure and print."""
    random = np.random.default_rng(0)
    print(
        "updates   journal MB   opening s   whole fold s   from a checkpoint s   ratio   checkpoint MB   writing it s"
    )
    with tempfile.TemporaryDirectory() as folder:
        path, registry = Path(folder) / "journal.db", Registry(Path(folder) / "adapters")
        with closing(open_journal(path)) as journal:
            zeros = Adapter(LAYOUT, np.zeros(LAYOUT.size, np.float32))
            state, _, history, _ = restore_with_history(journal, registry, CONFIG, zeros, 1)
            deciding, writing = 0.0, 0.0
            for number in range(max(SIZES)):
                arrived = messages(number, state, random)
                begun = time.process_time()
                with transaction(journal):
                    for message in arrived:
                        state, effects = step(state, message)
                        record(journal, Row(message.at_ns, message.topic, message.payload), effects)
                        history = observe(history, message, effects, message.at_ns)
                        keep(registry, effects)
                deciding += time.process_time() - begun
                if number + 1 in SIZES:
                    whole, from_kept = seconds_of_whole_fold(path), seconds_from_checkpoint(path, registry)
                    sizes = path.stat().st_size / 1e6, (path.parent / checkpoint.NAME).stat().st_size / 1e6
                    print(
                        f"{number + 1:7}   {sizes[0]:10.0f}   {seconds_of_opening(path):9.2f}   {whole:12.2f}   "
                        f"{from_kept:19.2f}   "
                        f"{whole / from_kept:5.1f}   {sizes[1]:13.1f}   {writing:9.3f}"
                    )
                if deciding > CHECKPOINT_S:
                    begun = time.process_time()
                    checkpoint.save(path, Checkpoint(last_seq(journal), state, history), registry)
                    deciding, writing = 0.0, time.process_time() - begun
    sys.exit(state.head.version != max(SIZES) // BUFFER)


if __name__ == "__main__":
    main()
