"""The version a node holds, and the terms it learnt it under, on disk: so that it can go on without the broker.

A body is named by its digest, and the pointer beside it is the switch, replaced in one step: whenever the power fails,
the folder holds the old version or the new one. Values are read from there when somebody looks at them: a node that
waits needs no memory for them. It does not decide what to hold.
"""

import hashlib
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from broker.whole_file import move_whole, write_pieces, write_whole
from edge_node.memory import let_go_of_values
from edge_node.state import GlobalAdapter
from schemas.adapter import Adapter, Layout
from schemas.codec import CodecError, decode
from schemas.messages import CoordinatorState, GlobalPointer, InvalidMessage

_POINTER, _TERMS, _CERTIFICATE = "pointer.json", "terms.json", "certificate.signed"
_PIECE = 1 << 18  # values


class DamagedFile(ValueError):
    """A file of the held version is not what was written; it is harmless to fetch the version again."""


def keep(
    folder: Path, pointer: GlobalPointer, body: Iterable[bytes | memoryview], earlier: GlobalPointer | None = None
) -> None:
    """Make this the version held, its body in pieces; on disk when the call returns.

    Of other versions only that of `earlier` stays, which was held until now: there is never room needed for three.
    """
    pointers = [pointer] if earlier is None else [pointer, earlier]
    if earlier is not None:
        _clear(folder, pointers)
    write_pieces(_body_file(folder, pointer), body)
    _point_to(folder, pointers)


def keep_file(folder: Path, pointer: GlobalPointer, file: Path) -> None:
    """Make this the only version held, its body a file of the same file system; on disk when the call returns."""
    move_whole(file, _body_file(folder, pointer))
    _point_to(folder, [pointer])


def body_of(adapter: Adapter) -> Iterator[bytes | memoryview]:
    """The bytes of an adapter's file, in pieces; of values that are mapped, no more than one is in memory at a time."""
    yield adapter.layout.safetensors_header
    for start in range(0, adapter.layout.size, _PIECE):
        yield adapter.values[start : start + _PIECE].astype("<f4", copy=False).data
        let_go_of_values(adapter.values)


def recall(folder: Path, layout: Layout) -> GlobalAdapter | None:
    """The version held, verified; None when there is none yet. Raises DamagedFile."""
    pointer = next(iter(_pointers(folder)), None)
    try:
        return GlobalAdapter(pointer, verified(folder, pointer, layout)) if pointer is not None else None
    except FileNotFoundError:
        return None


def recall_earlier(folder: Path) -> GlobalPointer | None:
    """The version that `keep` was told to leave there, its body not looked at; None without one. Raises DamagedFile."""
    return next(iter(_pointers(folder)[1:]), None)


def verified(folder: Path, pointer: GlobalPointer, layout: Layout) -> Adapter:
    """A version that was kept here, if its file is what was written; DamagedFile, FileNotFoundError if it is not."""
    return verified_file(_body_file(folder, pointer), pointer, layout)


def verified_file(path: Path, pointer: GlobalPointer, layout: Layout) -> Adapter:
    """The adapter in a file, mapped from there, if that is what the pointer names; DamagedFile if it is not."""
    try:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != pointer.digest:
                raise DamagedFile(f"the body of version {pointer.version} in {path.parent} is damaged")
        return mapped(path, layout)
    except CodecError as fault:
        raise DamagedFile(f"{path.parent}: {fault}") from fault


def mapped(path: Path, layout: Layout) -> Adapter:
    """The adapter in a file, its values mapped from there; CodecError if it is none of this layout."""
    header, size = layout.safetensors_header, 4 * layout.size
    with path.open("rb") as file:
        if (begun := file.read(len(header))) != header or file.seek(0, 2) != len(header) + size:
            return decode(begun + file.read(), layout, "safetensors")
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    adapter = Adapter(layout, np.frombuffer(memory, dtype="<f4", offset=len(header)).astype(np.float32, copy=False))
    if not adapter.is_finite:
        raise CodecError("the adapter holds NaN or infinite values")
    let_go_of_values(adapter.values)
    return adapter


def keep_terms(folder: Path, terms: CoordinatorState) -> None:
    """Remember the terms of the federation."""
    write_whole(folder / _TERMS, terms.to_bytes())


def recall_terms(folder: Path) -> CoordinatorState | None:
    """The terms last heard; None before the first time. Raises DamagedFile."""
    try:
        return CoordinatorState.from_bytes((folder / _TERMS).read_bytes())
    except FileNotFoundError:
        return None
    except InvalidMessage as fault:
        raise DamagedFile(f"{folder / _TERMS}: {fault}") from fault


def keep_certificate(folder: Path, payload: bytes) -> None:
    """Remember the certificate of the coordinator's key, as it was signed."""
    write_whole(folder / _CERTIFICATE, payload)


def recall_certificate(folder: Path) -> bytes | None:
    """The certificate last taken up, not verified; None before the first time."""
    path = folder / _CERTIFICATE
    return path.read_bytes() if path.exists() else None


def _point_to(folder: Path, pointers: list[GlobalPointer]) -> None:
    """The bodies are there: from now on they are what is held."""
    write_whole(folder / _POINTER, b"\n".join(one.to_bytes() for one in pointers))
    _clear(folder, pointers)


def _clear(folder: Path, stay: list[GlobalPointer]) -> None:
    for old in set(folder.glob("*.safetensors")) - {_body_file(folder, one) for one in stay}:
        old.unlink()


def _pointers(folder: Path) -> list[GlobalPointer]:
    """A line for the version held, and one for the earlier that stayed; in one file, so that both change at once."""
    try:
        return [GlobalPointer.from_bytes(line) for line in (folder / _POINTER).read_bytes().split(b"\n", 1)]
    except FileNotFoundError:
        return []
    except InvalidMessage as fault:
        raise DamagedFile(f"{folder / _POINTER}: {fault}") from fault


def _body_file(folder: Path, pointer: GlobalPointer) -> Path:
    return folder / f"{pointer.digest}.safetensors"
