"""What an operator can set on a coordinator."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from base_model.settings import TrainingConfig
from coordinator.privacy.terms import PrivacyTerms, fitted
from coordinator.state import Limits
from coordinator.strategies import AlignFed, Strategy
from schemas.adapter import LoraConfig
from schemas.codec import UPDATE_CODECS
from schemas.messages import UpdateCodecId
from schemas.topics import Name


class CalibrationSettings(BaseModel):
    """The `[coordinator.calibration]` section: the coordinator's own examples, and the base model's work on them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: Path = Field(description="labelled examples of no node, JSON lines of prompt and completion")
    anchor_examples: int = Field(default=32, ge=0, le=100_000, description="of them, to train the anchor on")
    gate_examples: int = Field(default=64, ge=0, le=100_000, description="of them, to decide what nodes serve")
    training: TrainingConfig = Field(default=TrainingConfig(), description="the anchor's steps; as the nodes train")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU where there is one")
    memory_mb: int = Field(
        default=512,
        ge=16,
        description="MiB: half for a batch, so that large sets take several, half to keep what frozen layers make",
    )
    threads: int = Field(default=1, ge=1, le=1024, description="processor threads of the base model")


class HomeAssistantSettings(BaseModel):
    """The `[coordinator.home_assistant]` section: every node appears there as a device, over the same broker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefix: Name = Field(default="homeassistant", description="of discovery topics, as Home Assistant has it set")
    every_s: float = Field(default=10, ge=1, le=3600, description="figures that changed are published so often")


class CoordinatorSettings(BaseModel):
    """The `[coordinator]` section of alignfed.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data_dir: Path = Field(default=Path("alignfed-data/coordinator"), description="journal and adapters live here")
    lora: LoraConfig = Field(default=LoraConfig(), description="shape of the adapter; fixed once the federation began")
    strategy: Strategy = Field(default=AlignFed(), description="when to aggregate and how")
    seed: int = Field(default=0, ge=0, lt=1 << 63, description="of the first adapter's random factors")
    node_ranks: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        default=(), max_length=16, description="other ranks that nodes may train, to suit their hardware"
    )
    codecs: tuple[UpdateCodecId, ...] = Field(
        default=UPDATE_CODECS,
        min_length=1,
        max_length=len(UPDATE_CODECS),
        description="in which updates are taken, best first; a node whose choice is none of them uses the first",
    )
    final_version: int | None = Field(default=None, ge=1, description="stop after this version; never when unset")
    pointer_lifetime_s: float = Field(
        default=24 * 3600,
        gt=0,
        le=366 * 24 * 3600,
        description="with keys: pointers older than this are not taken up; they are renewed at half of it",
    )
    keep_versions: int = Field(default=3, ge=1, le=1000, description="newest versions whose bodies stay on the broker")
    http: str | None = Field(
        default=None,
        pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):\d{1,5}$",
        description="HOST:PORT of the page, /metrics and /healthz; they ask for no password, so mind who can reach it",
    )
    http_token: Path | None = Field(
        default=None,
        description="file with the token by which the page takes orders; made where it is missing; without it the page "
        "only shows",
    )
    http_names: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]{1,253}$")], ...] = Field(
        default=(), max_length=16, description="names of the page under which orders are taken, beside addresses"
    )
    home_assistant: HomeAssistantSettings | None = Field(
        default=None, description="without it nothing is published for Home Assistant"
    )
    calibration: CalibrationSettings | None = Field(
        default=None, description="without it there is no anchor and no gate"
    )
    privacy: PrivacyTerms | None = Field(
        default=None, description="without it deltas are not shortened and there is no noise"
    )
    limits: Limits = Field(default=Limits(), description="bounds on what strangers can make the coordinator hold")

    @property
    def listens_to_nodes(self) -> bool:
        """Whether somebody wants to know what nodes say of themselves."""
        return self.http is not None or self.home_assistant is not None

    @model_validator(mode="after")
    def _has_what_the_strategy_needs(self) -> Self:
        anchor_examples = self.calibration.anchor_examples if self.calibration else 0
        if self.strategy.name == "calibration_only" and not anchor_examples:
            raise ValueError("strategy calibration_only needs [coordinator.calibration] with anchor_examples above 0")
        return self

    @model_validator(mode="after")
    def _can_promise_privacy(self) -> Self:
        if self.privacy is None:
            return self
        fitted(self.strategy)
        if self.privacy.clip_norm > self.limits.delta_norm:
            raise ValueError("privacy.clip_norm must not be over limits.delta_norm, or every long delta is refused")
        return self
