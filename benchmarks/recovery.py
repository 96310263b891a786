"""What a start folds with a checkpoint and without, as the journal grows, as a ratio.

    .venv/bin/python benchmarks/recovery.py

Updates of 460,800 parameters, int8, from 16 nodes; a version of every 8. The checkpoint is as old as it gets: a
coordinator has decided for WORTH_S of processor time since. Opening is what SQLite checks of the whole file, with
it in memory. CPU seconds, not wall-clock: disks are noisy.
"""

import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from made_up_updates import LAYOUT, bodies, messages, terms

from broker.recording import Row, last_seq, transaction
from coordinator import checkpoint
from coordinator.checkpoint import WORTH_S, Checkpoint
from coordinator.core import step
from coordinator.journal import fold_history, open_journal, record
from coordinator.recovery import keep, restore_with_history
from coordinator.registry import Registry
from coordinator.watch.history import observe
from schemas.adapter import Adapter

SIZES = (250, 500, 1000, 2000)
NODES = 16
BUFFER = 8


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
    print(
        "updates   journal MB   opening s   whole fold s   from a checkpoint s   ratio   checkpoint MB   writing it s"
    )
    with tempfile.TemporaryDirectory() as folder:
        path, registry = Path(folder) / "journal.db", Registry(Path(folder) / "adapters")
        with closing(open_journal(path)) as journal:
            zeros = Adapter.zeros(LAYOUT)
            state, _, history, _ = restore_with_history(journal, registry, terms(BUFFER), zeros, 1)
            deciding, writing = 0.0, 0.0
            for number, body in enumerate(bodies(max(SIZES))):
                arrived = messages(number, body, state, NODES)
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
                if deciding > WORTH_S:
                    begun = time.process_time()
                    checkpoint.save(path, Checkpoint(last_seq(journal), state, history), registry)
                    deciding, writing = 0.0, time.process_time() - begun
    sys.exit(state.head.version != max(SIZES) // BUFFER)


if __name__ == "__main__":
    main()
