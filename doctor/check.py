"""What a check says, for all of them."""

from typing import Literal, NamedTuple

MIB, GIB = 1 << 20, 1 << 30


class Check(NamedTuple):
    """One answer. `advice` says what to do about it, None where nothing is to be done."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str | None = None


def size(count: int) -> str:
    """A number of bytes, as people say it."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count // MIB} MiB"
