"""Two coordinators on one database: real processes, of which one decides, one waits, and one is frozen and wakes up."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from broker.recording import transaction
from coordinator.frozen_writer import LOCKS, ProcessId, end, writer_of
from coordinator.journal import open_journal, read_updates, read_versions
from coordinator.lease import Lease, LeaseLost
from coordinator.replay.inside import replay
from tests.patience import PATIENCE_S


class Standby:
    """A second process of the same coordinator."""

    def __init__(self, of: Any, folder: Path, number: int) -> None:
        self.log = folder / f"standby-{number}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(of.command, stderr=log, start_new_session=True)

    def says(self, text: str) -> bool:
        return text in self.log.read_text(encoding="utf-8")


@pytest.fixture
def standby(coordinator: Any, tmp_path: Path) -> Iterator[Callable[[], Standby]]:
    started: list[Standby] = []

    def start() -> Standby:
        started.append(Standby(coordinator, tmp_path, len(started)))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        print(one.log.read_text(encoding="utf-8"))


def test_a_second_coordinator_waits_and_takes_over_from_one_that_was_killed(
    coordinator: Any, node: Any, standby: Callable[[], Standby]
) -> None:
    node.until_version(0)
    second = standby()
    node.until(lambda: second.says("waiting as its standby"))
    first = node.send("a", 0, node.head, 1.0)
    node.until(lambda: node.statuses(first) == ["accepted"])
    coordinator.kill()
    node.until(lambda: node.head.epoch == 2)
    node.send("b", 0, node.head, 1.0)
    node.until_version(1)
    assert node.statuses(first)[-1] == "aggregated"  # what the first had taken is not lost
    second.process.send_signal(signal.SIGTERM)
    assert second.process.wait(PATIENCE_S) == 0


def test_a_frozen_coordinator_that_wakes_up_cannot_publish_and_ends_with_a_sentence(
    coordinator: Any, node: Any, standby: Callable[[], Standby]
) -> None:
    node.until_version(0)
    second = standby()
    node.until(lambda: second.says("waiting as its standby"))
    coordinator.process.send_signal(signal.SIGSTOP)
    node.until(lambda: second.says("taking over") and node.head.epoch == 2)
    node.send("a", 0, node.head, 1.0)
    node.send("b", 0, node.head, 1.0)
    node.until_version(1)

    coordinator.process.send_signal(signal.SIGCONT)
    code, log = coordinator.ends()
    assert code == 1 and "another coordinator has taken over" in log
    node.send("a", 1, node.head, 1.0)
    node.send("b", 1, node.head, 1.0)
    node.until_version(2)
    assert node.head.epoch == 2
    versions = read_versions(coordinator.data_dir / "journal.db")
    assert [version.version for version in versions] == [0, 1, 2]  # one chain, without a fork
    assert [version.parent for version in versions[1:]] == [version.digest for version in versions[:-1]]
    assert all(update.status == "aggregated" for update in read_updates(coordinator.data_dir / "journal.db"))
    second.process.send_signal(signal.SIGTERM)
    assert second.process.wait(PATIENCE_S) == 0
    assert all(version.agrees for version in replay(coordinator.data_dir / "journal.db"))


def test_of_two_that_wait_one_takes_over(coordinator: Any, node: Any, standby: Callable[[], Standby]) -> None:
    node.until_version(0)
    waiting = [standby(), standby()]
    node.until(lambda: all(one.says("waiting as its standby") for one in waiting))
    coordinator.kill()
    node.until(lambda: node.head.epoch == 2)
    assert sum(one.says("taking over") for one in waiting) == 1
    assert [one.process.poll() for one in waiting] == [None, None]


# --- the lease itself ---


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(open_journal(tmp_path / "journal.db")) as connection:
        yield connection


def test_nothing_is_written_without_the_lease(journal: sqlite3.Connection, tmp_path: Path) -> None:
    lease = Lease(journal, tmp_path)
    lease.take()
    with lease.transaction():
        journal.execute("CREATE TABLE mine (x INTEGER) STRICT")
    with transaction(journal):
        journal.execute("UPDATE lease SET holder = 'another'")
    with pytest.raises(LeaseLost, match="has taken over"), lease.transaction():
        journal.execute("INSERT INTO mine VALUES (1)")
    assert journal.execute("SELECT * FROM mine").fetchall() == []
    with pytest.raises(LeaseLost):
        lease.confirm()
    lease.let_go()
    assert journal.execute("SELECT holder FROM lease").fetchall() == [("another",)]  # which is not ours to end


def test_a_lease_that_was_let_go_is_there_for_the_next(journal: sqlite3.Connection, tmp_path: Path) -> None:
    for _ in range(3):
        lease = Lease(journal, tmp_path)
        lease.take()
        lease.confirm()
        lease.let_go()


def test_a_holder_of_another_machine_that_is_silent_loses_the_lease(
    journal: sqlite3.Connection, tmp_path: Path
) -> None:
    lease = Lease(journal, tmp_path)
    with transaction(journal):
        journal.execute("INSERT INTO lease VALUES (0, 'another', 'elsewhere', 1, 7)")
    lease.take()
    assert journal.execute("SELECT renewals FROM lease").fetchone()[0] >= 8
    lease.let_go()


# --- a holder that was frozen in the midst of a transaction ---

FROZEN = """
import os, signal, sys
from pathlib import Path
from coordinator.frozen_writer import LOCKS, ProcessId, end, writer_of
from coordinator.journal import open_journal
from coordinator.lease import Lease

