"""The processes that faults happen to: a real broker, coordinator and node, two processes of load nodes, and a control.

Everything has keys. Each process writes its log to a file, dies with us, and can be killed and started again. What is
said here of names and files is what the checker finds afterwards.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.embedded import EmbeddedBroker
from broker.federation_keys import enrol, init
from chaos.disk import SmallDisk
from chaos.load_nodes import LoadSettings
from chaos.proxy import FaultProxy

FEDERATION = "chaos"
NODE = "node"
LOAD = {"load-0": tuple(f"a{i}" for i in range(5)), "load-1": tuple(f"b{i}" for i in range(7))}
CONTROL = ("control-0", "control-1")
KEY_DAYS = 400
DISK_MIB = 256
BUFFER = 5
CONTROL_S = 0.6


@dataclass(frozen=True)
class Setting:
    """What all rounds share: the model, the keys, and where they lie."""

    model: Path
    cache: Path
    keys: Path

    @classmethod
    def make(cls, folder: Path, model: Path) -> "Setting":
        """The keys of every node, for a federation that trains this model."""
        setting = cls(model, folder / "cache", folder / "keys")
        init(setting.keys, FEDERATION, ("127.0.0.1",), days=KEY_DAYS)
        for name in (NODE, *CONTROL, *(name for names in LOAD.values() for name in names)):
            enrol(setting.keys, name, days=KEY_DAYS)
        return setting


@dataclass
class Process:
    """One program with its log; it ends when we end, however we do."""

    command: list[str]
    log: Path
    running: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else each start compiles us anew, as no deployment does
        tied = ["setpriv", "--pdeathsig", "KILL", "--", *self.command] if shutil.which("setpriv") else self.command
        with self.log.open("ab") as log:
            self.running = subprocess.Popen(
                tied, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    @property
    def pid(self) -> int:
        assert self.running is not None
        return self.running.pid

    @property
    def is_alive(self) -> bool:
        return self.running is not None and self.running.poll() is None

    def signal(self, number: int) -> None:
        if self.running is not None:
            self.running.send_signal(number)

    def kill(self) -> None:
        if self.running is not None:
            self.running.kill()
            self.running.wait()

    def ends_within(self, seconds: float) -> int | None:
        """Its exit code; None if it goes on."""
        assert self.running is not None
        try:
            return self.running.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self, patience_s: float = 10) -> None:
        """Ask it to end, and see to it."""
        self.signal(signal.SIGTERM)
        if self.running is not None and self.ends_within(patience_s) is None:
            self.kill()


class Federation:
    """One federation in a folder of its own; `rank` decides whether an update is one message or several."""

    def __init__(self, setting: Setting, folder: Path, rank: int, training_s: float) -> None:
        self.setting, self.folder = setting, folder
        self.witness, self.logs = folder / "witness", folder / "logs"
        for sub in (self.witness, self.logs, folder / "broker"):
            sub.mkdir(parents=True)
        self.disks = {
            "coordinator": SmallDisk(folder / "coordinator", DISK_MIB),
            "load-0": SmallDisk(folder / "load-0", DISK_MIB),
        }
        self.broker = EmbeddedBroker("mosquitto", folder / "broker", keys=setting.keys)
        self.clock = folder / "clock"
        self.clock.write_text("0")
        self.processes: dict[str, Process] = {}
        self.proxy: FaultProxy | None = None
        self.has_small_disks = all(disk.is_small for disk in self.disks.values())
        self._rank, self._training_s = rank, training_s

    @property
    def journal(self) -> Path:
        return self.folder / "coordinator" / "journal.db"

    def start(self) -> None:
        """Bring all of it up; nothing has to be waited for."""
        self.broker.__enter__()
        self.proxy = FaultProxy(self.broker.settings.port)
        self.processes["coordinator"] = self._coordinator("coordinator")
        self.processes["node"] = self._edge()
        self.processes["load-0"] = self._clients("load-0", LOAD["load-0"], self.proxy.port, "chaos.load_nodes")
        self.processes["load-1"] = self._clients("load-1", LOAD["load-1"], self._port, "chaos.load_nodes")
        self.processes["control"] = self._clients("control", CONTROL, self._port, "chaos.control")
        for process in self.processes.values():
            process.start()

    def standby(self) -> Process:
        """A second process of the coordinator, not started yet."""
        return self._coordinator(f"standby-{time.monotonic_ns()}")

    def kill_all(self) -> None:
        """Leave nothing behind but the files; safe at any moment."""
        for process in self.processes.values():
            process.kill()
        self.broker.kill()
        self.broker.stop()
        if self.proxy is not None:
            self.proxy.close()
        for disk in self.disks.values():
            disk.release()

    def wipe_broker(self) -> None:
        """Take from a broker that is dead what it had on disk."""
        shutil.rmtree(self.folder / "broker")
        (self.folder / "broker").mkdir()

    @property
    def _port(self) -> int:
        return self.broker.settings.port

    def _coordinator(self, log: str) -> Process:
        config = self._write("coordinator", {
            "security.keys": self.setting.keys / "coordinator",
            "coordinator.data_dir": self.folder / "coordinator",
            "coordinator.lora.rank": self._rank,
            "coordinator.lora.target_modules": ["q_proj", "v_proj"],
            "coordinator.strategy.name": "fedbuff",
            "coordinator.strategy.buffer_size": BUFFER,
            "coordinator.strategy.max_staleness": 100_000,
            "coordinator.limits.updates_per_hour": 10**9,
            "coordinator.limits.resend_after_s": 1,
        })  # fmt: skip
        command = [sys.executable, "-m", "chaos.wrong_clock", str(self.clock)]
        return Process([*command, "coordinator", "--config", str(config)], self.logs / f"{log}.log")

    def _edge(self) -> Process:
        examples = self.folder / "examples.jsonl"
        examples.write_text("".join(json.dumps({"prompt": f"lamp {i}", "completion": "on"}) + "\n" for i in range(8)))
        config = self._write("node", {
            "security.keys": self.setting.keys / "nodes" / NODE,
            "edge.node": NODE,
            "edge.data": examples,
            "edge.data_dir": self.folder / NODE,
            "edge.resend_after_s": 2,
            "edge.training.steps": 2,
            "edge.training.batch_size": 2,
            "edge.slowdown": 200,  # training takes seconds of processor to begin, so there is little of it
        })  # fmt: skip
        return Process([sys.executable, "-m", "alignfed", "edge", "--config", str(config)], self.logs / "node.log")

    def _clients(self, name: str, nodes: tuple[str, ...], port: int, module: str) -> Process:
        settings = LoadSettings(
            federation=FEDERATION,
            model=self.setting.model,
            cache=self.setting.cache,
            port=port,
            keys=self.setting.keys,
            folder=self.folder / name,
            witness=self.witness,
            names=nodes,
            # within a second between two kills the control must have said something that can be lost
            training_s=CONTROL_S if name == "control" else self._training_s,
        )
        path = self.folder / f"{name}.json"
        path.write_text(settings.model_dump_json())
        return Process([sys.executable, "-m", module, str(path)], self.logs / f"{name}.log")

    def _write(self, name: str, settings: dict[str, Any]) -> Path:
        """A settings file: JSON strings, numbers and arrays are TOML too."""
        every = {
            "federation": FEDERATION,
            "broker.port": self._port,
            "base_model.name": self.setting.model,
            "base_model.cache_dir": self.setting.cache,
            **settings,
        }
        path = self.folder / f"{name}.toml"
        lines = (
            f"{key} = {json.dumps(str(value) if isinstance(value, Path) else value)}\n" for key, value in every.items()
        )
        path.write_text("".join(lines))
        return path
