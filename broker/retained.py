"""One look at what a broker keeps on a topic, with a connection that leaves nothing behind."""

import secrets
import time

from broker.client import Client
from broker.events import Disconnected, Message, Subscribed
from broker.settings import BrokerSettings

PATIENCE_S = 5.0


class NothingRetained(RuntimeError):
    """The broker keeps nothing there, or did not say; the text says which."""


def read_retained(settings: BrokerSettings, topic: str, patience_s: float = PATIENCE_S) -> bytes:
    """The payload that the broker keeps on this topic. Raises NothingRetained when none came in time."""
    once = settings.model_copy(update={"session_expiry_s": 0})
    deadline, reason = time.monotonic() + patience_s, f"{settings.address} did not answer within {patience_s:g} s"
    with Client(once, f"alignfed-look-{secrets.token_hex(4)}", subscriptions=(topic,), clean_start=True) as client:
        while (left_s := deadline - time.monotonic()) > 0:
            match client.next_event(left_s):
                case Message(payload=payload):
                    return payload
                case Subscribed(reason=str(refusal)):
                    raise NothingRetained(f"{settings.address} refused a look at {topic}: {refusal}")
                case Subscribed():
                    reason = f"{settings.address} keeps nothing on {topic}"
                case Disconnected(reason=reason):
                    continue
    raise NothingRetained(reason)
