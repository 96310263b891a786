"""A disk that is full, and evidence that a kill has cut."""

import errno
from pathlib import Path

import pytest

from chaos.disk import SmallDisk
from chaos.witness import Reader, Witness, read


def test_a_small_disk_is_full_then_free_and_leaves_its_files(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "disk", 1)
    if not disk.is_small:
        pytest.skip("NO TMPFS MAY BE MOUNTED HERE: full disks are not tried (run as root)")
    (disk.folder / "kept").write_text("kept")
    disk.fill()
    with pytest.raises(OSError) as fault:
        (disk.folder / "more").write_bytes(b"x" * 5000)
    assert fault.value.errno == errno.ENOSPC
    disk.free()
    (disk.folder / "more").write_bytes(b"x" * 5000)
    disk.release()
    assert {path.name for path in disk.folder.iterdir()} == {"kept", "more"}


def test_a_line_that_a_kill_has_cut_costs_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    Witness(path).say("a", "stored", "1" * 32)
    with path.open("ab") as file:
        file.write(b'{"at":1.0,"no')
    Witness(path).say("a", "receipted", "1" * 32)
    assert [one.what for one in read(path)] == ["stored", "receipted"]


def test_a_reader_takes_each_line_once_and_none_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    reader, witness = Reader(path), Witness(path)
    assert reader.more() == []
    witness.say("a", "boot")
    assert [one.what for one in reader.more()] == ["boot"]
    with path.open("ab") as file:
        file.write(b'{"at":1.0,"node":"a",')
        file.flush()
        assert reader.more() == []
        file.write(b'"what":"connected"}\n')
    assert [one.what for one in reader.more()] == ["connected"]
    assert reader.more() == []
