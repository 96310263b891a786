"""Global adapters on disk, content-addressed, with their lineage.

    objects/<digest>.safetensors    the bytes of one adapter: `sha256sum` prints its name
    manifests/<version>.json        the manifest of one version
    decisions/<version>.json        whether nodes serve it, and why; the newest says what they serve
    signatures/<version>.signed     the manifest as it was published, with its signature, in a federation with keys
    signatures/decisions/<version>.signed    the same of the decision

A file appears under its name only when it is whole and on disk, so whatever is found can be used after a crash.
"""

import hashlib
from pathlib import Path

from broker.whole_file import write_whole
from schemas.adapter import Adapter, Layout
from schemas.messages import GlobalManifest, InvalidMessage, ReleaseReport, Variant
from schemas.signing import unsigned


class RegistryError(RuntimeError):
    """A version that is not here, or whose bytes are not what its manifest says."""


class Registry:
    """The versions kept under one folder, which is created when the first one is added."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, manifest: GlobalManifest, adapter: Adapter) -> None:
        """Keep one version. Adding it again is harmless; on return it survives a power cut."""
        self._keep(adapter)
        write_whole(self.folder / "manifests" / f"{manifest.version}.json", manifest.to_bytes())

    def set_release(self, report: ReleaseReport, adapter: Adapter) -> None:
        """Keep a decision and what nodes serve by it; on return it survives a power cut."""
        self._keep(adapter)
        write_whole(self._decision(report.judged), report.to_bytes())

    def has_decided(self, version: int) -> bool:
        """Whether a decision on this version is kept."""
        return self._decision(version).exists()

    def decided(self) -> list[int]:
        """Every version that there is a decision on, oldest first."""
        return _numbered(self.folder / "decisions")

    def decisions(self) -> dict[int, ReleaseReport]:
        """By version, oldest first, what was decided on it; versions that were passed over are not there."""
        return {version: self._read_decision(version) for version in self.decided()}

    def decision(self, version: int) -> ReleaseReport | None:
        """What was decided on one version; None for one that was passed over, or is not judged yet."""
        return self._read_decision(version) if self.has_decided(version) else None

    def release(self) -> ReleaseReport:
        """What nodes serve: the newest decision."""
        judged = self.decided()
        if not judged:
            raise RegistryError(f"there is no decision in {self.folder}; starting the coordinator writes them again")
        return self._read_decision(judged[-1])

    def _decision(self, version: int) -> Path:
        return self.folder / "decisions" / f"{version}.json"

    def _read_decision(self, version: int) -> ReleaseReport:
        path = self._decision(version)
        try:
            return ReleaseReport.from_bytes(path.read_bytes())
        except InvalidMessage as error:
            raise RegistryError(f"{path} is damaged: {error}; delete it and start the coordinator again") from None

    def seal(self, version: int, signed: bytes) -> None:
        """Keep a version's manifest as it was signed."""
        write_whole(self._seal("", version), signed)

    def seal_decision(self, version: int, signed: bytes) -> None:
        """Keep the decision on a version as it was signed."""
        write_whole(self._seal("decisions", version), signed)

    def seal_of(self, version: int) -> bytes | None:
        """A version's manifest as it was signed; None if it never was."""
        return _content(self._seal("", version))

    def seal_of_decision(self, version: int) -> bytes | None:
        """The decision on a version as it was signed; None if it never was."""
        return _content(self._seal("decisions", version))

    def newest_sealed(self) -> tuple[int, int]:
        """The newest version that was ever signed, and the newest with a signed decision; -1 where there is none."""
        folder = self.folder / "signatures"
        return max(_numbered(folder, "signed"), default=-1), max(_numbered(folder / "decisions", "signed"), default=-1)

    def unsealed(self) -> list[GlobalManifest]:
        """The manifests that were not signed as they are, oldest first."""
        # bytes are compared, not parsed: every start looks at every version there has ever been
        manifests = self.folder / "manifests"
        return [self.manifest(v) for v in self.numbers() if not _is_sealed(self.seal_of(v), manifests / f"{v}.json")]

    def unsealed_decisions(self) -> list[ReleaseReport]:
        """The decisions that were not signed as they are, oldest first."""
        decided = [v for v in self.decided() if not _is_sealed(self.seal_of_decision(v), self._decision(v))]
        return [self._read_decision(version) for version in decided]

    def _seal(self, kind: str, version: int) -> Path:
        return self.folder / "signatures" / kind / f"{version}.signed"

    def has(self, manifest: GlobalManifest) -> bool:
        """Whether this very version is kept already."""
        path = self.folder / "manifests" / f"{manifest.version}.json"
        return path.exists() and path.read_bytes() == manifest.to_bytes()

    def numbers(self) -> list[int]:
        """Every version that has a manifest here, whole or damaged, oldest first."""
        return _numbered(self.folder / "manifests")

    def versions(self) -> list[GlobalManifest]:
        """Every manifest, oldest first."""
        return [self.manifest(version) for version in _numbered(self.folder / "manifests")]

    def manifest(self, version: int) -> GlobalManifest:
        """The manifest of one version."""
        try:
            return GlobalManifest.from_bytes((self.folder / "manifests" / f"{version}.json").read_bytes())
        except FileNotFoundError:
            raise RegistryError(f"there is no version {version} in {self.folder}") from None
        except InvalidMessage as error:
            path = self.folder / "manifests" / f"{version}.json"
            raise RegistryError(f"{path} is damaged: {error}; delete it and start the coordinator again") from None

    def body(self, version: int, variant: Variant = "head") -> bytes:
        """The safetensors bytes of a version's head, or of its average if that was ever served, verified."""
        manifest = self.manifest(version)
        body = manifest.body if variant == "head" else manifest.average
        if body is None:
            raise RegistryError(f"version {version} in {self.folder} has no average, only its head")
        return self._object(body.sha256, version)

    def adapter(self, version: int, layout: Layout, variant: Variant = "head") -> Adapter:
        """The head or the average of one version."""
        return Adapter.from_safetensors(layout, self.body(version, variant))

    def _keep(self, adapter: Adapter) -> None:
        path = self.folder / "objects" / f"{adapter.digest}.safetensors"
        if not path.exists():  # under its name it is whole
            write_whole(path, adapter.to_safetensors())

    def _object(self, digest: str, version: int) -> bytes:
        try:
            body = (self.folder / "objects" / f"{digest}.safetensors").read_bytes()
        except FileNotFoundError:
            raise RegistryError(f"the adapter {digest[:12]} of version {version} is missing in {self.folder}") from None
        if hashlib.sha256(body).hexdigest() != digest:
            raise RegistryError(f"the adapter {digest[:12]} of version {version} in {self.folder} is damaged")
        return body


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _is_sealed(signed: bytes | None, path: Path) -> bool:
    return signed is not None and unsigned(signed) == path.read_bytes()


def _numbered(folder: Path, kind: str = "json") -> list[int]:
    """The versions that have a file of this kind there, oldest first."""
    return sorted(int(path.stem) for path in folder.glob(f"*.{kind}") if path.stem.isdecimal())
