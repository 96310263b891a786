"""What all tests share: an option to write what is generated anew, and what only `make test-docker` runs."""

import shutil
import subprocess
from pathlib import Path

import pytest

CONTAINERS = Path(__file__).parent / "tests" / "docker"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite",
        action="store_true",
        help="write golden transcripts and generated documents anew; read the diff before you commit it",
    )


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    """Whether the golden files are to be written instead of compared."""
    return bool(request.config.getoption("--rewrite"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Tests of containers need root and many minutes: they run when they are named."""
    named = any(path.is_relative_to(CONTAINERS) for path in _paths(config))
    return True if collection_path == CONTAINERS and not named else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say at the end of a run of everything that it was not everything."""
    if any(path in CONTAINERS.parents for path in _paths(config)):
        terminalreporter.write_sep("!", "NOT TESTED HERE: images and compose stack", yellow=True, bold=True)
        terminalreporter.write_line(f"`make test-docker` tests them. {_engine()}")


def _paths(config: pytest.Config) -> list[Path]:
    return [Path(argument.partition("::")[0]).resolve() for argument in config.args]


def _engine() -> str:
    """Whether containers can run on this machine, in a sentence."""
    if shutil.which("docker") is None:
        return "There is no docker on this machine: as root it installs what is missing, on Debian."
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        return "No docker engine answers here: as root it starts one."
    return "A docker engine answers here."
