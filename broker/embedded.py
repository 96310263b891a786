"""A broker for one machine, on a loopback port, as a child process that does not outlive us.

Uses `mosquitto` when it is installed, else `iotcore`, which comes with this project; what either lacks is in `.limits`.
"""

import atexit
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Literal, Self

from broker.bundle import read_bundle
from broker.client import Client
from broker.config import LOOPBACK, STAYS_ROOT, deployment_config, loopback_config
from broker.events import Connected, Disconnected
from broker.federation_keys import broker_files
from broker.settings import MAX_PACKET_SIZE, BrokerSettings

Kind = Literal["mosquitto", "iotcore"]

LIMITS: dict[Kind, tuple[str, ...]] = {
    "mosquitto": ("No login and no TLS: only programs on this machine can connect.",),
    "iotcore": (
        "No login, no access rules and no TLS: only programs on this machine can connect.",
        "Nothing is kept on disk: a restart forgets sessions, queued messages and retained messages.",
        "Each topic filter keeps at most about 32 MB of messages and drops the oldest beyond that without a word.",
        "A client that resumes its session does not receive retained messages again.",
        "A client of another program whose id contains $ + # or / makes it refuse everybody until it is restarted.",
        "Install mosquitto to be rid of all but the first: apt install mosquitto, or brew install mosquitto.",
    ),
}

_START_TIMEOUT_S = 15.0
_STOP_TIMEOUT_S = 5.0
_PORT_ATTEMPTS = 3

# Linux ends the child when we die, even by SIGKILL. Set in the child before it becomes the broker; the second look at
# the parent closes the gap in which we could have died before.
_LAUNCH = """
import ctypes, os, sys
if sys.platform == "linux":
    PR_SET_PDEATHSIG, SIGKILL = 1, 9
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""

_SERVE_IOTCORE = """
import logging, sys
from iotcore import IotCoreBroker
logging.basicConfig(level="WARNING")
logging.getLogger("rumqttd").setLevel("CRITICAL")  # it logs every packet as an error
broker = IotCoreBroker(config_path=sys.argv[1])
broker.check_ports()
broker.run_forever()
"""


class BrokerFailed(RuntimeError):
    """No broker could be started; says what was tried and what the broker's log says."""