folder = Path(sys.argv[1])
journal = open_journal(folder / "journal.db")
lease = Lease(journal, folder)
lease.take()
with lease.transaction():
    journal.execute("UPDATE lease SET renewals = 1000000")
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def frozen(journal: sqlite3.Connection, tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has the lease and stopped while it wrote."""
    process = subprocess.Popen([sys.executable, "-c", FROZEN, str(tmp_path)])
    try:
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(not LOCKS.exists(), reason="this system does not tell who has a lock")
def test_a_coordinator_that_froze_in_the_midst_of_a_transaction_is_ended_by_its_standby(
    journal: sqlite3.Connection, tmp_path: Path, frozen: "subprocess.Popen[bytes]"
) -> None:
    assert writer_of(tmp_path / "journal.db") == frozen.pid
    standby = Lease(journal, tmp_path)
    standby.take()
    assert frozen.wait(PATIENCE_S) == -signal.SIGKILL
    assert writer_of(tmp_path / "journal.db") is None
    with standby.transaction():
        assert journal.execute("SELECT renewals < 1000000 FROM lease").fetchall() == [(1,)]  # it had not committed
    standby.let_go()


def test_nobody_else_is_ended(journal: sqlite3.Connection, tmp_path: Path, frozen: "subprocess.Popen[bytes]") -> None:
    later = ProcessId(frozen.pid, 1)  # of the same number, started at another time
    assert not end(later)
    assert not end(ProcessId(frozen.pid, 0))  # nobody knows
    assert os.waitpid(frozen.pid, os.WNOHANG | os.WUNTRACED) == (0, 0)
    frozen.kill()
    frozen.wait()
    assert not end(ProcessId(frozen.pid, 1))


def test_a_standby_waits_for_a_writer_that_is_not_the_holder(
    journal: sqlite3.Connection, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with transaction(journal):
        journal.execute("CREATE TABLE IF NOT EXISTS mine (x INTEGER) STRICT")
    standby = Lease(journal, tmp_path)
    other = sqlite3.connect(tmp_path / "journal.db", isolation_level=None, check_same_thread=False)
    with closing(other):
        other.execute("BEGIN IMMEDIATE")
        ends = threading.Timer(7, lambda: other.execute("ROLLBACK"))  # longer than a transaction waits for another
        ends.start()
        standby.take()
        ends.join()
    assert "is not the coordinator that decided last" in caplog.text
    standby.let_go()
