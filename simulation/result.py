"""The record of one simulated run, as it is written to a file: what happened, when, and what it cost.

Everything but the processor seconds and the wall clock follows from the run's configuration, bit for bit. It knows no
models and draws no conclusions.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, PlainSerializer

Loss = Annotated[
    float,
    BeforeValidator(lambda value: math.inf if value is None else value),
    PlainSerializer(lambda value: value if math.isfinite(value) else None, when_used="json"),
    Field(description="nats per answer token; null in JSON is infinite: the run diverged"),
]
Share = Annotated[float, Field(ge=0, description="0 to 1")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Point(_Record):
    """What was served and trained from when it was decided what is served."""

    time: float = Field(description="in jobs of the fastest node")
    updates: int = Field(description="that had reached the coordinator by then, refused ones too")
    bytes: int = Field(description="that nodes had sent by then")
    fetched: int = Field(description="bytes of heads that nodes had fetched by then")
    version: int = Field(description="the newest one")
    loss: Loss = Field(description="held-out loss of what nodes serve")
    head_loss: Loss = Field(description="held-out loss of the version that nodes train from")


class Final(_Record):
    """What nodes serve at the end, on commands that nobody trained on."""

    loss: Loss
    intent_accuracy: Share | None = Field(description="of generated answers; none where no answer names an intent")
    exact_match: Share
    nodes: dict[str, Loss] = Field(description="loss on each node's own test")
    worst_quarter: Loss = Field(description="mean over the nodes with the highest losses")
    worst_tenth: Loss
    slowest_quarter: Loss = Field(description="mean over the slowest nodes")
    jain: float = Field(description="fairness of the nodes' losses: 1 when all are equal")


class NodeShare(_Record):
    """One node's part in the federation."""

    uploads: Share = Field(description="of all updates that reached the coordinator")
    weight: Share = Field(description="of all weights that updates got in versions")
    speed: float = Field(description="duration of its jobs, the fastest node's being 1")


class Staleness(_Record):
    """How many versions old the updates were when they went into one; null and empty when none did."""

    mean: float | None
    p90: int | None
    max: int | None
    histogram: tuple[int, ...] = Field(description="updates of staleness 0, 1, 2, ...")


class ByStage(_Record):
    """Means over the versions: what making one took."""

    aggregate: float
    anchor: float
    align: float
    gate: float


class RunResult(_Record):
    """One method, one regime, one seed."""

    method: str
    preset: str
    regime: str
    seed: int
    config: Mapping[str, JsonValue] = Field(description="everything that decides the run")
    task: str = Field(description="SHA-256 of all examples of the task")
    commit: str
    points: tuple[Point, ...]
    final: Final
    harmful: Share = Field(description="of measured decisions, those that raised the held-out loss by more than 1 %")
    harmful_any: Share = Field(description="those that raised it at all")
    shares: dict[str, NodeShare]
    staleness: Staleness
    receipts: dict[str, int] = Field(description="updates by what became of them on arrival")
    releases: dict[str, int] = Field(description="decisions by what is served since: head, average, before")
    server_time: ByStage = Field(description="charged in simulated time, in jobs of the fastest node")
    server_seconds: ByStage = Field(description="measured, in processor seconds")
    job_seconds: float = Field(description="median processor seconds of a node's job")
    cpu_seconds: dict[str, float] = Field(description="processor seconds of the run by part")
    seconds: float = Field(description="of the wall clock")
    ended: str = Field(description="why the run ended")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote; ValueError for a file that is not a run."""
        return cls.model_validate_json(path.read_bytes())

    def write(self, path: Path) -> None:
        """Write the run to a file, which appears whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        unfinished.replace(path)
