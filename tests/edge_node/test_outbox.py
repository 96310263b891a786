"""The outbox on a real disk, with real kills and real damage."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge_node.outbox import Outbox, OutboxDamaged, OutboxUnusable
from edge_node.state import Memory, Update, named_base


def update(sequence: int, body: bytes = b"body") -> Update:
    return Update(f"{sequence:032x}", sequence, "d" * 64, 7, b'{"base_version":7}', body, chunk_size=100)


def test_an_update_comes_back_as_it_was_put(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with Outbox(path) as outbox:
        outbox.put(update(1, b"\x00\xff"))
    with Outbox(path) as outbox:
        assert outbox.load(update(1).update_id) == update(1, b"\x00\xff")
        assert outbox.manifest(update(1).update_id) == update(1).manifest


def test_what_waits_is_listed_oldest_first_with_its_size(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db") as outbox:
        for sequence in (2, 10, 1):
            outbox.put(update(sequence, b"x" * sequence))
        assert [(waiting.sequence, waiting.size) for waiting in outbox.waiting()] == [(1, 1), (2, 2), (10, 10)]
        assert {(waiting.base_version, waiting.is_new) for waiting in outbox.waiting()} == {(7, False)}


def test_a_full_outbox_takes_no_more_room_on_disk_however_many_updates_go_through_it(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db") as outbox:
        for sequence in range(100):
            outbox.put(update(sequence, b"x" * 500_000))
            if sequence >= 4:
                outbox.drop(update(sequence - 4).update_id)
        used = sum(path.stat().st_size for path in tmp_path.iterdir())
    # four updates, one more for a moment, and the write-ahead log
    assert used < 6 * 500_000 + (5 << 20)


def test_an_update_that_is_settled_or_dropped_is_gone_and_only_the_first_counts(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db") as outbox:
        outbox.put(update(1))
        outbox.put(update(2))
        outbox.settle(update(1).update_id)
        outbox.drop(update(2).update_id)
        assert outbox.waiting() == ()
        assert outbox.memory().participation == 1
        for ask in (outbox.load, outbox.manifest):
            with pytest.raises(KeyError):
                ask(update(1).update_id)


def test_the_facts_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with Outbox(path) as outbox:
        assert outbox.memory() == Memory()
        assert outbox.count_boot() == 1
        outbox.put(update(7))
        outbox.settle(update(7).update_id)
        outbox.raise_mark((2, 5))
    with Outbox(path) as outbox:
        assert outbox.memory() == Memory(sequence=8, participation=1, last_base=named_base(7, "d" * 64), mark=(2, 5))
        assert outbox.count_boot() == 2


def test_the_base_of_a_dropped_update_may_be_trained_on_again(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db") as outbox:
        outbox.put(update(1))
        assert outbox.memory().last_base == named_base(7, "d" * 64)
        outbox.drop(update(1).update_id)
        assert outbox.memory().last_base is None


def test_the_mark_never_falls(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db") as outbox:
        for mark in ((2, 5), (1, 9), (2, 4)):
            outbox.raise_mark(mark)
        assert outbox.memory().mark == (2, 5)
        outbox.raise_mark((3, 0))
        assert outbox.memory().mark == (3, 0)


WRITER = """
import sys
from pathlib import Path
from edge_node.outbox import Outbox
from edge_node.state import Update

with Outbox(Path(sys.argv[1])) as outbox:
    for sequence in range(1_000_000):
        manifest = b'{"base_version":7}'
        outbox.put(Update(f"{sequence:032x}", sequence, "d" * 64, 7, manifest, b"x" * 20_000, 100))
        print(sequence, flush=True)
"""


def test_what_was_put_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    for round_number in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(5 + round_number):
                last = writer.stdout.readline()
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().split("\n")  # what it still said before it died
            said = [int(line) for line in [last, *rest[:-1]] if line.strip()]
        with Outbox(path) as outbox:
            found = [waiting.sequence for waiting in outbox.waiting()]
            assert found[: said[-1] + 1] == list(range(said[-1] + 1))
            assert outbox.memory().sequence == found[-1] + 1
            assert {len(outbox.load(waiting.update_id).body) for waiting in outbox.waiting()} == {20_000}
            for waiting in outbox.waiting():
                outbox.drop(waiting.update_id)


def damage_the_header(path: Path) -> None:
    path.write_bytes(b"this is not a database" * 1000)


def damage_the_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:-4096] = b"\xff" * (len(content) - 8192)
    path.write_bytes(content)


def cut_off_the_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:6000])


@pytest.mark.parametrize("damage", [damage_the_header, damage_the_middle, cut_off_the_end])
def test_a_damaged_file_is_moved_aside_and_the_error_says_where_and_what_to_do(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "outbox.db"
    for attempt in (1, 2):
        with Outbox(path) as outbox:
            for sequence in range(20):
                outbox.put(update(sequence, b"x" * 5000))
        damage(path)  # type: ignore[operator]
        damaged = path.read_bytes()
        with pytest.raises(OutboxDamaged, match=f"moved to .*outbox.db.damaged-{attempt}.*Start the node again"):
            Outbox(path)
        assert (tmp_path / f"outbox.db.damaged-{attempt}").read_bytes() == damaged
        with Outbox(path) as outbox:
            assert outbox.waiting() == ()


def test_a_full_disk_is_said_in_words_and_what_is_in_the_outbox_stays(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with Outbox(path) as outbox:
        outbox.put(update(1))
        (pages,) = outbox._database.execute("PRAGMA page_count").fetchone()
        outbox._database.execute(f"PRAGMA max_page_count = {pages}")  # to SQLite a full disk is the same
        with pytest.raises(OutboxUnusable, match=r"outbox\.db: database or disk is full.*room.*start the node again"):
            outbox.put(update(2, b"x" * 50_000))
        outbox.raise_mark((1, 1))  # what needs no room is done
        assert [waiting.sequence for waiting in outbox.waiting()] == [1]
