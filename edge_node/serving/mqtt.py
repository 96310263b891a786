"""The node's MQTT face: requests on `infer/{node}`, each answered on its response topic. A connection of its own.

A flood of requests must not hold up what the node learns, so they do not share the connection of its updates. Who asks
is not known, so a stranger's request is checked before anything is published for it. It decides nothing about adapters.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from broker.client import Client
from broker.events import Message, NetworkThreadDied, PayloadTooLarge, Publication, Published, QueueFull, Subscribed
from broker.settings import BrokerSettings
from edge_node.health import Told
from edge_node.serving.answering import Answering, Begun, Ended, Failed, News, Overloaded, Piece, Question
from edge_node.serving.generation import Sampling
from edge_node.serving.inference import AdapterSlot, Inference
from schemas.messages import (
    MAX_SENTENCE,
    InferenceAnswer,
    InferenceError,
    InferenceRequest,
    InvalidMessage,
    Refusal,
)
from schemas.topics import InferenceAnswerFor, InferenceRequestTo, may_answer_on, topic_filter

log = logging.getLogger(__name__)

MOST_REQUEST_BYTES = 256 << 10
MOST_CORRELATION_BYTES = 128  # it comes back with every piece of an answer
FAREWELL_S = 2.0
CODES: dict[str, Refusal] = {
    "invalid": "bad_request",
    "too_long": "too_long",
    "waited": "overloaded",
    "timeout": "timeout",
    "fault": "fault",
    "stopped": "stopped",
}


class _Answers(NamedTuple):
    """What requests are answered from, once the model is loaded."""

    inference: Inference
    answering: Answering
    usual_tokens: int


class MqttServer:
    """Takes requests from `start` to `stop`; before `serve` each is told that the model is loading."""

    def __init__(
        self, broker: BrokerSettings, federation: str, node: str, base_model: str, emit: Callable[[Exception], None]
    ) -> None:
        """`base_model` is its digest; `emit` is given what the network thread died of."""
        self._federation, self._node, self._base_model, self._emit = federation, node, base_model, emit
        self._client = Client(
            # a device learns at once that no node listens, where a session of ours would keep its request for later
            broker.model_copy(update={"session_expiry_s": 0}),
            client_id=f"{federation}:answers:{node}",
            subscriptions=(topic_filter(federation, InferenceRequestTo, node=node),),
            clean_start=True,
        )
        self._answers: _Answers | None = None
        self._lock = threading.Lock()  # guards the two below
        self._sent: dict[int, _Conversation] = {}  # by the token of a message that the broker has not answered for
        self._counts: Counter[str] = Counter()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="infer", daemon=True)

    def start(self) -> None:
        """Begin to take requests; a broker that is away is waited for."""
        self._client.start()
        self._thread.start()

    def serve(self, inference: Inference, answering: Answering, usual_tokens: int) -> None:
        """Answer from now on; with at most `usual_tokens` tokens unless a request says otherwise."""
        self._answers = _Answers(inference, answering, usual_tokens)

    def stop(self) -> None:
        """Take no more requests, let what was said reach the broker, and end."""
        self._stopped.set()
        self._thread.join(FAREWELL_S)
        self._client.stop(FAREWELL_S)

    def counts(self) -> dict[str, int]:
        """How many requests were taken, refused, and dropped without an answer, and how many answers nobody heard."""
        with self._lock:
            return {name: self._counts[name] for name in ("taken", "refused", "dropped", "unheard")}

    def look(self) -> Told:
        """Whether it takes questions, while a broker is there."""
        has_died = self._thread.ident is not None and not self._thread.is_alive() and not self._stopped.is_set()
        faults = ("the thread that takes questions over MQTT died; the node's log says why",) if has_died else ()
        return Told(faults, {"over_mqtt": self.counts()})

    def _work(self) -> None:
        try:
            while not self._stopped.is_set():
                match event := self._client.next_event(0.2):
                    case Message():
                        self._asked(event)
                        self._client.ack(event)
                    case Published():
                        self._published(event)
                    case Subscribed(filter=topics, reason=reason) if reason is not None:
                        log.warning("the broker refused the subscription to %s: %s", topics, reason)
        except NetworkThreadDied as fault:  # carried to the main loop, which stops loudly
            self._emit(fault)

    def _asked(self, message: Message) -> None:
        topic, correlation = message.properties.response_topic, message.properties.correlation_data
        if topic is None:
            return self._drop("it has no response topic")
        if not may_answer_on(self._federation, self._node, topic):
            return self._drop(f"this node does not answer on {topic[:100]!a}")
        if len(correlation or b"") > MOST_CORRELATION_BYTES:
            return self._drop(f"its correlation data is over {MOST_CORRELATION_BYTES} bytes")
        answers, conversation = self._answers, _Conversation(self._send, topic, correlation, self._base_model)
        try:
            request = _request(message)
        except _Refused as fault:
            return self._refuse(conversation, fault.code, str(fault))
        if answers is None:
            return self._refuse(conversation, "loading", "the node is still loading the model; try again in a moment")
        conversation.stream, conversation.slot = request.stream, answers.inference.current
        try:
            answers.answering.ask(_question(request, answers.usual_tokens), conversation.tell, conversation.given_up)
        except Overloaded:
            text = "the node has as many requests as it can take; try again in a moment"
            return self._refuse(conversation, "overloaded", text)
        self._count("taken")

    def _drop(self, reason: str) -> None:
        count = self._count("dropped")
        if count & (count - 1) == 0:  # powers of two: a stranger must not fill the log
            log.warning("%d inference requests were dropped so far, the last one because %s", count, reason)

    def _refuse(self, conversation: "_Conversation", code: Refusal, reason: str) -> None:
        self._count("refused")
        conversation.refuse(code, reason)

    def _count(self, name: str) -> int:
        with self._lock:
            self._counts[name] += 1
            return self._counts[name]

    def _send(self, conversation: "_Conversation", answer: InferenceAnswer) -> None:
        """Hand a part of an answer to the client; called from the thread that answers."""
        try:
            with self._lock:  # held on, so that the broker's answer does not come before the token is known
                self._sent[self._client.publish(conversation.publication(answer))] = conversation
        except PayloadTooLarge:
            conversation.given_up.set()
            if answer.error is None:
                text = "the answer is larger than the broker takes: ask with stream, or for fewer tokens"
                conversation.refuse("too_long", text)
        except QueueFull:
            conversation.given_up.set()
            self._count("unheard")

    def _published(self, answer: Published) -> None:
        """Go on with no answer that does not arrive."""
        with self._lock:
            conversation = self._sent.pop(answer.token, None)
        if conversation is None or conversation.given_up.is_set() or (answer.heard and answer.reason is None):
            return
        conversation.given_up.set()
        count = self._count("unheard")
        if count & (count - 1) == 0:
            why = answer.reason or "nobody is subscribed there"
            log.warning("%d answers found nobody, the last one on %a: %s", count, conversation.topic, why)


class _Conversation:
    """One request's answer, as messages."""

    def __init__(
        self,
        send: Callable[["_Conversation", InferenceAnswer], None],
        topic: str,
        correlation: bytes | None,
        base_model: str,
    ) -> None:
        self.topic, self.given_up = topic, threading.Event()
        self.stream = False
        self.slot: AdapterSlot | None = None
        self._send, self._correlation, self._base_model = send, correlation, base_model
        self._index, self._prompt_tokens = 0, 0
        self._held = list[str]()

    def tell(self, news: News) -> None:
        """Pass on what the answering thread tells."""
        match news:
            case Begun(slot, prompt_tokens):
                self.slot, self._prompt_tokens = slot, prompt_tokens
            case Piece(text):
                self._held.append(text)
                if self.stream:
                    self._say(last=False)
            case Ended(finish, tokens):
                self._say(last=True, finish=finish, prompt_tokens=self._prompt_tokens, tokens=tokens)
            case Failed(kind, reason):
                self.refuse(CODES[kind], reason)

    def refuse(self, code: Refusal, reason: str) -> None:
        """Say why there is no answer, or no more of it."""
        self._held.clear()
        self._say(last=True, error=InferenceError(code=code, reason=reason[:MAX_SENTENCE]))

    def publication(self, answer: InferenceAnswer) -> Publication:
        """A part of the answer for who asked."""
        spec = InferenceAnswerFor.spec
        return Publication(
            self.topic, answer.to_bytes(), spec.qos, expiry_s=spec.expiry_s, correlation_data=self._correlation
        )

    def _say(self, last: bool, **fields: Any) -> None:
        made_with = self.slot.named if self.slot is not None else {}
        text = "".join(self._held)
        self._held.clear()
        answer = InferenceAnswer(
            index=self._index, last=last, text=text, base_model=self._base_model, **made_with, **fields
        )
        self._index += 1
        self._send(self, answer)


class _Refused(ValueError):
    """A request that cannot be answered as it is."""

    def __init__(self, code: Refusal, reason: str) -> None:
        super().__init__(reason)
        self.code: Refusal = code


def _request(message: Message) -> InferenceRequest:
    if len(message.payload) > MOST_REQUEST_BYTES:
        raise _Refused("too_long", f"a request may have {MOST_REQUEST_BYTES} bytes")
    if message.retain:
        text = "publish requests without the retain flag: a retained one is asked again whenever the node connects"
        raise _Refused("bad_request", text)
    try:
        return InferenceRequest.from_bytes(message.payload)
    except InvalidMessage as fault:
        raise _Refused("bad_request", str(fault)) from None


def _question(request: InferenceRequest, usual_tokens: int) -> Question:
    seed = request.seed if request.seed is not None else time.monotonic_ns()
    sampling = Sampling(request.max_tokens or usual_tokens, request.temperature, request.top_p, seed)
    turns = [turn.model_dump() for turn in request.messages]
    return Question(turns, sampling, request.stop, on_base=request.model == "base")
