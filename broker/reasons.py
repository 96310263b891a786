"""What went wrong with a connection, in words a person can act on. Pure."""

import ssl

from broker.settings import BrokerSettings

_REMEDIES = {  # by MQTT 5 reason code
    0x84: "it does not speak MQTT 5; use one that does",
    0x85: "it does not accept this client id",
    0x86: "check username and password",
    0x87: "check username, password or client certificate, and the broker's access rules",
    0x8A: "this client is banned there",
    0x8E: "another client connected with the same client id, and each needs its own",
    0x93: "more messages were in flight than it allows",
    0x95: "a packet was larger than it accepts",
}


def refused(settings: BrokerSettings, code: int, name: str) -> str:
    """The broker answered the connect with a no."""
    return f"the broker at {settings.address} refused the connection: {name}; {_remedy(code)}"


def closed(settings: BrokerSettings, code: int, name: str) -> str:
    """The broker ended the connection and said why."""
    return f"the broker at {settings.address} closed the connection: {name}; {_remedy(code)}"


def silent(settings: BrokerSettings) -> str:
    """The keepalive went unanswered."""
    return f"the broker at {settings.address} has stopped answering for more than {settings.keepalive_s} s"


def unread(settings: BrokerSettings) -> str:
    """We have not read what it sent for too long: the inbox was full."""
    return f"the connection to the broker at {settings.address} was given up: this process takes nothing from it"


def lost(settings: BrokerSettings, answered: bool) -> str:
    """The connection ended without a word."""
    if answered:
        return (
            f"the connection to the broker at {settings.address} broke off; "
            "should this go on, look whether another client uses the same client id"
        )
    return (
        f"{settings.address} accepts connections but does not answer an MQTT 5 connect: "
        "is it an MQTT 5 broker, and does this port expect TLS?"
    )


def unreachable(settings: BrokerSettings, failure: OSError) -> str:
    """No connection came about."""
    if settings.password_file is not None and failure.filename == str(settings.password_file):
        return f"cannot read password_file: {failure}"
    if isinstance(failure, ssl.SSLError):
        return f"TLS with {settings.address} failed: {failure}; check ca_file, cert_file, key_file and the host name"
    return f"cannot reach a broker at {settings.address}: {failure}"


def _remedy(code: int) -> str:
    return _REMEDIES.get(code, "see its log")
