"""The other side of mqtt.py: a device that asks a node, one question at a time, and gets its answers as they stream."""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

from broker.client import Client
from broker.events import Disconnected, Event, Message, Publication, Published, Subscribed
from broker.settings import BrokerSettings
from schemas.messages import InferenceAnswer, InferenceRequest, InvalidMessage
from schemas.topics import InferenceAnswerFor, InferenceRequestTo, route

CONNECT_TIMEOUT_S = 15.0
ANSWER_TIMEOUT_S = 120.0  # between two pieces


class Unanswered(Exception):
    """There is no answer, or no more of it; the text says why."""


class Device:
    """A connection that asks one node; made by `device_for`."""

    def __init__(self, client: Client, federation: str, node: str, answers: str) -> None:
        self._client, self._federation, self._node, self._answers = client, federation, node, answers

    def ask(self, request: InferenceRequest) -> Iterator[InferenceAnswer]:
        """The parts of the answer in order. Raises Unanswered."""
        # not to be guessed: others may ask nodes to answer on our topic
        correlation, expected = secrets.token_bytes(16), 0
        token = self._client.publish(
            Publication(
                payload=request.to_bytes(),
                response_topic=self._answers,
                correlation_data=correlation,
                **route(self._federation, InferenceRequestTo(self._node))._asdict(),
            )
        )
        while True:
            match self._next():
                case Published(token=answered, reason=reason, heard=heard) if answered == token:
                    self._check_heard(reason, heard)
                case Message(properties=properties) as message:
                    self._client.ack(message)
                    if properties.correlation_data != correlation:
                        continue
                    part = _part(message)
                    if part.index < expected:  # sent twice
                        continue
                    if part.index > expected:
                        raise Unanswered("a piece of the answer is missing")
                    yield part
                    if part.last:
                        return
                    expected += 1

    def _next(self) -> Event:
        event = self._client.next_event(ANSWER_TIMEOUT_S)
        if event is None:
            raise Unanswered(f"node {self._node} has said nothing for {ANSWER_TIMEOUT_S:g} s")
        if isinstance(event, Disconnected):
            raise Unanswered(event.reason)
        return event

    def _check_heard(self, reason: str | None, heard: bool) -> None:
        if reason is not None:
            raise Unanswered(f"the broker refused the question: {reason}")
        if not heard:
            raise Unanswered(
                f"no node {self._node} of the federation {self._federation} answers there. Is it running, with --http "
                "or with mqtt = true in [edge.serving]?"
            )


@contextmanager
def device_for(broker: BrokerSettings, federation: str, node: str) -> Iterator[Device]:
    """Connect to the broker and listen for answers. Raises Unanswered, and ValueError for names that are none."""
    answers = route(federation, InferenceAnswerFor(node, _name(broker))).topic
    client = Client(
        broker.model_copy(update={"session_expiry_s": 0}),
        client_id=f"{federation}:chat:{secrets.token_hex(8)}",
        subscriptions=(answers,),
        clean_start=True,
    )
    with client:
        _listen(client)
        yield Device(client, federation, node, answers)


def _name(broker: BrokerSettings) -> str:
    """What access rules know us by, where there are any."""
    if broker.cert_file is not None:
        from broker.certificates import common_name, read_certificate

        return common_name(read_certificate(broker.cert_file))
    return broker.username or f"chat-{secrets.token_hex(8)}"


def _listen(client: Client) -> None:
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while time.monotonic() < deadline:
        match client.next_event(1.0):
            case Subscribed(reason=None):
                return
            case Subscribed(filter=topic, reason=reason):
                raise Unanswered(f"the broker refused the subscription to {topic}: {reason}")
            case Disconnected(reason=reason):
                raise Unanswered(reason)
    raise Unanswered(f"the broker has not answered within {CONNECT_TIMEOUT_S:g} s")


def _part(message: Message) -> InferenceAnswer:
    try:
        return InferenceAnswer.from_bytes(message.payload)
    except InvalidMessage as fault:
        raise Unanswered(f"what answers there is no node: {fault}") from fault
