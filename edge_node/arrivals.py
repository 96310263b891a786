"""Versions on their way, on disk: each a file that grows by the pieces as they come, so that none waits in memory.

Whatever is there is worth nothing before its digest is the pointer's, and nothing of it outlives the process. A file
that was verified is mapped, and no longer written to: it is moved to where it is kept, or removed.
"""

from collections.abc import Sequence
from pathlib import Path

from edge_node.held_adapter import verified_file
from schemas.adapter import Adapter, Layout
from schemas.messages import GlobalPointer


class Arrivals:
    """The files in one folder, which is empty at first; an OSError where the disk does not take a piece."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():  # by a process that has ended
            left.unlink()

    def put(self, pointer: GlobalPointer, offset: int, pieces: Sequence[bytes]) -> None:
        """Put these pieces behind the first `offset` bytes, which are there; with none of them the file begins anew."""
        path = self.file(pointer)
        try:
            with path.open("r+b" if offset else "wb") as file:
                file.seek(offset)
                file.writelines(pieces)
        except OSError as fault:  # that of a full disk has no name
            fault.filename = fault.filename or str(path)
            raise

    def verified(self, pointer: GlobalPointer, layout: Layout) -> Adapter:
        """What has come, mapped, if it is what the pointer names and an adapter of `layout`; DamagedFile if not."""
        return verified_file(self.file(pointer), pointer, layout)

    def drop(self, pointer: GlobalPointer) -> None:
        """Remove what is there of a version; it may have been moved away."""
        self.file(pointer).unlink(missing_ok=True)

    def file(self, pointer: GlobalPointer) -> Path:
        """Where a version is while it comes: two versions may be the same bytes."""
        return self._folder / f"{pointer.version}-{pointer.digest}.safetensors"
