"""The embedded broker as a child process: it starts, comes back, dies with its parent and only then."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker.client import Client
from broker.embedded import BrokerFailed, EmbeddedBroker, find_mosquitto
from broker.events import Disconnected, Message, Publication, Published

Connect = Callable[..., Client]
Expect = Callable[..., Any]


def test_auto_takes_mosquitto_when_there_is_one() -> None:
    with EmbeddedBroker() as broker:
        assert broker.kind == ("mosquitto" if find_mosquitto() else "iotcore")
        assert broker.limits


def test_auto_falls_back_when_mosquitto_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "mosquitto"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with EmbeddedBroker() as broker:
        assert broker.kind == "iotcore"


def test_a_killed_broker_comes_back_on_the_same_port(
    own_broker: EmbeddedBroker, connect: Connect, expect: Expect
) -> None:
    settings, client = own_broker.settings, connect(own_broker.settings)
    own_broker.kill()
    expect(client, Disconnected)
    own_broker.restart()
    assert own_broker.settings == settings
    connect(settings)


def test_a_broker_that_cannot_start_says_why(own_broker: EmbeddedBroker) -> None:
    with (
        pytest.raises(BrokerFailed, match=f"{own_broker.kind} did not start(?s:.)*in use"),
        EmbeddedBroker(own_broker.kind, port=own_broker.settings.port),
    ):
        pass


def test_a_broker_listens_on_loopback_only(own_broker: EmbeddedBroker) -> None:
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        # Another loopback address, which a listener on every address would answer as well.
        other.connect(("127.0.0.2", own_broker.settings.port))


def test_ctrl_c_in_the_terminal_does_not_reach_the_broker(own_broker: EmbeddedBroker) -> None:
    assert os.getsid(own_broker.pid) != os.getsid(0)


def test_a_broker_outlives_the_thread_that_started_it(expect: Expect) -> None:
    brokers = [EmbeddedBroker()]
    starter = threading.Thread(target=brokers[0].__enter__)
    starter.start()
    starter.join()
    try:
        with Client(brokers[0].settings, "test") as client:
            client.publish(Publication("t", b""))
            expect(client, Published)
    finally:
        brokers[0].stop()


PARENT = """
    import sys, time
    from broker.embedded import EmbeddedBroker
    with EmbeddedBroker(sys.argv[1]) as broker:
        print(broker.pid, flush=True)
        time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
@pytest.mark.parametrize("kind", [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "iotcore"])
def test_a_broker_does_not_outlive_a_parent_that_is_killed(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if kind == "mosquitto":
        request.getfixturevalue("mosquitto")
    command = [sys.executable, "-c", textwrap.dedent(PARENT), kind]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # a killed parent leaves its directory behind
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.mosquitto
def test_a_data_directory_keeps_retained_messages_for_the_next_run(
    mosquitto: str, tmp_path: Path, connect: Connect, expect: Expect
) -> None:
    data_dir = tmp_path / "a directory with spaces"
    with EmbeddedBroker("mosquitto", data_dir) as broker:
        client = connect(broker.settings)
        client.publish(Publication("t", b"kept", retain=True))
        expect(client, Published)
    with EmbeddedBroker("mosquitto", data_dir) as broker:
        assert expect(connect(broker.settings, subscriptions=("t",)), Message).payload == b"kept"


def test_nothing_is_left_behind(own_broker: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with EmbeddedBroker(own_broker.kind) as broker:
        pid = broker.pid
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIG_DFL)
