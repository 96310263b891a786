"""A container engine, a base image, and the stack of docker/compose.yaml on them, from a copy of this tree.

Nothing is pulled: the base image is made by debootstrap, unless ALIGNFED_TEST_BASE names one. Images stay as a cache
for the next run; containers, networks and volumes go.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from broker.bundle import read_bundle
from broker.client import Client
from broker.events import Message
from broker.settings import BrokerSettings
from schemas.messages import GlobalPointer, NodeState, Receipt
from schemas.signing import unsigned
from schemas.topics import GlobalHead, NodeStateOf, ReceiptFor, parse

ROOT = Path(__file__).parents[2]
FEDERATION, PROJECT, NODES = "home", "alignfedtest", 3
PACKAGES = {
    "docker": "docker.io",
    "dockerd": "docker.io",
    "docker-compose": "docker-compose",
    "debootstrap": "debootstrap",
}
BASE, MOSQUITTO = "alignfed-test-python", "alignfed-test-mosquitto"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PATIENCE_S = 900.0
ENVIRONMENT = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


def run(*command: object, **options: Any) -> str:
    """Run a program to its end; what it printed. A failure shows its last words."""
    words = [str(word) for word in command]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(words)}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return done.stdout


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A docker engine that answers: the one that runs, else one started here and ended afterwards."""
    if subprocess.run(["docker", "info"], env=ENVIRONMENT, capture_output=True, check=False).returncode == 0:
        yield
        return
    if os.geteuid() != 0:
        _cannot("no docker engine answers, and only root can start one")
    _install([name for name in PACKAGES if shutil.which(name, path=ENVIRONMENT["PATH"]) is None])
    log = tmp_path_factory.mktemp("docker") / "dockerd.log"
    with log.open("w") as output:
        daemon = subprocess.Popen(["dockerd"], env=ENVIRONMENT, stdout=output, stderr=output)
    try:
        _wait_for_engine(daemon, log)
        yield
    finally:
        daemon.terminate()
        daemon.wait(60)


def _install(missing: list[str]) -> None:
    if not missing:
        return
    if shutil.which("apt-get") is None:
        _cannot(f"{', '.join(missing)} is missing, and there is no apt-get to install it")
    policy = Path("/usr/sbin/policy-rc.d")  # asked by Debian's packages before they start a service; 101 says no
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        run("apt-get", "update", "-q")
        packages = sorted({PACKAGES[name] for name in missing})
        run("apt-get", "install", "-q", "-y", "--no-install-recommends", "iptables", *packages)
    finally:
        if ours:
            policy.unlink()


