"""A small disk that can be full: a tmpfs where we may mount one."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

BALLAST = "ballast"


class SmallDisk:
    """A folder on a disk of its own, of so many MiB; afterwards an ordinary folder with the same files.

    Where nothing may be mounted it is an ordinary folder from the start, and `is_small` is False.
    """

    def __init__(self, folder: Path, mib: int) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=755", "tmpfs", str(folder)]
        self.is_small = shutil.which("mount") is not None and _succeeds(mount)

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.folder / BALLAST).open("wb", buffering=0) as file:
            try:
                for size in (1 << 20, 1 << 12, 1):
                    _write_until_full(file.fileno(), bytes(size))
            except OSError as fault:
                if fault.errno != errno.ENOSPC:
                    raise

    def free(self) -> None:
        """Give the space back."""
        (self.folder / BALLAST).unlink(missing_ok=True)

    def release(self) -> None:
        """Keep the files and give the disk back."""
        if not self.is_small:
            return
        self.free()
        kept = self.folder.with_name(self.folder.name + ".kept")
        shutil.copytree(self.folder, kept)
        self.is_small = False
        if _succeeds(["umount", str(self.folder)]) or _succeeds(["umount", "-l", str(self.folder)]):
            self.folder.rmdir()
            kept.rename(self.folder)


def _write_until_full(file: int, block: bytes) -> None:
    try:
        while True:
            os.write(file, block)
    except OSError as fault:
        if fault.errno != errno.ENOSPC:
            raise


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
