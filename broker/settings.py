"""How to reach a broker: address, credentials, TLS, session. A secret is a file or the environment, never a setting."""

import os
import ssl
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PASSWORD_VARIABLE = "ALIGNFED_BROKER_PASSWORD"
PORT, TLS_PORT = 1883, 8883  # as registered for MQTT

# The largest MQTT packet this project sends or accepts: eight chunks of 120 KiB and room to spare, below every
# default that was met in the field except those of the cloud services, which announce theirs.
MAX_PACKET_SIZE = 1_048_576


class BrokerSettings(BaseModel):
    """Where the broker is and how to log in; TLS is on as soon as `ca_file` is set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", min_length=1, description="name or address of the broker")
    port: int = Field(default=PORT, ge=1, le=65535, description="usually 1883, with TLS 8883")
    username: str | None = Field(default=None, description="for brokers that ask for one")
    password_file: Path | None = Field(default=None, description="its first line is the password; needs username")
    ca_file: Path | None = Field(
        default=None, description="authority that signed the broker's certificate; turns on TLS"
    )
    cert_file: Path | None = Field(default=None, description="our certificate, for brokers that ask for one")
    key_file: Path | None = Field(default=None, description="the private key of cert_file")
    keepalive_s: int = Field(default=30, ge=1, le=65535, description="silence after which the connection is tested")
    session_expiry_s: int = Field(
        default=3600, ge=0, le=0xFFFFFFFF, description="how long the broker keeps messages for us while we are away"
    )
    max_packet_size: int = Field(
        default=MAX_PACKET_SIZE, ge=1024, le=268_435_455, description="bytes; the broker's own limit counts too"
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together: set both or neither")
        if self.cert_file is not None and self.ca_file is None:
            raise ValueError("a client certificate needs TLS: set ca_file to the authority that signed the broker's")
        if self.password_file is not None and self.username is None:
            raise ValueError("password_file is set but username is not")
        return self

    @property
    def address(self) -> str:
        """The broker as people write it, `host:port`."""
        return f"{self.host}:{self.port}"

    def read_password(self) -> str | None:
        """The password: the first line of `password_file`, else the environment, else none. Raises OSError."""
        if self.password_file is not None:
            return self.password_file.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
        return os.environ.get(PASSWORD_VARIABLE)

    def tls_context(self) -> ssl.SSLContext:
        """The TLS side of the connection. Raises ValueError naming the files when they cannot be loaded."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
        except OSError as failure:  # an SSLError is one too
            files = ", ".join(str(f) for f in (self.ca_file, self.cert_file, self.key_file) if f is not None)
            raise ValueError(f"cannot load the TLS files {files}: {failure}") from failure
        return context
