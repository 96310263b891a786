"""A GGUF file mapped: as the gguf package reads it, and refused where it is cut short or lies."""

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st

from base_model.gguf_file import open_gguf
from base_model.reference import ResolvedModel
from base_model.wheel import BaseModelError


@pytest.fixture(scope="module")
def path(quantised: ResolvedModel) -> Path:
    return Path(quantised.name)


def test_every_tensor_has_the_bytes_that_the_gguf_package_reads(path: Path) -> None:
    file, reader = open_gguf(path), GGUFReader(path)
    assert file.architecture == reader.fields["general.architecture"].contents() == "llama"
    assert file.tensors.keys() == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        ours = file.tensors[tensor.name]
        assert ours.kind == tensor.tensor_type.name
        assert ours.shape == tuple(int(size) for size in reversed(tensor.shape))
        assert ours.rows.tobytes() == np.asarray(tensor.data).tobytes()


@pytest.mark.parametrize("kept", [0, 3, 4, 23, 24, 500, -1])
def test_a_file_that_is_cut_short_is_refused_with_its_name(path: Path, tmp_path: Path, kept: int) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BaseModelError, match=r"cut\.gguf is not a whole GGUF file"):
        open_gguf(cut)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="No such file"):
        open_gguf(tmp_path / "nothing.gguf")


def test_counts_that_no_file_can_hold_are_refused_at_once(tmp_path: Path) -> None:
    liar = tmp_path / "liar.gguf"
    liar.write_bytes(
        struct.pack("<4sIQQ", b"GGUF", 3, 1, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**63)
    )
    with pytest.raises(BaseModelError, match="not a whole GGUF file"):
        open_gguf(liar)


@given(at=st.integers(0, 2000), byte=st.integers(0, 255))
def test_a_changed_byte_of_the_header_is_read_or_refused(
    path: Path, tmp_path_factory: pytest.TempPathFactory, at: int, byte: int
) -> None:
    content = bytearray(path.read_bytes())
    content[at] = byte
    changed = tmp_path_factory.mktemp("changed") / "changed.gguf"
    changed.write_bytes(content)
    try:
        open_gguf(changed)
    except BaseModelError as fault:
        assert "changed.gguf" in str(fault)
