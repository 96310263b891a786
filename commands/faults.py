"""What a person reads when a command ends by an error, without the command line's own libraries."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

DEBUG_VARIABLE = "ALIGNFED_DEBUG"
OWN_PACKAGES = {
    "base_model",
    "broker",
    "commands",
    "configuration",
    "coordinator",
    "doctor",
    "edge_node",
    "examples",
    "schemas",
    "simulation",
}
FAILED = 1


def note(*lines: str) -> None:
    print(*lines, sep="\n", file=sys.stderr, flush=True)


def fail(message: str, code: int) -> NoReturn:
    """End the process with a message on standard error."""
    note(*(f"alignfed: {line}" for line in message.splitlines()))
    sys.exit(code)


@contextmanager
def said_in_words() -> Iterator[None]:
    """An error within ends the process with a sentence on standard error; with --debug also with a traceback."""
    try:
        yield
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        fail(in_words(error), FAILED)


def in_words(error: Exception) -> str:
    """What went wrong; of an error that nobody foresaw also how to see where."""
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in OWN_PACKAGES:
        return str(error)
    return (
        f"unexpected {type(error).__name__}: {error}\nRun it again as `alignfed --debug ...` to see where it happened."
    )
