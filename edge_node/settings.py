"""What the owner of a node decides: its name, its data, how it trains, how much it keeps. Loads no PyTorch."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from base_model.settings import TrainingConfig
from edge_node.data.settings import LocalBrokerSettings, LocalDataSettings
from edge_node.policy import TrainingPolicy
from schemas.kltp import COARSEST, FINEST
from schemas.messages import UpdateCodecId
from schemas.topics import Name

HOST_AND_PORT = r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):\d{1,5}$"


def _own_folder(settings: dict[str, Any]) -> Path:
    return Path("alignfed-data") / str(settings.get("node", "node"))


class ProbeSettings(BaseModel):
    """When a node goes back to what it served before, which it does by itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    examples: int = Field(
        default=4, ge=0, le=1000, description="of its own, held out, that a node tries a new adapter on; 0 for none"
    )
    rise: float = Field(
        default=0.1,
        ge=0,
        le=100,
        description="of their loss that is borne, relative to the base model without an adapter",
    )
    slack: float = Field(default=0.1, ge=0, le=100, description="nats on top of that")


class ServingSettings(BaseModel):
    """How a node answers questions with the federation's adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    http: str | None = Field(
        default=None,
        pattern=HOST_AND_PORT,
        description="HOST:PORT to answer on, in OpenAI's shape; a node serves when this is set, or mqtt is true",
    )
    mqtt: bool | None = Field(
        default=None, description="answer on the broker's topic infer/{node} too; when unset, if http is set"
    )
    precision: Literal["q41x", "fp32"] | None = Field(
        default=None, description="q41x serves a GGUF file's blocks, fp32 any weights; by the model's files when unset"
    )
    threads: int = Field(default=1, ge=1, le=1024, description="processor threads that one answer may use")
    parallel: int = Field(default=2, ge=1, le=64, description="answers that are made at the same time")
    waiting: int = Field(default=16, ge=1, le=10_000, description="more requests than these are refused with 503")
    timeout_s: float = Field(default=60.0, gt=0, le=3600, description="patience with one answer, waiting included")
    max_tokens: int = Field(default=256, ge=1, le=4096, description="of an answer whose request sets no limit")
    probe: ProbeSettings = ProbeSettings()

    @property
    def over_mqtt(self) -> bool:
        """Whether the node answers on the broker."""
        return self.http is not None if self.mqtt is None else self.mqtt

    @property
    def is_on(self) -> bool:
        """Whether the node answers at all."""
        return self.http is not None or self.over_mqtt


class EdgeSettings(BaseModel):
    """One node: the private examples it learns from, and the limits it keeps to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: Name
    data: Path | None = Field(
        default=None,
        description="private examples: a file of JSON lines, or a folder of *.jsonl, read again as they change; "
        "unset where they come over HTTP or the local broker alone",
    )
    data_dir: Path = Field(
        default_factory=_own_folder, description="the node's own folder: examples, outbox, held version"
    )
    local_data: LocalDataSettings = LocalDataSettings()
    local_broker: LocalBrokerSettings | None = Field(
        default=None, description="the gateway's own broker, where devices publish examples; none when unset"
    )
    codec: UpdateCodecId = Field(
        default="kltp", description="for updates, if the coordinator takes it; else the best that both know"
    )
    kltp_step: float = Field(
        default=1.0, ge=FINEST, le=COARSEST, description="of the codec kltp: 2 halves the bytes, and loses more"
    )
    slowdown: float = Field(
        default=1.0, ge=1, le=1000, description="above 1: pause after each step, to behave like slower hardware"
    )
    threads: int = Field(default=1, ge=1, le=1024, description="processor threads that training may use")
    activations: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of training; auto: bfloat16 on a GGUF file's blocks, if the processor has it"
    )
    training: TrainingConfig = TrainingConfig()
    metrics_http: str | None = Field(
        default=None,
        pattern=HOST_AND_PORT,
        description="HOST:PORT of /metrics and /healthz, for a node that does not answer over HTTP, which has both at "
        "serving.http; no password",
    )
    serving: ServingSettings = ServingSettings()
    policy: TrainingPolicy = TrainingPolicy()
    rank: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="train at this LoRA rank, if the federation takes it; its own when unset",
    )
    outbox_updates: int = Field(
        default=16, ge=1, le=10_000, description="training pauses while so many updates wait for their receipt"
    )
    outbox_bytes: int = Field(
        default=256 << 20, ge=1 << 20, description="beyond it the updates with the oldest base are dropped"
    )
    resend_after_s: float = Field(
        default=30.0, gt=0, le=3600, description="patience with a missing receipt; it doubles with every attempt"
    )

    @model_validator(mode="after")
    def _learns_from_something(self) -> Self:
        over_http = self.serving.http is not None and self.local_data.http != "off"
        if self.data is None and self.local_broker is None and not over_http:
            raise ValueError("there is nothing to learn from: set data, or serving.http, or local_broker")
        return self
