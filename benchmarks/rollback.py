"""How long from `alignfed adapters rollback` until connected nodes answer with the earlier version.

    .venv/bin/python benchmarks/rollback.py --json rollback.json --write PROMISES.md

A mosquitto with TLS and access rules, a coordinator and three nodes are processes of their own, with keys. The nodes
train a tiny model until there are VERSIONS versions and serve the last. Then, TIMES times, the command goes back by one
version, and every node is asked questions over HTTP all the while: the time ends when the last node's answer names the
earlier version. It begins before the command, so Python's start is in it; the command waits for the answer itself. The
bar is BAR_S for each of them. A minute or two; FILE gets the figures, and PROMISES.md the sentence.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from generated import put

from broker.embedded import EmbeddedBroker
from broker.federation_keys import enrol, init
from chaos.tiny_model import make_tiny_model
from simulation.run import commit

NODES, VERSIONS, TIMES = ("kitchen", "hall", "office"), 11, 10
BAR_S = 5.0
PATIENCE_S = 300.0
ASK_EVERY_S = 0.02
FEDERATION, DAYS = "rollback", 100
QUESTION = json.dumps({"messages": [{"role": "user", "content": "turn on the lamp"}], "max_tokens": 1}).encode()
COORDINATOR = """
[coordinator]
data_dir = "{folder}/coordinator"
final_version = {versions}
strategy = {{name = "fedbuff", buffer_size = 2}}
"""
NODE = """
[edge]
node = "{node}"
data = "{folder}/{node}.jsonl"
data_dir = "{folder}/{node}"
training = {{steps = 2, batch_size = 2}}
serving = {{http = "127.0.0.1:{port}"}}
"""


class Federation:
    """A broker, a coordinator and nodes, each a process; `ports` are those that nodes answer on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.keys = folder, folder / "keys"
        make_tiny_model(folder / "model")
        init(self.keys, FEDERATION, ("127.0.0.1",), days=DAYS)
        self.broker = EmbeddedBroker("mosquitto", keys=self.keys)
        self.ports = {node: _free_port() for node in NODES}
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Federation":
        for node in NODES:
            enrol(self.keys, node, days=DAYS)
        self.broker.__enter__()
        self._start("coordinator", COORDINATOR.format(folder=self.folder, versions=VERSIONS))
        for node, port in self.ports.items():
            examples = ({"prompt": f"lamp {number}", "completion": f"on in the {node}"} for number in range(12))
            lines = "".join(json.dumps(example) + "\n" for example in examples)
            (self.folder / f"{node}.jsonl").write_text(lines)
            self._start(node, NODE.format(folder=self.folder, node=node, port=port))
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            process.wait(60)
        self.broker.stop()

    def wait_until_served(self, version: int) -> dict[str, float]:
        """When each node answered with this version for the first time, by the monotonic clock."""
        seen: dict[str, float] = {}
        threads = [threading.Thread(target=self._ask_until, args=(node, version, seen)) for node in NODES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if missing := set(NODES) - seen.keys():
            sys.exit(f"{', '.join(sorted(missing))} did not answer with version {version} in {PATIENCE_S:.0f} s")
        return seen

    def roll_back(self, version: int) -> None:
        """The command as an operator gives it."""
        command = [sys.executable, "-m", "alignfed", "adapters", "rollback", str(version), "--json"]
        config = ["--config", str(self.folder / "coordinator.toml")]
        subprocess.run([*command, *config], check=True, stdout=subprocess.DEVNULL)

    def _ask_until(self, node: str, version: int, seen: dict[str, float]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if version_that_answers(self.ports[node]) == str(version):
                seen[node] = time.monotonic()
                return
            time.sleep(ASK_EVERY_S)

    def _start(self, name: str, role: str) -> None:
        bundle = self.keys / ("coordinator" if name == "coordinator" else f"nodes/{name}")
        config = self.folder / f"{name}.toml"
        shared = f"""
federation = "{FEDERATION}"
broker.port = {self.broker.settings.port}
base_model = {{name = "{self.folder / "model"}", cache_dir = "{self.folder / "cache"}"}}
security.keys = "{bundle}"
"""
        config.write_text(shared + role)
        kind = "coordinator" if name == "coordinator" else "edge"
        command = [sys.executable, "-m", "alignfed", kind, "--config", str(config)]
        with (self.folder / f"{name}.log").open("wb") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))


def version_that_answers(port: int) -> str | None:
    """The adapter version that a node answers a question with, as its header says; None where it does not answer."""
    url, headers = f"http://127.0.0.1:{port}/v1/chat/completions", {"content-type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, QUESTION, headers), timeout=10) as answer:
            version: str | None = answer.headers["x-adapter-version"]
            return version
    except OSError:
        return None


def measured(folder: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    """Go back again and again, and say how long each took."""
    with Federation(folder) as federation:
        progress(f"training {VERSIONS} versions")
        federation.wait_until_served(VERSIONS)
        runs: list[dict[str, Any]] = []
        for version in range(VERSIONS - 1, VERSIONS - 1 - TIMES, -1):
            begun = time.monotonic()
            watching = _Watching(federation, version)
            federation.roll_back(version)
            answered = time.monotonic()
            seen = watching.end()
            by_node = {node: round(at - begun, 3) for node, at in sorted(seen.items())}
            slowest = max(by_node.values())
            runs.append({"to": version, "command_s": round(answered - begun, 3), "served_s": by_node, "s": slowest})
            progress(f"back to version {version}: {slowest:.2f} s")
    taken = [run["s"] for run in runs]
    worst = max(taken)
    bar = {"what": "the slowest of all", "found": worst, "bar": f"<= {BAR_S:g} s", "held": worst <= BAR_S}
    return {
        "commit": commit(),
        "nodes": len(NODES),
        "runs": runs,
        "s_median": median(taken),
        "s_max": worst,
        "bars": [bar],
    }


class _Watching:
    """Nodes are asked in the background while the command runs."""

    def __init__(self, federation: Federation, version: int) -> None:
        self._seen: dict[str, float] = {}
        self._thread = threading.Thread(target=lambda: self._seen.update(federation.wait_until_served(version)))
        self._thread.start()

    def end(self) -> dict[str, float]:
        self._thread.join()
        if not self._seen:
            sys.exit("not every node has answered with the earlier version")
        return self._seen


def sentence(figures: dict[str, Any]) -> str:
    """What PROMISES.md says of it."""
    verdict = "held" if all(bar["held"] for bar in figures["bars"]) else "**missed**"
    return (
        f"- From the command until {figures['nodes']} connected nodes answer with the earlier version, "
        f"{len(figures['runs'])} times: {figures['s_median']:.1f} s\n"
        f"  (median), {figures['s_max']:.1f} s (most); the bar of {BAR_S:g} s is {verdict} "
        f"(`benchmarks/rollback.py`, commit {figures['commit'][:7]})"
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def main() -> None:
    """Measure, print, and write the figures where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the sentence there, between its markers")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="alignfed-rollback-"))
    try:
        figures = measured(folder, lambda line: print(line, file=sys.stderr, flush=True))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if options.write is not None:
        put(options.write, "rollback", sentence(figures))
    for bar in figures["bars"]:
        print(f"{'ok  ' if bar['held'] else 'MISS'}  {bar['what']}: {bar['found']:.2f} s ({bar['bar']})")
    sys.exit(not all(bar["held"] for bar in figures["bars"]))


if __name__ == "__main__":
    main()
