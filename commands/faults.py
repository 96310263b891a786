"""What a person reads when a command ends by an error, without the command line's own libraries."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def said_in_words() -> Iterator[None]:
    """An error within ends the process with a sentence on standard error; with --debug also with a traceback."""
    try:
        yield
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        print(*(f"alignfed: {line}" for line in in_words(error).splitlines()), sep="\n", file=sys.stderr, flush=True)
        sys.exit(FAILED)


def in_words(error: Exception) -> str:
    """What went wrong; of an error that nobody foresaw also how to see where."""
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in OWN_PACKAGES:
        return str(error)
    return (
        f"unexpected {type(error).__name__}: {error}\nRun it again as `alignfed --debug ...` to see where it happened."
    )
