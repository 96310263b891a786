"""The pytest plugin, as another project meets it: by its entry point, in a pytest of its own."""

import os
import re
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from broker.recording import Row, transaction
from coordinator.core import step
from coordinator.journal import event_of_row, open_journal, record, row_of_event
from coordinator.questions import TrainedAnchor, answer_to_bytes
from coordinator.recovery import restore
from coordinator.registry import Registry
from coordinator.stages import AnchorStage
from coordinator.state import Answered, CalibrationTerms, FederationConfig, FederationState, Received
from coordinator.strategies import FedBuff
from schemas.adapter import Adapter
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(
    tmp_path: Path,
    config: Callable[..., FederationConfig],
    adapter: Callable[..., Adapter],
    message: Callable[..., Received],
    calibration: CalibrationTerms,
) -> Path:
    """A folder with the journal of three nodes and an anchor, and the plugin as an installation would announce it."""
    folder = tmp_path / "project"
    with closing(open_journal(folder / "incident.rec")) as journal:
        terms = config(FedBuff(buffer_size=2, anchor=AnchorStage()), calibration=calibration)
        state, _ = restore(journal, Registry(tmp_path / "adapters"), terms, adapter(0), 1)
        for turn, node in enumerate(["attic", "kitchen", "cellar"] * 4):
            sent = message(node, 0.1, state.head.version, state.head.digest, turn, at_ns=turn + 2)
            state = taken(journal, state, Row(sent.at_ns, sent.topic, sent.payload))
            if (asked := state.background) is not None:
                answer = TrainedAnchor(adapter(0.3), loss_before=3.0, loss_after=1.1, seconds=0.1)
                state = taken(journal, state, row_of_event(Answered(turn + 2, asked.id, answer_to_bytes(answer))))
    plugins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    announced = tmp_path / "installed" / "announced-0.dist-info"
    announced.mkdir(parents=True)
    (announced / "METADATA").write_text("Metadata-Version: 2.1\nName: announced\nVersion: 0\n")
    lines = [f"{name} = {module}" for name, module in plugins.items()]
    (announced / "entry_points.txt").write_text("\n".join(["[pytest11]", *lines]) + "\n")
    return folder


def taken(journal: sqlite3.Connection, state: FederationState, row: Row) -> FederationState:
    """The state after a row, which is recorded."""
    state, effects = step(state, event_of_row(row))
    with transaction(journal):
        record(journal, row, effects)
    return state


def run_pytest(project: Path, code: str) -> "subprocess.CompletedProcess[str]":
    (project / "test_mine.py").write_text(code)
    paths = [str(project.parent / "installed"), str(ROOT)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(project)],
        cwd=project.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_the_example_in_the_documentation_runs(project: Path) -> None:
    document = (ROOT / "docs" / "replay.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- example: replay -->\n\n```python\n(.*?)```", document, flags=re.DOTALL)
    assert found is not None
    ran = run_pytest(project, found[1])
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "3 passed" in ran.stdout


def test_a_changed_version_fails_the_users_test(project: Path) -> None:
    with closing(open_journal(project / "incident.rec")) as journal, transaction(journal):
        journal.execute("DELETE FROM messages WHERE seq = 5")
    ran = run_pytest(project, 'def test_it(replay):\n    assert replay("incident.rec").agrees\n')
    assert ran.returncode == 1
    assert "1 failed" in ran.stdout


def test_the_plugin_costs_a_test_run_without_it_nothing(project: Path) -> None:
    code = "import sys\ndef test_it():\n    assert not {'numpy', 'pydantic', 'sqlite3'} & set(sys.modules)\n"
    ran = run_pytest(project, code)
    assert ran.returncode == 0, ran.stdout
