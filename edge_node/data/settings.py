"""What the owner of a node decides about its private examples: how many, which are held out, where they come from."""

import os
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from broker.events import check_filter
from broker.settings import BrokerSettings
from schemas.topics import ROOT

LOCAL_PASSWORD_VARIABLE = "ALIGNFED_LOCAL_BROKER_PASSWORD"


class LocalDataSettings(BaseModel):
    """How a node keeps its private examples, and which of them are there to measure by."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    most_bytes: int = Field(
        default=32 << 20, ge=1 << 16, le=1 << 32, description="of text; beyond it the oldest examples are dropped"
    )
    held_out: float = Field(
        default=0.1, ge=0, le=0.9, description="share of the examples, by their prompt's hash, that is never trained on"
    )
    measured: int = Field(
        default=16,
        ge=0,
        le=10_000,
        description="held-out examples whose loss is measured and published for each version that is served, and for "
        "each that a training begins with; 0 for none",
    )
    measured_idle: bool = Field(
        default=False,
        description="the same for each new version while there is no training; it takes the memory of one, and waits "
        "where the policy says that the machine is hot, busy or low on battery",
    )
    http: Literal["off", "local", "network"] = Field(
        default="local",
        description="who may send examples to POST /v1/examples, where the node serves: programs on this machine, "
        "or whoever reaches the address",
    )


class LocalBrokerSettings(BrokerSettings):
    """A broker of the gateway's own, where devices publish examples. The node only listens there."""

    topic: str = Field(
        min_length=1, max_length=512, description="topic filter of the examples, JSON lines in a message"
    )
    is_federation_broker: bool = Field(
        default=False, description="say so where it is the federation's broker too; else that is refused"
    )

    @field_validator("topic")
    @classmethod
    def _is_a_filter(cls, topic: str) -> str:
        check_filter(topic)
        return topic

    @model_validator(mode="after")
    def _is_apart_from_the_federation(self) -> Self:
        first = self.topic.partition("/")[0]
        if first == ROOT.partition("/")[0] or (self.is_federation_broker and first in ("#", "+")):
            raise ValueError(
                f"topic {self.topic} takes in what the federation says below {ROOT}; name a tree of its own"
            )
        return self

    def read_password(self) -> str | None:
        """As of any broker, but from a variable of its own: the federation's password is not for this one."""
        return super().read_password() if self.password_file is not None else os.environ.get(LOCAL_PASSWORD_VARIABLE)
