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
from contextlib import closing
from pathlib import Path
from statistics import median

import numpy as np
import zstandard
from made_up_updates import LAYOUT, bodies, messages, terms

from broker.recording import Row, append, open_recording, transaction
from coordinator.core import step
from coordinator.journal import fold, open_journal, record
from coordinator.recovery import restore
from coordinator.registry import Registry
from schemas.adapter import Adapter

UPDATES = 100
NODES, BUFFER = 4, 4


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.db"
        with closing(open_journal(path)) as journal, closing(open_recording(Path(folder) / "raw.db")) as raw:
            first = Adapter(LAYOUT, np.zeros(LAYOUT.size, np.float32))
            state, _ = restore(journal, Registry(Path(folder) / "adapters"), terms(BUFFER), first, 1)
            total, ours, baseline = np.zeros(LAYOUT.size, np.float32), list[float](), list[float]()
            for number, body in enumerate(bodies(UPDATES)):
                arrived = messages(number, body, state, NODES)
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
    sys.exit(state.head.version != UPDATES // BUFFER)


if __name__ == "__main__":
    main()
