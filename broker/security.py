"""Closed by default: without keys, a broker that others can reach is refused unless the operator says so."""

import ipaddress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from broker.settings import BrokerSettings


class SecuritySettings(BaseModel):
    """The `[security]` section: the keys that TLS and signatures are made with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: Path | None = Field(
        default=None, description="this process's bundle, made by `alignfed keys`; turns on TLS and signatures at once"
    )
    open: bool = Field(default=False, description="without keys, take part over a broker that is not on loopback")


WITHOUT_KEYS = SecuritySettings()


class OpenBroker(ValueError):
    """Anybody could take part; says what to do."""


def refuse_open_broker(security: SecuritySettings, broker: BrokerSettings) -> None:
    """Raise OpenBroker for a broker beyond this machine, where there are no keys and nobody has allowed that."""
    if security.keys is None and not security.open and not is_loopback(broker.host):
        raise OpenBroker(
            f"the broker at {broker.host} is not on this machine and no keys are set, so anybody could publish "
            "adapters: set security.keys to a bundle made by `alignfed keys`, or allow it by security.open = true"
        )


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can be there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
