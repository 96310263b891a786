"""The command line as people use it: real processes of `alignfed`, a real broker, a real federation of one node."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from base_model.examples import Example, save_examples
from broker.embedded import EmbeddedBroker
from broker.settings import BrokerSettings
from coordinator.journal import fold
from coordinator.registry import Registry
from tests.patience import PATIENCE_S

ALIGNFED = str(Path(sys.executable).with_name("alignfed"))

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def alignfed(tmp_path) -> Run:
    """alignfed("list", ..., NAME="value"): run it to its end in a folder of its own, with environment variables."""

    def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ALIGNFED, *map(str, words)],
            cwd=tmp_path,
            env=environment(variables),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    return run


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """start("broker", ...): a process that goes on; what is still running after the test is killed."""
    processes = []

    def launch(*words: object) -> subprocess.Popen[str]:
        processes.append(launched(tmp_path, *words))
        return processes[-1]

    yield launch
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def broker() -> Iterator[BrokerSettings]:
    """A broker that runs as long as the tests do."""
    with EmbeddedBroker() as running:
        yield running.settings


@dataclass(frozen=True)
class Federated:
    """What a federation of one node left behind: its settings file, its coordinator's folder, its exit codes."""

    config: Path
    data_dir: Path
    exit_codes: tuple[int, int]
    log: str


@pytest.fixture(scope="session")
def federated(tmp_path_factory, tiny_model_dir, broker) -> Federated:
    """`alignfed coordinator` and `alignfed edge` have made two versions and were stopped by SIGTERM.

    The first has an anchor, and of the second it was decided whether nodes serve it.
    """
    folder = tmp_path_factory.mktemp("federated")
    save_examples((Example(prompt="turn on the lamp", completion="on"),) * 4, folder / "examples.jsonl")
    calibration = (Example(prompt="turn on the fan", completion="on"), Example(prompt="stop", completion="off"))
    save_examples(calibration, folder / "calibration.jsonl")
    config = folder / "federation.toml"
    config.write_text(
        f"""
        federation = "cli"
        base_model = {{name = "{tiny_model_dir}", cache_dir = "cache"}}
        broker.port = {broker.port}
        [coordinator]
        data_dir = "coordinator"
        final_version = 2
        lora = {{rank = 1}}
        strategy = {{name = "alignfed", buffer_size = 1, release = {{choose = "gated", decay = 0.5}}}}
        calibration = {{data = "calibration.jsonl", anchor_examples = 1, gate_examples = 1, training = {{steps = 1}}}}
        [edge]
        node = "kitchen"
        data = "examples.jsonl"
        training = {{steps = 1, batch_size = 1}}
        """
    )
    processes = [launched(folder, "coordinator", "--config", config)]
    try:
        wait_until(lambda: anchor_waits(folder / "coordinator"), processes)
        processes.append(launched(folder, "edge", "--config", config))
        wait_until(lambda: Registry(folder / "coordinator" / "adapters").release().judged == 2, processes)
        for process in reversed(processes):
            process.terminate()
        logs = [process.communicate(timeout=PATIENCE_S)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = tuple(process.returncode for process in processes)
    return Federated(config, folder / "coordinator", codes, "\n".join(logs))


def wait_until(condition: Callable[[], bool], processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert [process.poll() for process in processes] == [None] * len(processes), processes[0].communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def anchor_waits(data_dir: Path) -> bool:
    """Whether the next version will have an anchor, by the journal."""
    if not Registry(data_dir / "adapters").versions():
        return False
    *_, (state, _) = fold(data_dir / "journal.db")
    return state.anchor is not None


def launched(folder: Path, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [ALIGNFED, *map(str, words)],
        cwd=folder,
        env=environment({"OMP_NUM_THREADS": "1"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def environment(variables: dict[str, str]) -> dict[str, str]:
    """This environment without settings of alignfed, plus `variables`; lines as long as they like to be."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ALIGNFED_")}
    return inherited | {"COLUMNS": "200"} | variables
