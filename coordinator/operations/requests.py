"""What an operator asks of a coordinator that may be running: a file in its data folder, answered by another.

    requests/<id>.json    asked, and not done yet
    answers/<id>.json     what came of it

Who may write into the folder may ask; the network cannot. A request that is found is done, also by a later process.
"""

import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coordinator.registry import write_whole
from schemas.messages import Variant, Version

RequestId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class RollbackRequest(BaseModel):
    """Serve what an earlier version was served as; for the head, train from it too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: RequestId
    version: Version
    variant: Variant
    scope: Literal["release", "head"]


class RollbackAnswer(BaseModel):
    """What came of a rollback: the new entry, or why there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    refused: str | None = None
    epoch: int
    head: int
    release: int
    variant: Variant


def ask(data_dir: Path, version: int, variant: Variant, scope: Literal["release", "head"]) -> RollbackRequest:
    """Leave a request on disk for the coordinator of this folder."""
    # named by the time, so that requests are done in the order in which they were made
    name = f"{time.time_ns():016x}{secrets.token_hex(8)}"
    request = RollbackRequest(id=name, version=version, variant=variant, scope=scope)
    write_whole(data_dir / "requests" / f"{name}.json", request.model_dump_json().encode())
    return request


def answer_of(data_dir: Path, request: RollbackRequest) -> RollbackAnswer | None:
    """What came of a request; None until it was dealt with."""
    path = data_dir / "answers" / f"{request.id}.json"
    return RollbackAnswer.model_validate_json(path.read_bytes()) if path.exists() else None


def waiting(data_dir: Path) -> Iterator[RollbackRequest]:
    """The requests that were not dealt with yet, oldest first; files that are none are put away."""
    for path in sorted((data_dir / "requests").glob("*.json")):
        try:
            yield RollbackRequest.model_validate_json(path.read_bytes())
        except ValidationError:
            path.rename(path.with_suffix(".unreadable"))


def answer(data_dir: Path, request: RollbackRequest, said: RollbackAnswer) -> None:
    """Say what came of a request, and forget it."""
    write_whole(data_dir / "answers" / f"{request.id}.json", said.model_dump_json().encode())
    (data_dir / "requests" / f"{request.id}.json").unlink(missing_ok=True)
