"""Whether the keys are this process's and this federation's, and for how long they are good."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from broker.access import COORDINATOR, OBSERVER
from broker.bundle import (
    Bundle,
    load_coordinator_bundle,
    load_node_bundle,
    load_online,
    load_ring,
    membership_in,
    read_bundle,
    read_certificate_of_key,
    read_membership,
)
from broker.certificates import read_certificate
from broker.key_files import KeyFileError
from broker.security import OpenBroker, SecuritySettings, is_loopback, refuse_open_broker
from broker.settings import BrokerSettings
from doctor.check import Check

SOON = timedelta(days=30)  # `alignfed keys enrol` and `init` renew what ends earlier than this
ROTATE = "run `alignfed keys rotate` where the federation's keys are; it needs offline/, and the coordinator goes on"
SET_KEYS = "set security.keys to the bundle that `alignfed keys` made for this process"


def check_without_keys(security: SecuritySettings, broker: BrokerSettings) -> Check:
    """Whether a process without keys would refuse the broker."""
    try:
        refuse_open_broker(security, broker)
    except OpenBroker as refusal:
        found, _, advice = str(refusal).partition(": ")
        return Check("keys", "fail", found, advice)
    if is_loopback(broker.host):
        return Check("keys", "ok", "none are set, and the broker is on this machine")
    return Check(
        "keys", "ok", "none are set, and security.open allows it: whoever reaches the broker can publish adapters"
    )


def check_bundle(folder: Path, federation: str, node: str | None) -> tuple[Check, Bundle | None]:
    """Whether a process of this federation, and of this node if there is one, would take the bundle; and the bundle."""
    try:
        bundle = read_bundle(folder)
    except (KeyFileError, OSError) as fault:
        return Check("keys", "fail", str(fault), SET_KEYS), None
    try:
        _load(bundle, federation, node)
    except (KeyFileError, OSError) as fault:
        return Check("keys", "fail", str(fault), SET_KEYS), bundle
    if node is not None and bundle.name in (COORDINATOR, OBSERVER):
        found = f"{folder} is the bundle of {bundle.name}, with which the node {node} would not start"
        return Check(
            "keys", "warn", found, f"where {node} runs, set security.keys to alignfed-keys/nodes/{node}"
        ), bundle
    return Check("keys", "ok", f"{folder} is the bundle of {bundle.name} in federation {bundle.federation}"), bundle


def _load(bundle: Bundle, federation: str, node: str | None) -> None:
    """Load the bundle as its own process does. Raises KeyFileError."""
    if bundle.name == COORDINATOR:
        load_coordinator_bundle(bundle.folder, federation)
        load_ring(bundle.folder)
    elif bundle.name == OBSERVER:
        membership_in(bundle.folder, federation, OBSERVER)
    else:
        load_node_bundle(bundle.folder, federation, node or bundle.name)


def check_certificate(path: Path, bundle: Bundle | None, now: datetime) -> Check:
    """Whether the certificate for the broker, of the bundle or of the settings, is good and stays so for a while."""
    try:
        certificate = read_certificate(path)
    except KeyFileError as fault:
        return Check("certificate", "fail", str(fault), SET_KEYS)
    advice = "renew it where it came from"
    if bundle is not None and path.parent == bundle.folder:
        renewal = "init" if bundle.name in (COORDINATOR, OBSERVER) else f"enrol {bundle.name}"
        advice = f"renew it by `alignfed keys {renewal}` where the federation's keys are, and copy the bundle here"
    return _judged("certificate", str(path), certificate.not_valid_after_utc, now, advice)


def check_own_signing_key(bundle: Bundle, now: datetime) -> Check:
    """How long nodes believe what a coordinator signs."""
    try:
        certificate = load_online(bundle.folder, read_membership(bundle.folder)).certificate
    except (KeyFileError, OSError) as fault:
        return Check("signing key", "fail", str(fault), SET_KEYS)
    return _judged("signing key", "the coordinator's", _at(certificate.expires_at_ns), now, ROTATE)


def check_federations_key(said: bytes | None, bundle: Bundle, now: datetime) -> Check:
    """Whether this bundle's root has certified the key of the coordinator that is on the broker."""
    name = "federation's key"
    if not said:
        return Check(name, "warn", "no coordinator with keys was ever on this broker", "start it with its own bundle")
    try:
        certificate = read_certificate_of_key(said, read_membership(bundle.folder))
    except KeyFileError as fault:
        advice = (
            "this bundle is of other keys than the coordinator's: enrol the node with the coordinator's, and copy it"
        )
        return Check(name, "fail", str(fault), advice)
    return _judged(name, "the coordinator's signing key", _at(certificate.expires_at_ns), now, ROTATE)


def _judged(name: str, what: str, ends: datetime, now: datetime, advice: str) -> Check:
    """How long something is still good."""
    if ends <= now:
        return Check(name, "fail", f"{what} has run out on {ends:%Y-%m-%d}", advice)
    if ends - now < SOON:
        return Check(name, "warn", f"{what} runs out in {(ends - now).days} days, on {ends:%Y-%m-%d}", advice)
    return Check(name, "ok", f"{what} is good until {ends:%Y-%m-%d}")


def _at(ns: int) -> datetime:
    return datetime.fromtimestamp(ns / 1e9, UTC)
