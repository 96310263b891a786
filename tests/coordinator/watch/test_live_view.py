"""`alignfed status --watch` beside a coordinator that is killed and started again, on a terminal and without one."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE_S
from tests.ports import free_port

ENTER, LEAVE, HOME, DIMMED_NAME = "\x1b[?1049h", "\x1b[?1049l", "\x1b[H", "\x1b[1;2mtest"
COMMAND = [sys.executable, "-m", "alignfed", "status", "--watch"]


@pytest.fixture
def address() -> str:
    """A free address on this machine."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def watched(start_coordinator: Callable[..., Any], base_model: Path, address: str) -> Any:
    """A coordinator that shows itself."""
    return start_coordinator(base_model, f'strategy = {{name = "fedbuff", buffer_size = 2}}\nhttp = "{address}"')


class Screen:
    """A process on a terminal of its own, and what it has drawn."""

    def __init__(self, *words: str) -> None:
        self._end, slave = pty.openpty()
        size = {"COLUMNS": "120", "LINES": "40", "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            [*COMMAND, *words], stdout=slave, stderr=slave, env={**os.environ, **size}, close_fds=True
        )
        os.close(slave)
        self.drawn = ""

    def until(self, condition: Callable[[str], bool]) -> str:
        """The first picture for which the condition holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition(picture := self.drawn.rpartition(HOME)[2]):
            assert time.monotonic() < deadline, self.drawn[-4000:]
            self._read()
        return picture

    def ends(self) -> int:
        """Its exit code, when all that it has drawn was read."""
        while self._read():
            pass
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)

    def _read(self) -> bool:
        """Take in what was drawn; False when the other end is closed."""
        if not select.select([self._end], [], [], 0.1)[0]:
            return True
        try:
            self.drawn += os.read(self._end, 1 << 16).decode(errors="replace")
        except OSError:  # how Linux says that nobody has the terminal open any more
            return False
        return True


@contextmanager
def screen(*words: str) -> Iterator[Screen]:
    shown = Screen(*words)
    try:
        yield shown
    finally:
        shown.close()


def test_a_coordinator_that_is_killed_is_waited_for_with_the_last_picture_dimmed(watched: Any, address: str) -> None:
    with screen("--url", f"http://{address}") as shown:
        shown.until(lambda picture: "epoch 1" in picture)
        watched.kill()
        away = shown.until(lambda picture: f"nobody answers at {address}" in picture and "epoch 1" in picture)
        assert "asking again every second" in away and DIMMED_NAME in away
        watched.start()
        back = shown.until(lambda picture: "epoch 2" in picture)
        assert "nobody answers" not in back and DIMMED_NAME not in back
        shown.process.send_signal(signal.SIGINT)
        assert shown.ends() == 130
        assert shown.drawn.index(ENTER) < shown.drawn.index(LEAVE)
        assert "\n" not in shown.drawn.rpartition(LEAVE)[2].strip()
        assert "Traceback" not in shown.drawn


def test_who_looks_before_the_coordinator_is_there_waits_for_it(watched: Any, address: str) -> None:
    watched.kill()
    with screen("--url", f"http://{address}") as shown:
        shown.until(lambda picture: "Was the coordinator started with --http?" in picture)
        watched.start()
        shown.until(lambda picture: "version 0" in picture and "nobody answers" not in picture)
        shown.process.terminate()
        assert shown.ends() == 130
        assert shown.drawn.index(ENTER) < shown.drawn.index(LEAVE)


def test_where_the_settings_name_an_address_the_data_folder_stands_in_until_somebody_answers(
    watched: Any, node: Any, address: str
) -> None:
    node.until_version(0)
    watched.kill()
    with screen("--config", str(watched.config)) as shown:
        shown.until(lambda picture: f"nobody answers at {address}" in picture and "version 0" in picture)
        watched.start()
        shown.until(lambda picture: "version 0" in picture and "nobody answers" not in picture)


def test_without_an_address_the_folder_is_watched_and_it_is_said_what_to_do(coordinator: Any, node: Any) -> None:
    node.until_version(0)
    with screen("--config", str(coordinator.config)) as shown:
        shown.until(lambda picture: "version 0" in picture and "start the coordinator with --http" in picture)
        node.send("a", 0, node.head, 0.1)
        node.send("b", 0, node.head, 0.1)
        shown.until(lambda picture: "version 1" in picture)


def test_a_program_that_watches_gets_a_status_a_line_and_goes_on_after_a_restart(watched: Any, address: str) -> None:
    command = [*COMMAND, "--json", "--url", f"http://{address}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None and watching.stderr is not None
        try:
            assert json.loads(line_with(watching.stdout, '"epoch":1'))["head"] == 0
            watched.kill()
            assert "asking again every second" in line_with(watching.stderr, f"nobody answers at {address}")
            watched.start()
            assert json.loads(line_with(watching.stdout, '"epoch":2'))["head"] == 0
        finally:
            watching.kill()


def line_with(stream: Any, text: str) -> str:
    """The next line that has this text; fails where the stream ends without."""
    found = next((line for line in stream if text in line), None)
    assert found is not None
    return str(found)
