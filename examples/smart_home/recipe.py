"""How the demo trains: the one place for its figures.

Placeholders until they are measured on the held-out commands of several seeds.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from base_model.settings import TrainingConfig
from coordinator.strategies import FedBuff, Strategy
from schemas.adapter import LoraConfig


class Recipe(BaseModel):
    """Everything that decides how well a run learns and how long it takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    versions: int = Field(default=12, ge=1, description="the run ends when this version is out")
    lora: LoraConfig = LoraConfig(rank=8, alpha=16, target_modules=("q_proj", "v_proj"), last_layers=10)
    strategy: Strategy = FedBuff(buffer_size=4)
    codec: Literal["int8", "fp32"] = "int8"
    training: TrainingConfig = TrainingConfig(steps=8, batch_size=8, learning_rate=2e-3)
    private_examples: int = Field(default=120, ge=1, description="commands that each home has")
    held_out_examples: int = Field(default=96, ge=1, description="commands that no home has")
    loss_examples: int = Field(default=24, ge=1, description="of them, for the loss of the versions between")
    slowdowns: tuple[float, ...] = Field(default=(1, 1.5, 3, 2), description="of the first four nodes; then they repeat")


RECIPE = Recipe()
