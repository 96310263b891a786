"""What an operator can set on a coordinator."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from coordinator.state import Limits
from coordinator.strategies import FedBuff, Strategy
from schemas.adapter import LoraConfig


class CoordinatorSettings(BaseModel):
    """The `[coordinator]` section of alignfed.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data_dir: Path = Field(default=Path("alignfed-data/coordinator"), description="journal and adapters live here")
    lora: LoraConfig = Field(default=LoraConfig(), description="shape of the adapter; fixed once the federation began")
    strategy: Strategy = Field(default=FedBuff(), description="when to aggregate and how")
    seed: int = Field(default=0, ge=0, lt=1 << 63, description="of the first adapter's random factors")
    final_version: int | None = Field(default=None, ge=1, description="stop after this version; never when unset")
    keep_versions: int = Field(default=3, ge=1, le=1000, description="newest versions whose bodies stay on the broker")
    limits: Limits = Field(default=Limits(), description="bounds on what strangers can make the coordinator hold")
