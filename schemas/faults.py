"""What pydantic found wrong with something that a stranger sent, as text that may go to a log or a terminal."""

from typing import NamedTuple

from pydantic import ValidationError


class Fault(NamedTuple):
    """The first thing wrong: the field's path, empty for the whole; and the path with what is wrong there."""

    where: str
    text: str


def first_fault(error: ValidationError, longest: int = 300) -> Fault:
    """The first fault, printable and of at most so many characters; `where` has at most 100.

    A name in it may be the sender's, so it is escaped: of a terminal's codes only their letters are left.
    """
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    text = f"{where}: {fault['msg']}" if where else fault["msg"]
    return Fault(printable(where, 100), printable(text, longest))


def printable(text: str, longest: int) -> str:
    """A text in ASCII without line breaks or control characters, of at most so many characters."""
    return text[:longest].encode("unicode_escape").decode()[:longest]
