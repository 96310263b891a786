"""Everything that decides a simulated run but the examples."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from base_model.reference import DEFAULT_NAME
from base_model.settings import TrainingConfig
from coordinator.privacy.terms import PrivacyTerms, fitted
from coordinator.strategies import Strategy
from schemas.adapter import LoraConfig
from simulation.schedule import Schedule


class Measuring(BaseModel):
    """How a run is judged. It takes no simulated time, but a good part of the real time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(default=1, ge=1, description="of so many versions one is measured; the last one always")
    held_out: int = Field(default=128, ge=1, description="held-out examples for the loss of a version")
    generated: int = Field(default=128, ge=1, description="held-out examples for the accuracy at the end")
    own_tests: int = Field(default=32, ge=1, description="of each node's own test examples, at the end")


class SimulationConfig(BaseModel):
    """One run: a method, a fleet, how long, and how it is judged."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: str = Field(min_length=1, description="what the method is called in tables")
    strategy: Strategy | None = Field(description="the method; none: training on the pooled data of all nodes")
    preset: str = Field(default="", description="a label")
    regime: str = Field(default="", description="a label")
    targets: tuple[float, ...] = Field(default=(), description="losses whose time is asked for; a label")
    seed: int = Field(default=0, ge=0, lt=1 << 48, description="of the first adapter, the schedule and every job")
    updates: int | None = Field(default=120, ge=1, description="end when so many have reached the coordinator")
    time: float | None = Field(default=None, gt=0, description="end at this time, in jobs of the fastest node")
    schedule: Schedule = Schedule()
    base_model: str = DEFAULT_NAME
    dtype: Literal["float32", "bfloat16"] = Field(default="bfloat16", description="of the frozen weights")
    lora: LoraConfig = LoraConfig(rank=8, alpha=16, target_modules=("q_proj", "v_proj"), last_layers=6)
    node_ranks: tuple[int, ...] = Field(
        default=(), description="ranks of nodes beside the global one; every rank has as many nodes as the others"
    )
    privacy: PrivacyTerms | None = Field(default=None, description="short deltas and noise; none: neither")
    training: TrainingConfig = TrainingConfig(steps=4, batch_size=4, learning_rate=4e-3)
    anchor_training: TrainingConfig | None = Field(default=None, description="as the nodes train when unset")
    anchor_examples: int = Field(default=32, ge=0)
    gate_examples: int = Field(default=64, ge=0)
    measuring: Measuring = Measuring()

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.updates is None and self.time is None:
            raise ValueError("give updates or time: a run must end")
        return self

    @model_validator(mode="after")
    def _can_promise_privacy(self) -> Self:
        if self.privacy is not None:
            if self.strategy is None:
                raise ValueError("central training has no nodes to promise privacy to")
            fitted(self.strategy)
        return self

    @model_validator(mode="after")
    def _ranks_can_share(self) -> Self:
        if self.node_ranks and self.strategy is not None and self.strategy.shared_factors != "both":
            raise ValueError(f"{self.strategy.name} shares one factor alone, so all nodes need one rank")
        return self
