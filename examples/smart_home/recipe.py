"""How the demo trains: the one place for its figures.

They were chosen by simulating the fleet's schedule with real training, one run each on 48 held-out commands. In 45
CPU seconds, batches of four on every linear module of the last ten layers came to a loss of 0.31; queries and values
alone to 0.50, six layers (in batches of eight) to 0.61, all thirty layers to 0.40. Over 160 steps in ten versions of
two updates, two sets of homes came to 0.21 and 0.23, from 4.2.

What counts in so short a run is the number of versions: with AlignFed and 28 updates, six versions of four or more
came to 0.35, nine of two or more to 0.16 (60 commands, one run each). Updates that come while the coordinator's own
model works wait for the next version, so more go into one than its buffer asks for.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from base_model.settings import TrainingConfig
from coordinator.strategies import AlignFed, Strategy
from schemas.adapter import LoraConfig

EVERY_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Recipe(BaseModel):
    """Everything that decides how well a run learns and how long it takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    versions: int = Field(default=12, ge=1, description="the run ends when this version is out")
    lora: LoraConfig = LoraConfig(rank=8, alpha=16, target_modules=EVERY_LINEAR, last_layers=10)
    strategy: Strategy = AlignFed(buffer_size=3)
    codec: Literal["kltp", "int8", "fp16", "fp32"] = "kltp"
    training: TrainingConfig = TrainingConfig(steps=8, batch_size=4, learning_rate=2e-3)
    private_examples: int = Field(default=200, ge=1, description="commands that each home has")
    anchor_examples: int = Field(default=32, ge=1, description="the coordinator's own commands to train on")
    gate_examples: int = Field(default=24, ge=1, description="its commands that decide what nodes serve")
    held_out_examples: int = Field(default=60, ge=1, description="commands that no home has")
    loss_examples: int = Field(default=16, ge=1, description="of them, for the loss of the versions between")
    asked_examples: int = Field(default=8, ge=1, description="of them, that a home is asked while it learns")
    ask_every_s: float = Field(default=1.5, gt=0, description="seconds from such an answer to the next question")
    slowdowns: tuple[float, ...] = Field(default=(1, 1.5, 3, 2), description="of four nodes; then they repeat")


RECIPE = Recipe()
