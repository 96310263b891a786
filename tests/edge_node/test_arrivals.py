"""Versions on their way, on disk: piece behind piece, believed as a whole, gone with the process."""

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_node import held_adapter
from edge_node.arrivals import Arrivals
from edge_node.held_adapter import DamagedFile
from schemas.adapter import Adapter


@pytest.fixture
def arrivals(tmp_path: Path) -> Arrivals:
    return Arrivals(tmp_path / "arriving")


def come(arrivals: Arrivals, version: Any) -> None:
    """All chunks of a version, one after the other."""
    offset = 0
    for chunk in version.chunks:
        arrivals.put(version.pointer, offset, [chunk])
        offset += len(chunk)


def memory_of(adapter: Adapter) -> Any:
    """What holds an adapter's values."""
    owner: Any = adapter.values
    while (base := getattr(owner, "base", None)) is not None:
        owner = base
    return owner.obj if isinstance(owner, memoryview) else owner


def test_pieces_make_the_adapter_which_is_mapped_from_them(arrivals: Arrivals, coordinator: Any) -> None:
    version, layout = coordinator.version(3, 2.5, chunk_size=100), coordinator.adapter(0).layout
    come(arrivals, version)
    assert arrivals.file(version.pointer).read_bytes() == version.body
    adapter = arrivals.verified(version.pointer, layout)
    assert adapter == coordinator.adapter(2.5)
    assert isinstance(memory_of(adapter), mmap.mmap)


def test_the_mapped_adapter_stays_when_its_file_is_moved_or_removed(
    arrivals: Arrivals, tmp_path: Path, coordinator: Any
) -> None:
    layout = coordinator.adapter(0).layout
    head, release = coordinator.version(3, 3.0, chunk_size=100), coordinator.version(4, 4.0, chunk_size=100)
    for version in (head, release):
        come(arrivals, version)
    adapters = [arrivals.verified(version.pointer, layout) for version in (head, release)]
    held_adapter.keep_file(tmp_path / "head", head.pointer, arrivals.file(head.pointer))
    for version in (head, release):
        arrivals.drop(version.pointer)
    assert list((tmp_path / "arriving").iterdir()) == []
    assert adapters == [coordinator.adapter(3.0), coordinator.adapter(4.0)]
    held = held_adapter.recall(tmp_path / "head", layout)
    assert held is not None and held.adapter == coordinator.adapter(3.0)


def test_a_file_that_is_cut_short_or_changed_is_found_by_its_digest(arrivals: Arrivals, coordinator: Any) -> None:
    version, layout = coordinator.version(3, chunk_size=100), coordinator.adapter(0).layout
    for damaged in (version.body[:-1], version.body + b"x", b"", version.body[:-1] + b"\x01"):
        come(arrivals, version)
        arrivals.file(version.pointer).write_bytes(damaged)
        with pytest.raises(DamagedFile, match="body of version 3"):
            arrivals.verified(version.pointer, layout)


def test_what_is_no_adapter_is_not_believed_for_its_digest_alone(arrivals: Arrivals, coordinator: Any) -> None:
    layout = coordinator.adapter(0).layout
    values = np.full(layout.size, np.nan, np.float32)
    for content, fault in ((b"x" * 300, "safetensors"), (Adapter(layout, values).to_safetensors(), "NaN or infinite")):
        version = coordinator.version(3, chunk_size=100, content=content)
        come(arrivals, version)
        with pytest.raises(DamagedFile, match=fault):
            arrivals.verified(version.pointer, layout)


def test_pieces_from_the_beginning_replace_what_was_there(arrivals: Arrivals, coordinator: Any) -> None:
    version = coordinator.version(3, chunk_size=100)
    arrivals.put(version.pointer, 0, [b"y" * 1000])
    come(arrivals, version)
    assert arrivals.file(version.pointer).read_bytes() == version.body


def test_two_versions_of_the_same_bytes_do_not_disturb_each_other(arrivals: Arrivals, coordinator: Any) -> None:
    one, again = coordinator.version(3, chunk_size=100), coordinator.version(5, chunk_size=100)
    assert one.pointer.digest == again.pointer.digest
    come(arrivals, one)
    arrivals.put(again.pointer, 0, [again.chunks[0]])
    assert arrivals.verified(one.pointer, coordinator.adapter(0).layout) == coordinator.adapter(1.0)


def test_nothing_is_left_of_what_came_to_a_process_that_has_ended(tmp_path: Path, coordinator: Any) -> None:
    version = coordinator.version(3, chunk_size=100)
    Arrivals(tmp_path).put(version.pointer, 0, [version.chunks[0]])
    Arrivals(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_with_the_file_that_has_no_room(arrivals: Arrivals, coordinator: Any) -> None:
    version = coordinator.version(3, chunk_size=100)
    path = arrivals.file(version.pointer)
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
        arrivals.put(version.pointer, 0, [b"x" * 100])
