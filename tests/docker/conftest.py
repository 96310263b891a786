"""A container engine, a base image, and both images built on it, from a copy of this tree.

Nothing is pulled: the base image is made by debootstrap, unless ALIGNFED_TEST_BASE names one. Images stay as a cache
for the next run; containers, networks and volumes go. What is measured on the way is written into docs/deploy.md, with
--rewrite.
"""

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port

ROOT = Path(__file__).parents[2]
PROJECT, NODES = "alignfedtest", 3
FIGURES, BEGIN, END = ROOT / "docs" / "deploy.md", "<!-- generated: containers -->", "<!-- end -->"
PACKAGES = {
    "docker": "docker.io",
    "dockerd": "docker.io",
    "docker-compose": "docker-compose",
    "debootstrap": "debootstrap",
}
BASE, MOSQUITTO = "alignfed-test-python", "alignfed-test-mosquitto"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
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


@dataclass(frozen=True)
class Project:
    """What compose works on: a copy of this tree, and the variables that its files ask for."""

    checkout: Path
    variables: dict[str, str]

    def compose(self, files: Sequence[str], *words: str) -> str:
        """docker-compose on these files, or `docker compose` where there is only that; what it printed."""
        program = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
        named = [word for file in files for word in ("-f", file)]
        done = subprocess.run(
            [*program, *named, *words],
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


@pytest.fixture(scope="session")
def docker() -> Callable[..., str]:
    """docker("network", ...): run it; what it printed."""
    return lambda *words: run("docker", *words)


@pytest.fixture(scope="session")
def inspect() -> Callable[[str, str], str]:
    """inspect(container or image, template)."""
    return lambda thing, template: run("docker", "inspect", "--format", template, thing).strip()


@pytest.fixture(scope="session")
def execute() -> Callable[..., str]:
    """execute(container, command...): run it there; what it printed, errors too."""

    def in_container(container: str, *command: str) -> str:
        words = ["docker", "exec", container, *command]
        done = subprocess.run(words, env=ENVIRONMENT, stdout=-1, stderr=subprocess.STDOUT, text=True, check=False)
        return done.stdout.strip()

    return in_container


@pytest.fixture(scope="session")
def built(checkout: Path, base: str, mosquitto: str) -> Iterator[Project]:
    """Both images, built; nothing runs yet."""
    ports = {name: str(free_port()) for name in ("PAGE_PORT", "TEST_PORT", "OUTSIDE_PORT")}
    variables = {
        "BASE": base,
        "MOSQUITTO_IMAGE": mosquitto,
        "EDGE_NODES": str(NODES + 1),
        "COMPOSE_PROJECT_NAME": PROJECT,
        **ports,
    }
    project = Project(checkout, variables)
    project.compose(["docker/compose.yaml"], "build")
    yield project
    project.compose(["docker/compose.yaml", "docker/compose.recorder.yaml"], "down", "--volumes", "--remove-orphans")


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """What is measured, by what it is; with --rewrite it becomes a table in docs/deploy.md."""
    measured: dict[str, str] = {}
    yield measured
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(*(f"{what}: {value}" for what, value in measured.items()), sep="\n")
    if request.config.getoption("--rewrite"):
        before, _, rest = FIGURES.read_text(encoding="utf-8").partition(BEGIN)
        rows = "\n".join(f"| {what} | {value} |" for what, value in measured.items())
        table = f"| {_machine()} | |\n|---|---|\n{rows}"
        FIGURES.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def _machine() -> str:
    """What the figures were measured on, as far as it bears on them."""
    busy = f"{os.getloadavg()[2]:.1f} processes ready to run"
    return f"{platform.machine()}, {os.cpu_count()} processors, {busy} at the end, {time.strftime('%B %Y')}"
