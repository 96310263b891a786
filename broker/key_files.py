"""Files of keys: written whole or not at all, private ones for their owner's eyes, and a key is never overwritten."""

import os
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from broker.whole_file import sync_folder
from schemas.faults import printable
from schemas.signing import SigningKey

if TYPE_CHECKING:  # a process without keys needs none of its memory
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PRIVATE, PUBLIC = 0o600, 0o644


class KeyFileError(ValueError):
    """A file of keys that is missing, damaged or open to others; says which, and what to do."""


def write_file(path: Path, content: bytes, mode: int = PUBLIC) -> None:
    """Put `content` at `path`, in place of what is there; whole, on disk, and never readable to more than `mode`."""
    unfinished = _unfinished(path, content, mode)
    unfinished.replace(path)
    sync_folder(path.parent)


def write_new_file(path: Path, content: bytes, mode: int = PRIVATE) -> None:
    """The same where nothing is there yet; FileExistsError otherwise."""
    unfinished = _unfinished(path, content, mode)
    try:
        os.link(unfinished, path)  # unlike a rename, this never takes the place of a file
    finally:
        unfinished.unlink()
    sync_folder(path.parent)


def make_signing_key(path: Path) -> SigningKey:
    """The ed25519 key in this file; where there is none, a new one is made and kept there."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not path.exists():
        private = Ed25519PrivateKey.from_private_bytes(secrets.token_bytes(32))
        write_new_file(path, _pem(private))
    return read_signing_key(path)


def write_signing_key(path: Path, key: SigningKey) -> None:
    """Keep a key in a file of its own; FileExistsError where one is."""
    write_new_file(path, _pem(key.private))


def new_signing_key() -> SigningKey:
    """A key that nobody has seen before; nothing is written."""
    return SigningKey.from_bytes(secrets.token_bytes(32))


def read_signing_key(path: Path) -> SigningKey:
    """The ed25519 key in a PEM file. Raises KeyFileError."""
    from cryptography.exceptions import InternalError, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    content = read_key_file(path)
    if path.stat().st_mode & 0o077 and not _is_handed_over(path):
        raise KeyFileError(f"{path} can be read by others, and it is a secret: run chmod 600 {path}")
    try:
        private = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:
        why = printable(str(error) or type(error).__name__, 300)  # it may quote the file, and name faults without end
        raise KeyFileError(f"{path} holds no private key: {why}; restore it from a copy") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise KeyFileError(f"{path} holds another kind of key than ed25519: restore it from a copy")
    return SigningKey.from_bytes(private.private_bytes_raw())


def read_key_file(path: Path) -> bytes:
    """The bytes of a file that has to be there. Raises KeyFileError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"cannot read {path}: {error.strerror}; `alignfed keys` makes it") from None


def _is_handed_over(path: Path) -> bool:
    """Whether systemd gave us the file (LoadCredential=): nobody else sees that folder, whatever the modes say."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return folder is not None and path.is_relative_to(folder)


def _pem(private: "Ed25519PrivateKey") -> bytes:
    from cryptography.hazmat.primitives import serialization

    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _unfinished(path: Path, content: bytes, mode: int) -> Path:
    """The content on disk under a name that nobody looks for."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755 if mode == PUBLIC else 0o700)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return Path(name)
