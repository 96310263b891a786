"""The file with the token by which the page takes orders: made where there is none, and nobody else's to read."""

import os
import secrets
from pathlib import Path

SHORTEST = 16  # characters; ours have 43


class TokenFileError(OSError):
    """The token cannot be used; says why and what to do."""


def read_or_make_token(path: Path) -> str:
    """The token in a file, which is made with a new one where it is missing. Raises OSError."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read(path)
    with os.fdopen(file, "w", encoding="ascii") as new:
        new.write(secrets.token_urlsafe(32) + "\n")
        new.flush()
        os.fsync(new.fileno())
    return _read(path)


def _read(path: Path) -> str:
    if path.stat().st_mode & 0o077:
        raise TokenFileError(f"{path} can be read by others, and it is a secret: run chmod 600 {path}")
    token = path.read_bytes()[:4096].strip()
    if len(token) < SHORTEST or not all(0x21 <= byte <= 0x7E for byte in token):
        raise TokenFileError(
            f"{path} should hold one word of at least {SHORTEST} letters, digits and signs: remove it, and the "
            "coordinator makes a new one"
        )
    return token.decode("ascii")
