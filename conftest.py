"""What all tests share: an option to write what is generated anew, and what only `make test-docker` runs."""

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
    named = any(Path(argument.partition("::")[0]).resolve().is_relative_to(CONTAINERS) for argument in config.args)
    return True if collection_path == CONTAINERS and not named else None
