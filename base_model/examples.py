"""A user's training data: JSON lines of a prompt and the completion that should follow it.

It knows the format and its limits. It does not know what the data are about, or any model.
"""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.faults import first_fault

MAX_CHARACTERS = 8192
MAX_PROMPT_TOKENS = 768
MAX_ANSWER_TOKENS = 256
MAX_FILE_BYTES = 256 << 20

Text = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]


class InvalidExamples(ValueError):
    """A file of examples that cannot be used; the text names file and line, and says what to do."""


class Example(BaseModel):
    """One thing to learn: after this prompt, answer with this completion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Text
    completion: Text


def load_examples(path: Path) -> tuple[Example, ...]:
    """Read examples, one JSON object a line; blank lines are skipped, anything else raises InvalidExamples."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidExamples(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB; split it among several nodes")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InvalidExamples(f"cannot read {path}: {error.strerror}") from error
    examples = tuple(_parse(line, path, number) for number, line in enumerate(lines, start=1) if line.strip())
    if not examples:
        raise InvalidExamples(f'{path} holds no examples; write one {{"prompt": ..., "completion": ...}} a line')
    return examples


def save_examples(examples: tuple[Example, ...], path: Path) -> None:
    """Write examples as `load_examples` reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(example.model_dump_json() + "\n" for example in examples), encoding="utf-8")


def _parse(line: bytes, path: Path, number: int) -> Example:
    try:
        return Example.model_validate_json(line)
    except ValidationError as error:
        fault = first_fault(error).text
        raise InvalidExamples(
            f'{path}, line {number}: {fault}. Each line is a JSON object with the texts "prompt" and "completion" '
            f"(1 to {MAX_CHARACTERS} characters) and nothing else."
        ) from None
