"""`alignfed simulate` without its options: what it shows, what it writes, and how it ends."""

import io
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from coordinator.strategies import FedBuff
from simulation.command import INTERRUPTED, run_simulate
from simulation.result import RunResult


@pytest.fixture
def console() -> Console:
    """A terminal of 120 columns that is none."""
    return Console(file=io.StringIO(), width=120)


@pytest.fixture
def tiny_config(make_config, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make a configuration that names the tiny model."""
    monkeypatch.setenv("ALIGNFED_CACHE", str(tmp_path / "cache"))
    return lambda **settings: make_config(FedBuff(buffer_size=2), base_model=str(tiny_model_dir), **settings)


def test_a_run_is_shown_in_a_few_lines_and_written(tiny_config, make_task, console: Console, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    assert run_simulate(tiny_config(), make_task(4), out, console) == 0
    result = RunResult.read(out)
    text = console.file.getvalue()
    assert "fedbuff, seed 1: 4 nodes, 8 updates, 4 versions" in text
    assert f"-> {result.final.loss:.3f} nats" in text
    assert str(out) in text
    assert len(text.splitlines()) < 12


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where a shell has started the tests in the background with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_ends_a_run_cleanly(tiny_config, make_task, console: Console, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    ctrl_c = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    ctrl_c.start()
    code = run_simulate(tiny_config(updates=1_000_000), make_task(4), out, console)
    ctrl_c.join()
    assert code == INTERRUPTED
    assert not out.exists()
    assert "interrupted" in console.file.getvalue()
