"""What an operator can set on the base model and on local training. No PyTorch."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from base_model.reference import DEFAULT_NAME, default_cache


class BaseModelSettings(BaseModel):
    """The `[base_model]` section of alignfed.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default=DEFAULT_NAME, min_length=1, description="a folder, a .gguf file, a hub id, or pypi:...")
    cache_dir: Path | None = Field(default=None, description="where fetched models are kept")

    @property
    def cache(self) -> Path:
        """The cache folder: as set, else the user's own."""
        return self.cache_dir or default_cache()


class TrainingConfig(BaseModel):
    """How one job trains: AdamW without weight decay on the mean loss of the answer tokens.

    `trained_factors` B is FFA-LoRA's choice (arXiv 2403.12313). `proximal` is mu of FedProx (arXiv 1812.06127): the
    loss grows by mu/2 times the squared distance of the factors from those the job started with.
    `representation_penalty` is lambda of AlignFed's equation (3) (arXiv 2606.08197): the loss grows by lambda times the
    mean over examples of the squared distance between the model's features and those it had when the job began.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=8, ge=1, le=100_000, description="optimizer steps in one job")
    batch_size: int = Field(default=8, ge=1, le=1024, description="examples in one step")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="AdamW's step size, constant over the job")
    gradient_clip: float = Field(default=1.0, gt=0, description="largest gradient norm of one step")
    seed: int = Field(default=0, ge=0, description="decides the order of the examples; one per job")
    trained_factors: Literal["both", "A", "B"] = Field(default="both", description="the other factor stays as it is")
    proximal: float = Field(default=0, ge=0, description="pull of the factors towards the job's start (FedProx's mu)")
    representation_penalty: float = Field(
        default=0, ge=0, description="pull of the features of prompts towards the job's start (AlignFed's lambda)"
    )
