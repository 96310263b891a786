"""One look at a broker, with a connection that leaves nothing behind: what it keeps on a topic."""

import secrets
import time

from broker.client import Client
from broker.events import Disconnected, Message, Subscribed
from broker.settings import BrokerSettings

PATIENCE_S = 5.0
SETTLED_S = 1.0  # brokers send what they keep right behind the answer to the subscription


class BrokerAway(RuntimeError):
    """The broker did not answer, or refused; the text says what happened."""


def read_retained(settings: BrokerSettings, topic: str, patience_s: float = PATIENCE_S) -> bytes | None:
    """The payload that the broker keeps on this topic, None where it keeps nothing. Raises BrokerAway."""
    once = settings.model_copy(update={"session_expiry_s": 0})
    deadline, reason = time.monotonic() + patience_s, f"{settings.address} did not answer within {patience_s:g} s"
    answered = False
    with Client(once, f"alignfed-look-{secrets.token_hex(4)}", subscriptions=(topic,), clean_start=True) as client:
        while (left_s := deadline - time.monotonic()) > 0:
            match client.next_event(left_s):
                case Message(payload=payload):
                    return payload
                case Subscribed(reason=str(refusal)):
                    raise BrokerAway(f"{settings.address} refused a look at {topic}: {refusal}")
                case Subscribed():
                    answered, deadline = True, min(deadline, time.monotonic() + SETTLED_S)
                case Disconnected(reason=reason):
                    continue
    if answered:
        return None
    raise BrokerAway(reason)
