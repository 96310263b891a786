"""The node's private examples. They are read here and trained on; there is no path from here to a topic."""

from pathlib import Path

from base_model.examples import Example, InvalidExamples, load_examples


class LocalData:
    """The examples in the owner's file, read again when the file has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None  # modification time in nanoseconds, size in bytes
        self._examples: tuple[Example, ...] = ()

    def examples(self) -> tuple[Example, ...]:
        """All examples as the file has them now, at least one. Raises InvalidExamples, which says what to do."""
        try:
            status = self._path.stat()
        except OSError as fault:
            raise InvalidExamples(f"cannot read {self._path}: {fault.strerror}") from fault
        now = (status.st_mtime_ns, status.st_size)
        if now != self._seen:
            self._examples = load_examples(self._path)
            self._seen = now
        return self._examples