def _wait_for_engine(daemon: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 60
    while subprocess.run(["docker", "info"], env=ENVIRONMENT, capture_output=True, check=False).returncode != 0:
        if daemon.poll() is not None or time.monotonic() > deadline:
            daemon.kill()
            _cannot("dockerd does not start here; it says:\n" + "\n".join(log.read_text().splitlines()[-8:]))
        time.sleep(0.5)


def _cannot(reason: str) -> None:
    text = f"\n{'!' * 80}\nNO CONTAINER WAS TESTED: {reason}\n{'!' * 80}\n"
    print(text, file=sys.__stderr__, flush=True)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def base(engine: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with Python 3.11 and nothing of ours."""
    if named := os.environ.get("ALIGNFED_TEST_BASE"):
        return named
    if not run("docker", "images", "-q", BASE).strip():
        root = tmp_path_factory.mktemp("base") / "root"
        included = "--include=ca-certificates,python3,python3-venv"
        run("debootstrap", "--variant=minbase", included, "bookworm", root, _mirror())
        left_out = ("./proc/*", "./sys/*", "./dev/*", "./var/cache/apt/archives/*.deb", "./var/lib/apt/lists/*")
        excludes = " ".join(f"--exclude='{path}'" for path in left_out)
        run("bash", "-o", "pipefail", "-c", f"tar -C {root} {excludes} -c . | docker import - {BASE}")
        subprocess.run(["umount", root / "proc"], capture_output=True, check=False)
        shutil.rmtree(root, ignore_errors=True)
    return BASE


def _mirror() -> str:
    """Where this Debian gets its packages."""
    for sources in (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")):
        for line in sources.read_text().splitlines() if sources.exists() else ():
            words = line.split()
            if words and words[0] in ("URIs:", "deb"):
                return next(word for word in words if "://" in word)
    _cannot("there is no Debian mirror in this machine's sources")
    return ""


@pytest.fixture(scope="session")
def mosquitto(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with mosquitto and its clients, as eclipse-mosquitto has them."""
    folder = tmp_path_factory.mktemp("mosquitto")
    install = "apt-get update -q && apt-get install -q -y --no-install-recommends mosquitto mosquitto-clients"
    (folder / "Dockerfile").write_text(f"FROM {base}\nRUN {install}\n")
    run("docker", "build", "-q", "-t", MOSQUITTO, folder)
    return MOSQUITTO


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what Git has here, with what pip needs on this machine in docker/extra/."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT).split("\0")
    for name in filter(None, listed):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, folder / name)
    extra = folder / "docker" / "extra"
    torch = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", extra, torch)
    lines = ["[global]", "find-links = /extra"]
    if CERTIFICATES.exists():
        shutil.copy(CERTIFICATES, extra / "ca.crt")
        lines.append("cert = /extra/ca.crt")
    (extra / "pip.conf").write_text("\n".join(lines) + "\n")
    return folder


@dataclass
class Stack:
    """The running stack: its containers, and what an observer has seen of the federation on the broker."""

    checkout: Path
    variables: dict[str, str]
    port: int
    observer: Client | None = None
    heads: list[GlobalPointer] = field(default_factory=list)
    states: dict[str, NodeState] = field(default_factory=dict)
    receipts: list[tuple[str, Receipt]] = field(default_factory=list)

    @property
    def version(self) -> int:
        """The newest version that the head has pointed to."""
        return max((pointer.version for pointer in self.heads), default=-1)

    def compose(self, *words: str) -> str:
        """docker-compose on this stack, or `docker compose` where there is only that."""
        program = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
        files = ("-f", "docker/compose.yaml", "-f", "tests/docker/compose.test.yaml")
        done = subprocess.run(
            [*program, *files, *words],
            cwd=self.checkout,
            env={**ENVIRONMENT, **self.variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def containers(self, service: str) -> list[str]:
        """The ids of a service's containers, also of those that do not run."""
        label = f"label=com.docker.compose.service={service}"
        project = f"label=com.docker.compose.project={PROJECT}"
        return run("docker", "ps", "-aq", "--filter", label, "--filter", project).split()

    def health(self, container: str) -> str:
        return _inspect(container, "{{.State.Health.Status}}")

    def node_of(self, container: str) -> str:
        """The node that a replica is, by the file that says who holds an identity."""
        search = "import pathlib; print(*(f.parent.name for f in pathlib.Path('/nodes').glob('*/holder') "
        search += "if f.read_text() == __import__('platform').node()))"
        return run("docker", "exec", container, "python3", "-c", search).strip()

    def kill(self, container: str) -> None:
        """End a container's first process as a power cut would; not `docker kill`, after which nothing is restarted."""
        restarts = int(_inspect(container, "{{.RestartCount}}"))
        os.kill(int(_inspect(container, "{{.State.Pid}}")), 9)
        self.until(lambda: int(_inspect(container, "{{.RestartCount}}")) > restarts, "it is started again")
        self.until(lambda: self.health(container) == "healthy", "it is healthy again")

    def stop(self) -> None:
        """Stop every container in order, after the observer has left."""
        if self.observer is not None:
            self.observer.stop()
            self.observer = None
        self.compose("stop")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Watch the federation until the condition holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                logs = self.compose("logs", "--no-color", "--tail", "30")
                raise AssertionError(f"never: {what}. At version {self.version}.\n{logs}")
            self.look(0.5)

    def look(self, seconds: float) -> None:
        """Take in what the broker sends for so long."""
        until = time.monotonic() + seconds
        if self.observer is None:
            time.sleep(seconds)
            return
        while (left := until - time.monotonic()) > 0:
            event = self.observer.next_event(left)
            if isinstance(event, Message):
                self._see(event)
                self.observer.ack(event)

    def _see(self, message: Message) -> None:
        payload = unsigned(message.payload)
        match parse(FEDERATION, message.topic):
            case GlobalHead():
                self.heads.append(GlobalPointer.from_bytes(payload))
            case NodeStateOf(node):
                self.states[node] = NodeState.from_bytes(payload)
            case ReceiptFor(node):
                self.receipts.append((node, Receipt.from_bytes(payload)))


def _inspect(thing: str, template: str) -> str:
    return run("docker", "inspect", "--format", template, thing).strip()


@pytest.fixture(scope="session")
def docker() -> Callable[..., str]:
    """docker("network", ...): run it; what it printed."""
    return lambda *words: run("docker", *words)


@pytest.fixture(scope="session")
def inspect() -> Callable[[str, str], str]:
    """inspect(container or image, template)."""
    return _inspect


@pytest.fixture(scope="session")
def execute() -> Callable[..., str]:
    """execute(container, command...): run it there; what it printed, errors too."""

    def in_container(container: str, *command: str) -> str:
        words = ["docker", "exec", container, *command]
        done = subprocess.run(words, env=ENVIRONMENT, stdout=-1, stderr=subprocess.STDOUT, text=True, check=False)
        return done.stdout.strip()

    return in_container


@pytest.fixture(scope="session")
def built(checkout: Path, base: str, mosquitto: str) -> Iterator[Stack]:
    """Both images, built; nothing runs yet."""
    port, page = _free_port(), _free_port()
    variables = {
        "BASE": base,
        "MOSQUITTO_IMAGE": mosquitto,
        "EDGE_NODES": str(NODES + 1),
        "COMPOSE_PROJECT_NAME": PROJECT,
        "PAGE_PORT": str(page),
        "TEST_PORT": str(port),
    }
    stack = Stack(checkout, variables, port)
    stack.compose("build")
    yield stack
    stack.compose("down", "--volumes", "--remove-orphans")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def stack(built: Stack) -> Iterator[Stack]:
    """The stack with three edge nodes, every container healthy, and an observer on the broker."""
    built.compose("up", "-d", "--no-build", "--scale", f"edge={NODES}")
    with _observed(built):
        services = ("broker", "coordinator", "edge")
        containers = [container for service in services for container in built.containers(service)]
        assert len(containers) == 2 + NODES
        built.until(lambda: all(built.health(one) == "healthy" for one in containers), "every container is healthy")
        yield built


@contextmanager
def _observed(stack: Stack) -> Iterator[None]:
    bundle = stack.checkout / "observer"
    run("docker", "cp", f"{stack.containers('broker')[0]}:/keys/broker/observer", bundle)
    settings = read_bundle(bundle).reaches(BrokerSettings(port=stack.port))
    filters = [f"alignfed/v1/{FEDERATION}/{rest}" for rest in ("global/head", "node/+/state", "receipt/+")]
    with Client(settings, "observer-of-the-test", subscriptions=filters) as stack.observer:
        yield
    stack.observer = None
