"""How long work tells a person about itself: a stage, what is done, and the total where it is known."""

from collections.abc import Callable

Progress = Callable[[str, int, int | None], None]
"""Called as progress(stage, done_bytes, total_bytes or None); stages: wait, download, convert, hash."""


def silent(stage: str, done: int, total: int | None) -> None:
    """Progress for callers who show nothing."""