class EmbeddedBroker:
    """A broker that runs while the `with` block lasts: `.settings` connects to it, `.limits` says what it lacks.

    `data_dir` keeps mosquitto's sessions and messages for the next run; without it they go with the broker. Port 0
    takes a free one. With `keys`, the folder that `alignfed keys` made, it asks for certificates, and `.settings` are
    those of the observer; mosquitto alone can do that. Raises BrokerFailed.
    """

    def __init__(
        self,
        kind: Kind | Literal["auto"] = "auto",
        data_dir: Path | None = None,
        port: int = 0,
        keys: Path | None = None,
    ) -> None:
        self.kind: Kind = "iotcore" if kind == "iotcore" or (kind == "auto" and not find_mosquitto()) else "mosquitto"
        if keys is not None and self.kind == "iotcore":
            raise BrokerFailed("iotcore has neither TLS nor access rules: install mosquitto to use keys")
        self.settings = BrokerSettings(port=port or _free_port())
        if keys is not None:
            self.settings = read_bundle(keys / "observer").reaches(self.settings)
        self._keys = keys
        self._may_fall_back = kind == "auto" and self.kind == "mosquitto" and keys is None
        self._may_move = port == 0
        self._directory = tempfile.TemporaryDirectory(prefix="alignfed-broker-")
        self._data_dir = data_dir
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def limits(self) -> tuple[str, ...]:
        """What this broker does not do, in sentences to show."""
        return LIMITS[self.kind] if self._keys is None else ("Only programs on this machine can connect.",)

    @property
    def pid(self) -> int:
        """The process id of the broker."""
        if self._process is None:
            raise ValueError("the broker has not been started")
        return self._process.pid

    def __enter__(self) -> Self:
        atexit.register(self.stop)
        try:
            self._start_somewhere()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the broker; mosquitto writes its data first."""
        atexit.unregister(self.stop)
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._directory.cleanup()

    def kill(self) -> None:
        """End the broker at once, as a power cut would; what it has not written is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def read_access_rules_again(self) -> None:
        """Make mosquitto read its access rules again; connections stay."""
        os.kill(self.pid, signal.SIGHUP)

    def restart(self) -> None:
        """Start the broker again on the same port, after `kill` or in its place."""
        self.kill()
        self._start()

    def _start_somewhere(self) -> None:
        failures: list[str] = []
        for _ in range(_PORT_ATTEMPTS):
            try:
                return self._start()
            except BrokerFailed as failure:
                failures.append(str(failure))
            if self._may_fall_back:
                self.kind, self._may_fall_back = "iotcore", False
            elif not self._may_move:
                break
            if self._may_move:  # another program may have taken the port in the meantime
                self.settings = self.settings.model_copy(update={"port": _free_port()})
        raise BrokerFailed("\n".join(failures))

    def _start(self) -> None:
        if _accepts(self.settings):
            raise BrokerFailed(f"{self.kind} did not start: {self.settings.address} is in use by another program")
        log = Path(self._directory.name) / "broker.log"
        with log.open("ab") as output:
            self._process = _spawn(self._command(), output.fileno())
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < deadline:
            if _accepts(self.settings) and _answers(self.settings) and self._process.poll() is None:
                return
            time.sleep(0.01)
        self.kill()
        tail = "".join(f"\n  {line}" for line in log.read_text(errors="replace").splitlines()[-15:])
        raise BrokerFailed(
            f"{self.kind} did not start on {self.settings.address}; its log ends with:{tail or ' nothing'}"
        )

    def _command(self) -> list[str]:
        directory = Path(self._directory.name)
        if self.kind == "iotcore":
            config = directory / "iotcore.toml"
            config.write_text(_iotcore_config(self.settings.port), encoding="utf-8")
            return [sys.executable, "-I", "-c", _SERVE_IOTCORE, str(config)]
        program = find_mosquitto()
        if program is None:
            raise BrokerFailed("mosquitto is not installed: apt install mosquitto, or brew install mosquitto")
        data_dir = self._data_dir or directory
        data_dir.mkdir(parents=True, exist_ok=True)
        config = directory / "mosquitto.conf"
        config.write_text(self._mosquitto_config(data_dir), encoding="utf-8")
        return [program, "-c", str(config)]

    def _mosquitto_config(self, data_dir: Path) -> str:
        if self._keys is None:
            return loopback_config(self.settings.port, data_dir)
        files, rules = broker_files(self._keys / "broker"), self._keys / "broker" / "acl"
        secured = deployment_config(self.settings.port, data_dir, files, rules, LOOPBACK)
        return secured + STAYS_ROOT


def find_mosquitto() -> str | None:
    """The path of the mosquitto program, also where it hides from an ordinary user's PATH."""
    places = [os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"]
    return shutil.which("mosquitto", path=os.pathsep.join(places))


def _spawn(command: list[str], output: int) -> subprocess.Popen[bytes]:
    """Start a child that ends with us, in a session of its own: Ctrl-C in the terminal is for us, not for it."""
    launch = [sys.executable, "-I", "-c", _LAUNCH, str(os.getpid()), *command]
    started: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()

    def keep() -> None:
        try:
            child = subprocess.Popen(
                launch, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        except OSError as failure:
            started.put(failure)
            return
        started.put(child)
        child.wait()

    # Linux takes the end of the thread that started a child for the end of its parent, so this thread stays.
    threading.Thread(target=keep, name="broker keeper", daemon=True).start()
    outcome = started.get()
    if isinstance(outcome, OSError):
        raise BrokerFailed(f"cannot start {command[0]}: {outcome}") from outcome
    return outcome


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _accepts(settings: BrokerSettings) -> bool:
    try:
        socket.create_connection((settings.host, settings.port), timeout=1).close()
    except OSError:
        return False
    return True


def _answers(settings: BrokerSettings) -> bool:
    """Whether an MQTT 5 connect is answered: a port that accepts connections is not yet a broker."""
    once = settings.model_copy(update={"session_expiry_s": 0})
    with Client(once, f"alignfed-probe-{os.getpid()}", clean_start=True) as client:
        event = client.next_event(_START_TIMEOUT_S)
        while event is not None and not isinstance(event, Connected | Disconnected):
            event = client.next_event(_START_TIMEOUT_S)
    return isinstance(event, Connected)


def _iotcore_config(port: int) -> str:
    return f"""\
id = 0

[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = 8388608
max_segment_count = 4

[v5.1]
name = "v5"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 10000
max_payload_size = {MAX_PACKET_SIZE}
max_inflight_count = 20
dynamic_filters = true
"""
