"""The held version on disk: old or new at every crash point, and damage is noticed."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from edge_node import held_adapter
from edge_node.held_adapter import (
    DamagedFile,
    keep,
    keep_file,
    keep_terms,
    recall,
    recall_earlier,
    recall_terms,
    verified,
)


def test_a_version_comes_back_as_it_was_kept(tmp_path: Path, coordinator: Any) -> None:
    version = coordinator.version(3, value=2.5)
    keep(tmp_path / "head", version.pointer, [version.body])
    held = recall(tmp_path / "head", coordinator.adapter(0).layout)
    assert held is not None
    assert (held.pointer, held.adapter) == (version.pointer, coordinator.adapter(2.5))


def test_nothing_kept_is_nothing_held(tmp_path: Path, coordinator: Any) -> None:
    assert recall(tmp_path / "head", coordinator.adapter(0).layout) is None
    assert recall_terms(tmp_path / "head") is None


def test_only_one_body_stays_on_disk(tmp_path: Path, coordinator: Any) -> None:
    for number in range(3):
        version = coordinator.version(number, value=float(number))
        keep(tmp_path, version.pointer, [version.body])
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_one_earlier_body_stays_where_that_is_asked_for(tmp_path: Path, coordinator: Any) -> None:
    layout, earlier = coordinator.adapter(0).layout, None
    assert recall_earlier(tmp_path) is None
    for number in range(4):
        version = coordinator.version(number, value=float(number))
        keep(tmp_path, version.pointer, [version.body], earlier=earlier)
        earlier = version.pointer
    earlier = recall_earlier(tmp_path)
    assert earlier is not None and earlier.version == 2
    assert verified(tmp_path, earlier, layout) == coordinator.adapter(2.0)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    (tmp_path / f"{earlier.digest}.safetensors").write_bytes(b"garbage")
    with pytest.raises(DamagedFile, match="body of version 2"):
        verified(tmp_path, earlier, layout)


def test_terms_come_back_as_they_were_kept(tmp_path: Path, coordinator: Any) -> None:
    for terms in (coordinator.terms(), coordinator.terms(online=False)):
        keep_terms(tmp_path / "head", terms)
        assert recall_terms(tmp_path / "head") == terms


def die_at_line(number: int, keep_it: Callable[[], None]) -> int:
    """In a child process: keep a version, and die without a farewell before the n-th line; its exit status."""
    pid = os.fork()
    if pid == 0:
        lines = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal lines
            if frame.f_code.co_filename != held_adapter.__file__:
                return None
            lines += event == "line"
            if lines == number:
                os._exit(9)
            return trace

        sys.settrace(trace)
        keep_it()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_old_or_new_is_held_wherever_the_process_dies(tmp_path: Path, coordinator: Any) -> None:
    """The old one is there in any case: what is kept as the earlier one is never lost for the sake of the new."""
    old, new = coordinator.version(3, value=3.0), coordinator.version(4, value=4.0)
    layout = coordinator.adapter(0).layout
    held_after = []
    for line in range(1, 100):
        folder = tmp_path / str(line)
        keep(folder, old.pointer, [old.body])
        status = die_at_line(line, partial(keep, folder, new.pointer, [new.body], earlier=old.pointer))
        held = recall(folder, layout)
        assert held is not None
        assert held.adapter == coordinator.adapter(float(held.pointer.version))
        held_after.append(held.pointer.version)
        assert verified(folder, old.pointer, layout) == coordinator.adapter(3.0)
        keep(folder, new.pointer, [new.body])  # and the node goes on
        assert recall(folder, layout) is not None
        if status == 0:
            break
    assert status == 0
    assert held_after == sorted(held_after)
    assert set(held_after) == {3, 4}


def test_what_has_arrived_or_the_old_one_is_held_wherever_the_process_dies(tmp_path: Path, coordinator: Any) -> None:
    old, new = coordinator.version(3, value=3.0), coordinator.version(4, value=4.0)
    held_after = []
    for line in range(1, 100):
        folder, arrived = tmp_path / str(line), tmp_path / f"{line}.arrived"
        keep(folder, old.pointer, [old.body])
        arrived.write_bytes(new.body)
        status = die_at_line(line, partial(keep_file, folder, new.pointer, arrived))
        held = recall(folder, coordinator.adapter(0).layout)
        assert held is not None
        assert held.adapter == coordinator.adapter(float(held.pointer.version))
        held_after.append(held.pointer.version)
        if status == 0:
            break
    assert held_after == sorted(held_after)
    assert set(held_after) == {3, 4}
    assert not arrived.exists() and len(list(folder.glob("*.safetensors"))) == 1


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_body_is_noticed(tmp_path: Path, coordinator: Any, damage: bytes | None) -> None:
    version = coordinator.version(3)
    keep(tmp_path, version.pointer, [version.body])
    (body,) = tmp_path.glob("*.safetensors")
    body.write_bytes(version.body[:-1] + b"\x00" if damage is None else damage)
    with pytest.raises(DamagedFile, match="body of version 3"):
        recall(tmp_path, coordinator.adapter(0).layout)


def test_a_damaged_pointer_or_damaged_terms_are_noticed(tmp_path: Path, coordinator: Any) -> None:
    version = coordinator.version(3)
    keep(tmp_path, version.pointer, [version.body])
    keep_terms(tmp_path, coordinator.terms())
    for name in ("pointer.json", "terms.json"):
        (tmp_path / name).write_bytes(b"{")
    with pytest.raises(DamagedFile):
        recall(tmp_path, coordinator.adapter(0).layout)
    with pytest.raises(DamagedFile):
        recall_terms(tmp_path)


def test_a_full_disk_is_told_with_the_file_that_has_no_room(tmp_path: Path, coordinator: Any) -> None:
    (tmp_path / "terms.json.unfinished").symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/terms.json'"):
        keep_terms(tmp_path, coordinator.terms())
    assert recall_terms(tmp_path) is None
