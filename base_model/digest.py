"""Digests that name a model's files, and a record beside them that saves hashing half a gigabyte at every start.

It knows files. It does not know what is in them, where they came from, or any model library.
"""

import hashlib
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError


class FileFact(BaseModel):
    """One file as it was when it was hashed: base name, size in bytes, modification time, SHA-256 (hex)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    size: int
    mtime_ns: int
    sha256: str


class DigestRecord(BaseModel):
    """What is known of some files of one folder, so that those whose size and time are unchanged are not read again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[FileFact, ...]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of names and contents, never of paths or times: `sha256sum FILES | sort | sha256sum`."""
        lines = sorted(f"{fact.sha256}  {fact.name}\n" for fact in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unknown_bytes(files: list[Path], record_path: Path) -> int:
    """How many bytes `record_files` would have to read now."""
    known = _known(record_path)
    return sum(path.stat().st_size for path in files if not _is_unchanged(path, known))


def record_files(files: list[Path], record_path: Path) -> DigestRecord:
    """Hash the files and keep the record; a file whose size and time the old record has is not read again."""
    known = _known(record_path)
    facts = (known[path.name] if _is_unchanged(path, known) else _fact(path) for path in files)
    record = DigestRecord(files=tuple(facts))
    if record.files != tuple(known.values()):
        _write(record_path, record)
    return record


def is_intact(folder: Path, record_path: Path) -> bool:
    """Whether every file of the record is in the folder with the recorded contents; no record means no."""
    record = read_record(record_path)
    if record is None:
        return False
    files = [folder / fact.name for fact in record.files]
    sizes = [path.stat().st_size if path.is_file() else -1 for path in files]
    if sizes != [fact.size for fact in record.files]:
        return False
    # a copied folder has new times: read it once, then trust the new times
    return record_files(files, record_path).digest == record.digest


def read_record(record_path: Path) -> DigestRecord | None:
    """The record at this path; None where there is none, or one this version cannot read."""
    try:
        return DigestRecord.model_validate_json(record_path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _known(record_path: Path) -> dict[str, FileFact]:
    record = read_record(record_path)
    return {fact.name: fact for fact in record.files} if record else {}


def _is_unchanged(path: Path, known: dict[str, FileFact]) -> bool:
    fact, status = known.get(path.name), path.stat()
    return fact is not None and (fact.size, fact.mtime_ns) == (status.st_size, status.st_mtime_ns)


def _fact(path: Path) -> FileFact:
    # the status first: a file that changes while it is read is then hashed again next time
    status = path.stat()
    return FileFact(name=path.name, size=status.st_size, mtime_ns=status.st_mtime_ns, sha256=sha256_of(path))


def _write(record_path: Path, record: DigestRecord) -> None:
    record_path.parent.mkdir(parents=True, exist_ok=True)
    half = record_path.with_name(f"{record_path.name}.{os.getpid()}.tmp")
    half.write_text(record.model_dump_json(indent=1))
    half.replace(record_path)
