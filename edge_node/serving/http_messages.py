"""What travels over HTTP, in OpenAI's shape: requests as checked values, answers as plain dictionaries.

Fields that this node does not know are ignored, as clients send many; those that would change the answer's meaning are
refused. It knows neither sockets nor the model.
"""

import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from base_model.chat_tokens import Turn
from edge_node.http_body import RequestRefused
from edge_node.serving.answering import Question
from edge_node.serving.generation import Sampling
from edge_node.serving.inference import AdapterSlot
from schemas.faults import first_fault

ADAPTED, BASE = "alignfed", "base"  # the models that can be asked: with the served adapter, and without
MOST_MESSAGES, MOST_TOKENS = 256, 4096
JSON = dict[str, Any]


class TextPart(BaseModel):
    """A part of a message's content; of the kinds that there are, the model reads text."""

    model_config = ConfigDict(frozen=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn of the conversation."""

    model_config = ConfigDict(frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[TextPart, ...]

    @property
    def turn(self) -> Turn:
        """The turn as chat templates know it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ResponseFormat(BaseModel):
    """The form of the answer: text is all there is."""

    model_config = ConfigDict(frozen=True)

    type: Literal["text"]


class StreamOptions(BaseModel):
    """What a streamed answer brings besides the text."""

    model_config = ConfigDict(frozen=True)

    include_usage: bool = False


Stop = Annotated[str, Field(min_length=1, max_length=256)]


class ChatRequest(BaseModel):
    """The body of a request to /v1/chat/completions."""

    model_config = ConfigDict(frozen=True, strict=False)

    model: str = Field(default=ADAPTED, max_length=256)
    messages: tuple[ChatMessage, ...] = Field(min_length=1, max_length=MOST_MESSAGES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[tuple[Stop, ...], Field(max_length=4)] | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    tools: Annotated[tuple[Any, ...], Field(max_length=0)] | None = None
    response_format: ResponseFormat | None = None

    @field_validator("temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", mode="before")
    @classmethod
    def _is_a_number(cls, value: Any) -> Any:
        if isinstance(value, (str, bool)):
            raise ValueError("must be a number")
        return value

    def question(self, usual_tokens: int) -> Question:
        """What is asked of the model; greedy unless a temperature is given, for nodes answer commands."""
        most = self.max_completion_tokens or self.max_tokens or usual_tokens
        seed = (self.seed if self.seed is not None else time.monotonic_ns()) % 2**64
        stops = (self.stop,) if isinstance(self.stop, str) else self.stop or ()
        top_p = 1.0 if self.top_p is None else self.top_p
        sampling = Sampling(most, self.temperature or 0.0, top_p, seed)
        turns = [message.turn for message in self.messages]
        return Question(turns, sampling, stops, on_base=self.model == BASE)


def parse_request(body: bytes) -> ChatRequest:
    """A request from its JSON; RequestRefused says what is wrong with it and where."""
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        fault = first_fault(error)
        raise RequestRefused(400, fault.text, param=fault.where or None) from None
    if request.model not in (ADAPTED, BASE):
        text = f"this node serves the models {ADAPTED} and {BASE}; {request.model[:100]!a} is neither"
        raise RequestRefused(404, text, param="model", code="model_not_found")
    return request


def fingerprint(slot: AdapterSlot | None, base_digest: str) -> str:
    """What an answer was made with: the adapter's version and digest, or the base model alone."""
    return f"v{slot.version.version}-{slot.digest[:12]}" if slot is not None else f"base-{base_digest[:12]}"


def version_name(slot: AdapterSlot | None) -> str:
    """The adapter version as a header says it."""
    return str(slot.version.version) if slot is not None else "none"


def error_body(message: str, status: int, param: str | None = None, code: str | None = None) -> JSON:
    """An error as OpenAI's clients read it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def completion(head: JSON, text: str, finish: str, usage: JSON) -> JSON:
    """A whole answer; `head` holds what is the same in every part of it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": finish}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": usage}


def chunk(head: JSON, delta: JSON, finish: str | None = None) -> JSON:
    """A piece of a streamed answer."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}


def usage_chunk(head: JSON, usage: JSON) -> JSON:
    """The last piece, for clients that ask how many tokens it were."""
    return {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage}


def usage_of(prompt_tokens: int, tokens: int) -> JSON:
    """How many tokens went in and came out."""
    return {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
