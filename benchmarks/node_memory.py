"""What a node needs in memory while it is idle, serves, trains, and does both, as JSON. Started by edge.py.

    python benchmarks/node_memory.py ADAPTER.safetensors LAYOUT.json EXAMPLES.jsonl

Each is a process of its own, with the parts of a real node in it: the service's modules, the serving thread, the
trainer and its process. All memory of the node's and its children is read twenty times a second: `peak_rss` and
`anonymous` are the most that was seen at once, `rss` is what is left afterwards. Pages that two processes share count
twice. MB, of a million bytes.
"""

import http.client
import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import psutil

import edge_node.service  # noqa: F401  a node's process has all of it
from base_model.examples import Example, load_examples
from base_model.reference import DEFAULT_NAME, default_cache, resolve
from base_model.settings import TrainingConfig
from edge_node.data.local_data import LocalData
from edge_node.serving.thread import Serving
from edge_node.settings import EdgeSettings, ServingSettings
from edge_node.state import AdapterTried, GlobalAdapter, StepTrained, TrainingFinished, TrainingJob
from edge_node.training.trainer import Trainer
from schemas.adapter import Adapter, Layout
from schemas.messages import GlobalPointer

MODES = {"idle": (), "serve": ("serve",), "train": ("train",), "both": ("serve", "train")}
TRAINING = TrainingConfig(steps=4, batch_size=4, learning_rate=1e-3)
PAUSE_S, PATIENCE_S = 0.05, 600
Memory = dict[str, float]


def main() -> None:
    """Measure one mode, or, without its name, all of them."""
    if sys.argv[1] in MODES:
        print(json.dumps(measured(MODES[sys.argv[1]], *map(Path, sys.argv[2:]))), flush=True)
        os._exit(0)  # the server's threads wait for more
    commands = {mode: [sys.executable, __file__, mode, *sys.argv[1:]] for mode in MODES}
    found = {
        mode: json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        for mode, command in commands.items()
    }
    print(json.dumps(found))


def measured(parts: tuple[str, ...], body: Path, layout: Path, examples: Path) -> Memory:
    """Do it, and say what it took."""
    adapter = Adapter.from_safetensors(Layout.model_validate_json(layout.read_bytes()), body.read_bytes())
    pointer = GlobalPointer(epoch=1, version=1, digest=adapter.digest, parent=None, size=1, chunks=0)
    resolved, cache = resolve(DEFAULT_NAME, default_cache()), default_cache()
    settings = EdgeSettings(node="benchmark", data=examples, training=TRAINING)
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def own(most: int) -> Sequence[Example]:
        return load_examples(examples)[:most]

    with tempfile.TemporaryDirectory() as name, Watch() as watch:
        folder = Path(name)
        port = free_port() if "serve" in parts else None
        if port is not None:
            serving = Serving(resolved, cache, ServingSettings(http=f"127.0.0.1:{port}"), None, told.put, own)
            serving.serve(pointer, adapter)
            ask(port)
        if "train" in parts:
            data = LocalData.open(examples, folder, settings.local_data)
            trainer = Trainer(resolved, cache, data, settings, told.put)
            trainer.train(TrainingJob(GlobalAdapter(pointer, adapter), sequence=1, seed=1))
            while not isinstance(event := told.get(timeout=PATIENCE_S), TrainingFinished):
                assert isinstance(event, StepTrained | AdapterTried), event
                if port is not None:
                    ask(port)
        time.sleep(1)  # what was needed for the last answer is given back
    assert "torch" not in sys.modules
    return {"rss": watch.now("rss"), "anonymous": watch.most["anonymous"], "peak_rss": watch.most["rss"]}


def ask(port: int) -> None:
    """A question over HTTP, and its whole answer; patient while the model is loading."""
    body = json.dumps({"messages": [{"role": "user", "content": "turn on the lamp " * 16}], "max_tokens": 32})
    deadline = time.monotonic() + PATIENCE_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        try:
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == 200, response.read()
            response.read()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "nobody answers"
            time.sleep(0.1)
        finally:
            connection.close()


class Watch:
    """A thread that reads the memory of this process and its children again and again."""

    def __init__(self) -> None:
        self.most = {"rss": 0.0, "anonymous": 0.0}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def now(self, name: str) -> float:
        """Memory of all processes together, in MB."""
        return round(sum(megabytes(pid)[name] for pid in pids()), 1)

    def _look(self) -> None:
        while not self._ended.wait(PAUSE_S):
            found = [megabytes(pid) for pid in pids()]
            for name in self.most:
                self.most[name] = max(self.most[name], round(sum(one[name] for one in found), 1))


def pids() -> list[int]:
    """This process and what it has started."""
    return [psutil.Process().pid, *(child.pid for child in psutil.Process().children(recursive=True))]


def megabytes(pid: int) -> Memory:
    """Resident and anonymous memory of a process; nothing of one that has just ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    except OSError:
        return {"rss": 0.0, "anonymous": 0.0}
    return {
        name: int(rollup.split(f"\n{key}:")[1].split()[0]) * 1024 / 1e6 if f"\n{key}:" in rollup else 0.0
        for name, key in (("rss", "Rss"), ("anonymous", "Anonymous"))
    }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
