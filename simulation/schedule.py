"""Who is how fast, and when: node speeds, job durations, the network, and nodes that come and go.

Time is in jobs: one is what the fastest node needs for a job on average. Everything follows from the schedule and a
seed. Nothing here knows what a job does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from simulation.seeds import generator_of


class Turnover(BaseModel):
    """Some nodes come late, or vanish: which share of them, and between which times."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    share: float = Field(gt=0, le=1, description="of the nodes, drawn by the seed")
    first: float = Field(ge=0, description="the earliest time")
    last: float = Field(ge=0, description="the latest time")

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        if self.first > self.last:
            raise ValueError(f"the first time, {self.first}, is after the last, {self.last}")
        return self


class Schedule(BaseModel):
    """How fast nodes, network and server are, and which nodes are there."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    spread: float = Field(default=15, ge=1, le=10_000, description="job of the slowest node; the fastest one's is 1")
    speeds: Literal["log-normal", "log-uniform"] = Field(
        default="log-normal", description="how the nodes between are spread"
    )
    jitter: float = Field(default=0.1, ge=0, le=1, description="standard deviation of the logarithm of job durations")
    latency: float = Field(default=0.01, ge=0, description="of one message, in jobs")
    bytes_per_job: float = Field(default=20e6, gt=0, description="what a node sends or fetches in the time of a job")
    server_speed: float = Field(default=8, gt=0, description="of the coordinator's model; 1 is the fastest node's")
    late: Turnover | None = Field(default=None, description="nodes that join late")
    lost: Turnover | None = Field(default=None, description="nodes that vanish, and what they work on with them")


@dataclass(frozen=True)
class Presence:
    """One node's place in the schedule."""

    speed: float  # duration of its jobs, without jitter
    joins_at: float
    leaves_at: float


def presences(schedule: Schedule, nodes: Sequence[str], seed: int) -> Mapping[str, Presence]:
    """Every node's speed and stay; the fastest node's speed is 1, the slowest one's `spread`."""
    speeds = _speeds(schedule, len(nodes), seed)
    joins = _times(schedule.late, nodes, seed, "late", otherwise=0.0)
    leaves = _times(schedule.lost, nodes, seed, "lost", otherwise=math.inf)
    return {
        node: Presence(speed, joins_at, leaves_at)
        for node, speed, joins_at, leaves_at in zip(nodes, speeds, joins, leaves, strict=True)
    }


def job_time(schedule: Schedule, speed: float, seed: int, node: str, number: int) -> float:
    """Duration of a node's job of this number."""
    if not schedule.jitter:
        return speed
    return speed * float(generator_of(seed, node, "duration", number).lognormal(0, schedule.jitter))


def transfer_time(schedule: Schedule, size: int) -> float:
    """How long so many bytes are on their way."""
    return schedule.latency + size / schedule.bytes_per_job


def _speeds(schedule: Schedule, count: int, seed: int) -> list[float]:
    generator = generator_of(seed, "speeds")
    drawn = generator.normal(size=count) if schedule.speeds == "log-normal" else generator.uniform(size=count)
    widest = float(np.ptp(drawn))
    # stretched to the spread exactly: extremes decide much, and should not be an accident of the seed
    logarithms = (drawn - drawn.min()) * (math.log(schedule.spread) / widest if widest else 0.0)
    return [float(speed) for speed in np.exp(logarithms)]


def _times(turnover: Turnover | None, nodes: Sequence[str], seed: int, which: str, otherwise: float) -> list[float]:
    times = [otherwise] * len(nodes)
    if turnover is not None:
        generator = generator_of(seed, which)
        for index in generator.permutation(len(nodes))[: round(turnover.share * len(nodes))]:
            times[index] = float(generator.uniform(turnover.first, turnover.last))
    return times
