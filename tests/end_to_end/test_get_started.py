"""The commands of docs/index.md for one's own machines, as they stand there, on one machine: keys, broker, learning."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.embedded import find_mosquitto
from coordinator.journal import read_updates
from coordinator.registry import Registry
from tests.patience import PATIENCE_S
from tests.ports import free_port

PAGE = Path(__file__).parents[2] / "docs" / "index.md"


def documented() -> list[str]:
    """The commands and the example under "On your own machines", in their order."""
    _, _, section = PAGE.read_text(encoding="utf-8").partition("## On your own machines\n")
    return re.findall(r"^    (\S.*)$", section.partition("\n## ")[0], flags=re.MULTILINE)


class Operator:
    """Somebody who types what is documented, where the server and the gateway are this machine."""

    def __init__(self, folder: Path, model: Path, port: int) -> None:
        self.folder, self.port, self.running = folder, port, list[subprocess.Popen[bytes]]()
        programs = [str(Path(sys.executable).parent), str(Path(find_mosquitto() or "").parent), os.environ["PATH"]]
        self._environment = {name: text for name, text in os.environ.items() if not name.startswith("ALIGNFED_")} | {
            "PATH": os.pathsep.join(programs),
            "OMP_NUM_THREADS": "1",
            "ALIGNFED_BASE_MODEL__NAME": str(model),
            "ALIGNFED_BASE_MODEL__CACHE_DIR": str(folder / "cache"),
        }

    def types(self, line: str, *more: str) -> None:
        """Run a command to its end."""
        words, environment = self._read(line)
        subprocess.run([*words, *more], cwd=self.folder, env=environment, check=True)

    def starts(self, line: str) -> None:
        """Run a command that goes on."""
        words, environment = self._read(line)
        self.running.append(subprocess.Popen(words, cwd=self.folder, env=environment))

    def waits(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert [process.poll() for process in self.running] == [None] * len(self.running)
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def _read(self, line: str) -> tuple[list[str], dict[str, str]]:
        here = line.replace("broker.local:8883", f"localhost:{self.port}").replace("scp -r broker.local:", "cp -r ")
        words = shlex.split(here)
        variables = dict(word.split("=", 1) for word in words if word.startswith("ALIGNFED_"))
        return words[len(variables) :], self._environment | variables


@pytest.fixture
def operator(tmp_path: Path, tiny_model_dir: Path) -> Iterator[Operator]:
    somebody = Operator(tmp_path, tiny_model_dir, free_port())
    yield somebody
    for process in somebody.running:
        process.kill()
        process.wait()


@pytest.mark.mosquitto
def test_who_does_what_the_first_page_says_has_a_federation_with_keys(operator: Operator) -> None:
    init, enrol, broker, coordinator, example, copy, edge = documented()
    operator.types(init, "--port", str(operator.port))
    operator.types(enrol)
    if os.geteuid() == 0:  # mosquitto would become a user who cannot read what root made here; the page speaks to users
        with (operator.folder / "alignfed-keys" / "broker" / "mosquitto.conf").open("a") as configuration:
            configuration.write("user root\n")
    operator.starts(broker)
    operator.starts(coordinator)
    data = operator.folder / "alignfed-data" / "coordinator"
    operator.waits(lambda: bool(Registry(data / "adapters").versions()))
    examples = [example.replace("desk lamp", f"lamp {number}") for number in range(8)]
    (operator.folder / "kitchen.jsonl").write_text("\n".join([example, *examples]) + "\n")
    operator.types(copy)
    operator.starts(edge)
    doctor = (
        edge.replace("alignfed edge", "alignfed doctor"),
        coordinator.replace("alignfed coordinator", "alignfed doctor"),
    )
    for line in (*doctor, doctor[1].replace("keys/coordinator", "keys/observer")):
        operator.types(line)
    operator.waits(lambda: any(update.node == "kitchen" for update in read_updates(data / "journal.db")))
