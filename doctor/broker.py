"""Whether the broker answers, takes our packets, and keeps what it must keep."""

from collections.abc import Iterator

from broker.access import COORDINATOR, OBSERVER
from broker.bundle import Bundle
from broker.preflight import BrokerAbilities, BrokerUnreachable, probe
from broker.settings import BrokerSettings
from doctor.check import Check
from schemas.messages import MAX_CHUNK_SIZE
from schemas.topics import Address, InferenceRequestTo, NodeMetricsOf, ReceiptFor

SMALLEST_PACKET = MAX_CHUNK_SIZE + 8 * 1024  # a chunk or an inline body, with manifest and headers


def address_to_try(node: str | None, bundle: Bundle | None) -> Address:
    """Where this process may publish on a broker with access rules, and nobody takes notice."""
    if bundle is None:
        return NodeMetricsOf(node or "doctor")
    match bundle.name:
        case name if name == COORDINATOR:
            return ReceiptFor("doctor")
        case name if name == OBSERVER:
            return InferenceRequestTo("doctor")
        case name:
            return NodeMetricsOf(name)


def check_broker(settings: BrokerSettings, topic: str) -> Iterator[Check]:
    """Whether the broker answers, takes our packets, and keeps what it must keep."""
    try:
        abilities = probe(settings, topic)
    except (BrokerUnreachable, OSError, ValueError) as error:
        yield Check("broker", "fail", str(error), "start one with `alignfed broker`, or name yours: --broker HOST:PORT")
        return
    yield Check("broker", "ok", f"{settings.address} speaks MQTT 5 and answered in {abilities.connect_s * 1000:.0f} ms")
    yield check_packet_limit(abilities)
    yield _ability("retained messages", abilities.retained_fault, "nodes that come late would get no adapter")
    yield _ability("sessions", abilities.session_fault, "receipts would be lost while a node is away")


def check_packet_limit(abilities: BrokerAbilities) -> Check:
    """Whether a full chunk fits into one packet of this broker."""
    limit = abilities.max_packet_size
    if limit is None:
        return Check("packet limit", "ok", "the broker announces none")
    if limit >= SMALLEST_PACKET:
        return Check("packet limit", "ok", f"{limit} bytes; {SMALLEST_PACKET} are needed")
    advice = f"raise the broker's packet limit to at least {SMALLEST_PACKET} bytes (mosquitto: max_packet_size)"
    return Check("packet limit", "fail", f"{limit} bytes are too few for one chunk", advice)


def _ability(name: str, fault: str | None, consequence: str) -> Check:
    if fault is None:
        return Check(name, "ok", "they work")
    advice = f"{consequence}: check the broker's configuration and access rules, and that this name is not revoked"
    return Check(name, "fail", fault, advice)
