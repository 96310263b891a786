"""Writes the configuration of mosquitto: limits, listener, TLS and access rules. Pure text; starts nothing.

The limits are chosen for what goes wrong without them: an unlimited packet or queue lets one client take the broker's
memory, the default queue of 1000 drops messages that it has acknowledged, and a queue of 0 (unlimited) makes Debian's
mosquitto 2.0.11 disconnect every client whose publication the access rules refuse. Which topics exist is the caller's
knowledge: access rules come in as data.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from broker.events import check_filter
from broker.settings import MAX_PACKET_SIZE

MAX_QUEUED_BYTES = 268_435_456  # per client, 256 MiB
LOOPBACK = "127.0.0.1"
# Started as root, mosquitto would become a user who cannot write data_dir, and would lose its tie to the parent.
STAYS_ROOT = "user root\n"


@dataclass(frozen=True)
class AclRule:
    """Who may do what: `user` None is every authenticated user, and %u in `pattern` then stands for its name.

    `deny` comes before whatever else a user may do, by its own rules or those for everybody.
    """

    access: Literal["read", "write", "readwrite", "deny"]
    pattern: str
    user: str | None = None

    def __post_init__(self) -> None:
        check_filter(self.pattern)
        if any(mark in self.pattern + (self.user or "") for mark in "\r\n") or self.user == "":
            raise ValueError(f"an access rule is one line and its user is not empty: {self}")


@dataclass(frozen=True)
class TlsFiles:
    """The broker's own certificate and key, the authority whose client certificates it accepts, and which it does not.

    With `crl_file`, certificates on that list are refused.
    """

    ca_file: Path
    cert_file: Path
    key_file: Path
    crl_file: Path | None = None


def loopback_config(port: int, data_dir: Path) -> str:
    """mosquitto.conf for one machine: loopback only, no login."""
    return _lines(f"listener {port} {LOOPBACK}", "allow_anonymous true", *_limits(data_dir)) + STAYS_ROOT


def deployment_config(port: int, data_dir: Path, tls: TlsFiles, acl_file: Path, address: str = "") -> str:
    """mosquitto.conf for a fleet: TLS, a client certificate from everybody, its common name is the user name.

    With `address` it listens there only.
    """
    return _lines(
        f"listener {port} {address}".rstrip(),
        "allow_anonymous false",
        f"cafile {_path(tls.ca_file)}",
        f"certfile {_path(tls.cert_file)}",
        f"keyfile {_path(tls.key_file)}",
        *([f"crlfile {_path(tls.crl_file)}"] if tls.crl_file is not None else []),
        "tls_version tlsv1.2",
        "require_certificate true",
        "use_identity_as_username true",
        f"acl_file {_path(acl_file)}",
        *_limits(data_dir),
    )


def acl(rules: Sequence[AclRule]) -> str:
    """The access rules as mosquitto's ACL file: the rules for everybody, then each user's own."""
    # "pattern", not "topic": a topic line above the first user line applies to anonymous clients only.
    lines = [f"pattern {rule.access} {rule.pattern}" for rule in rules if rule.user is None]
    for user in sorted({rule.user for rule in rules if rule.user is not None}):
        lines += ["", f"user {user}"]
        lines += [f"topic {rule.access} {rule.pattern}" for rule in rules if rule.user == user]
    return _lines(*lines)


def _limits(data_dir: Path) -> Iterable[str]:
    yield f"max_packet_size {MAX_PACKET_SIZE}"
    yield "max_queued_messages 100000"
    yield f"max_queued_bytes {MAX_QUEUED_BYTES}"
    yield "max_inflight_messages 20"
    yield "persistent_client_expiration 14d"
    yield "persistence true"
    yield f"persistence_location {_path(data_dir)}/"
    yield "autosave_interval 10"
    yield "connection_messages false"


def _path(path: Path) -> str:
    text = str(path.resolve())
    if "\n" in text or "\r" in text:
        raise ValueError(f"mosquitto cannot read a path with a line break in it: {text!r}")
    return text


def _lines(*lines: str) -> str:
    return "\n".join(lines) + "\n"
