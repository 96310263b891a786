"""The version a node holds, and the terms it learnt it under, on disk: so that it can go on without the broker.

A body is named by its digest, and the pointer beside it is the switch, replaced in one step: whenever the power fails,
the folder holds the old version or the new one. Values are read from there when somebody looks at them: a node that
waits needs no memory for them. It does not decide what to hold.
"""

import hashlib
import mmap
from pathlib import Path

import numpy as np

from broker.whole_file import write_whole
from edge_node.memory import let_go_of_values
from edge_node.state import GlobalAdapter
from schemas.adapter import Adapter, Layout
from schemas.codec import CodecError, decode
from schemas.messages import CoordinatorState, GlobalPointer, InvalidMessage

_POINTER, _TERMS, _CERTIFICATE = "pointer.json", "terms.json", "certificate.signed"


class DamagedFile(ValueError):
    """A file of the held version is not what was written; it is harmless to fetch the version again."""


def keep(folder: Path, pointer: GlobalPointer, *body: bytes | memoryview, earlier: GlobalPointer | None = None) -> None:
    """Make this the version held, its body in one piece or several; on disk when the call returns.

    Of other versions only that of `earlier` stays, which was held until now: there is never room needed for three.
    """
    pointers = [pointer] if earlier is None else [pointer, earlier]
    stay = {_body_file(folder, one) for one in pointers}
    if earlier is not None:
        _clear(folder, stay)
    write_whole(_body_file(folder, pointer), *body)
    write_whole(folder / _POINTER, b"\n".join(one.to_bytes() for one in pointers))
    _clear(folder, stay)


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
    try:
        with _body_file(folder, pointer).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != pointer.digest:
                raise DamagedFile(f"the body of version {pointer.version} in {folder} is damaged")
        return on_disk(folder, pointer, layout)
    except CodecError as fault:
        raise DamagedFile(f"{folder}: {fault}") from fault


def on_disk(folder: Path, pointer: GlobalPointer, layout: Layout) -> Adapter:
    """A version that was kept here, its values mapped from the file; CodecError if it is none of this layout."""
    header, size = layout.safetensors_header, 4 * layout.size
    with _body_file(folder, pointer).open("rb") as file:
        if (begun := file.read(len(header))) != header or file.seek(0, 2) != len(header) + size:
            return decode(begun + file.read(), layout, "safetensors")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    adapter = Adapter(layout, np.frombuffer(mapped, dtype="<f4", offset=len(header)).astype(np.float32, copy=False))
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


def _clear(folder: Path, stay: set[Path]) -> None:
    for old in set(folder.glob("*.safetensors")) - stay:
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
