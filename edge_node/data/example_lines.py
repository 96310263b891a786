"""One line of JSON, from a file, a request or a message, as an example, or the reason why it is none. Pure.

Reasons are few and fixed, so that garbage cannot make counters without end. They never repeat what the line says.
"""

from pydantic import ValidationError

from base_model.examples import MAX_CHARACTERS, Example

MAX_LINE_BYTES = 256 << 10  # two texts of the longest kind, every character escaped

NOT_UTF8 = "not UTF-8"
NOT_JSON = "not JSON"
TOO_LONG_A_LINE = f"longer than {MAX_LINE_BYTES >> 10} KiB"
NOT_AN_EXAMPLE = 'not an object with the texts "prompt" and "completion"'
UNKNOWN_FIELD = 'a field beside "prompt" and "completion"'
EMPTY_TEXT = "an empty text"
TOO_LONG_A_TEXT = f"a text over {MAX_CHARACTERS} characters"
UNFINISHED = "the last line is not finished"

_REASONS = {
    "json_invalid": NOT_JSON,
    "extra_forbidden": UNKNOWN_FIELD,
    "string_too_short": EMPTY_TEXT,
    "string_too_long": TOO_LONG_A_TEXT,
}


class NotAnExample(ValueError):
    """A line that teaches nothing; the text is one of this file's reasons."""


def parse_line(line: bytes) -> Example:
    """The example on one line; NotAnExample says in a few fixed words why it is none."""
    if len(line) > MAX_LINE_BYTES:
        raise NotAnExample(TOO_LONG_A_LINE)
    try:
        text = line.decode("utf-8")
        return Example.model_validate_json(text, strict=True)
    except UnicodeDecodeError:
        raise NotAnExample(NOT_UTF8) from None
    except ValidationError as error:
        kind = error.errors(include_url=False, include_context=False, include_input=False)[0]["type"]
        raise NotAnExample(_REASONS.get(kind, NOT_AN_EXAMPLE)) from None
