"""The node's HTTP face: /v1/chat/completions and /v1/models in OpenAI's shape, beside what watching.py shows.

Every answer names the adapter version that made it. It decides nothing about adapters, and knows no broker.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ExceptionHandler

from base_model.reference import ResolvedModel
from edge_node.health import Look
from edge_node.http_body import RequestRefused, read_body
from edge_node.serving import http_messages as messages
from edge_node.serving.answering import Answering, Begun, Ended, Failed, News, Overloaded, Pending, Piece, Question
from edge_node.serving.http_messages import ADAPTED, BASE, JSON, ChatRequest
from edge_node.serving.inference import Inference
from edge_node.watching import watching_routes

RETRY_AFTER_S = 1
VERSION_HEADER = "x-adapter-version"
STATUS = {"invalid": 400, "too_long": 400, "waited": 503, "timeout": 504, "fault": 500, "stopped": 503}


def application(
    inference: Inference,
    answering: Answering,
    resolved: ResolvedModel,
    usual_tokens: int,
    more: Sequence[BaseRoute] = (),
    looks: Sequence[Look] = (),
) -> Starlette:
    """The routes of one node, and `more`. Answers have at most `usual_tokens` tokens if a request sets no limit.

    `looks` are at the node's other parts, for `/healthz`.
    """
    node = _Node(inference, answering, resolved, usual_tokens)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", node.chat, methods=["POST"]),
            Route("/v1/models", node.models, methods=["GET"]),
            Route("/v1/models/{name}", node.model, methods=["GET"]),
            *watching_routes(answering.metrics, (*looks, answering.look)),
            *more,
        ],
        exception_handlers=handlers(),
    )


def handlers() -> dict[Any, ExceptionHandler]:
    """What becomes of faults: an answer that says what is wrong."""
    return {RequestRefused: _refused, HTTPException: _not_found, ClientDisconnect: _gone}


class _Node:
    """What the routes answer from."""

    def __init__(self, inference: Inference, answering: Answering, resolved: ResolvedModel, usual_tokens: int) -> None:
        self._inference, self._answering, self._resolved = inference, answering, resolved
        self._usual_tokens, self._begun_at = usual_tokens, int(time.time())

    async def chat(self, request: Request) -> Response:
        asked = messages.parse_request(await read_body(request))
        conversation = _Conversation(self._answering, asked.question(self._usual_tokens))
        begun = await conversation.begin(request)
        head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": asked.model,
            "system_fingerprint": messages.fingerprint(begun.slot, self._resolved.digest),
        }
        headers = {VERSION_HEADER: messages.version_name(begun.slot)}
        if asked.stream:
            events = _events(conversation, asked, head, begun.prompt_tokens)
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        text, ended = await conversation.whole(request)
        usage = messages.usage_of(begun.prompt_tokens, ended.tokens)
        return JSONResponse(messages.completion(head, text, ended.finish, usage), headers=headers)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described(name) for name in (ADAPTED, BASE)]})

    async def model(self, request: Request) -> Response:
        if (name := request.path_params["name"]) not in (ADAPTED, BASE):
            text = f"this node serves the models {ADAPTED} and {BASE}"
            raise RequestRefused(404, text, param="model", code="model_not_found")
        return JSONResponse(self._described(name))

    def _described(self, name: str) -> JSON:
        slot = self._inference.current if name == ADAPTED else None
        precision = self._inference.session.model.precision
        return {
            "id": name,
            "object": "model",
            "created": self._begun_at,
            "owned_by": "alignfed",
            "base_model": {"name": self._resolved.name, "digest": self._resolved.digest, "precision": precision},
            "adapter": slot.named if slot is not None else None,
        }


class _Conversation:
    """One question on its way: the answering thread's news, brought into this event loop."""

    def __init__(self, answering: Answering, question: Question) -> None:
        self._news: asyncio.Queue[News] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        try:
            self._pending: Pending = answering.ask(question, lambda news: _from_thread(loop, self._news, news))
        except Overloaded:
            text = "the node has as many requests as it can take; try again in a moment"
            raise RequestRefused(503, text, code="overloaded") from None

    async def begin(self, request: Request) -> Begun:
        """Wait until the answer is begun."""
        news = await self._next(request)
        assert isinstance(news, Begun)
        return news

    async def whole(self, request: Request) -> tuple[str, Ended]:
        """The whole text, and how it ended."""
        text = list[str]()
        while True:
            match await self._next(request):
                case Piece(piece):
                    text.append(piece)
                case Ended() as ended:
                    return "".join(text), ended

    async def pieces(self) -> AsyncIterator[News]:
        """News up to the end, a failure among them; when the client goes away, the answer ends too."""
        try:
            while True:
                news = await self._news.get()
                yield news
                if isinstance(news, Ended | Failed):
                    return
        finally:
            self._pending.given_up.set()

    async def _next(self, request: Request) -> News:
        """The next news for a client that is still there; a failure is raised."""
        waits = asyncio.create_task(self._news.get())
        try:
            while not (await asyncio.wait({waits}, timeout=0.5))[0]:
                if await request.is_disconnected():
                    raise ClientDisconnect
            news = waits.result()
        except BaseException:
            self._pending.given_up.set()
            waits.cancel()
            raise
        if isinstance(news, Failed):
            raise RequestRefused(STATUS[news.kind], news.reason, code=_code(news))
        return news


async def _events(
    conversation: _Conversation, asked: ChatRequest, head: JSON, prompt_tokens: int
) -> AsyncIterator[str]:
    """A streamed answer as server-sent events."""
    yield _event(messages.chunk(head, {"role": "assistant", "content": ""}))
    async for news in conversation.pieces():
        match news:
            case Piece(text):
                yield _event(messages.chunk(head, {"content": text}))
            case Ended(finish, tokens):
                yield _event(messages.chunk(head, {}, finish))
                if asked.stream_options is not None and asked.stream_options.include_usage:
                    yield _event(messages.usage_chunk(head, messages.usage_of(prompt_tokens, tokens)))
                yield "data: [DONE]\n\n"
            case Failed() as failed:  # the status line is long gone, so clients look for this
                yield _event(messages.error_body(failed.reason, STATUS[failed.kind], code=_code(failed)))


def _from_thread(loop: asyncio.AbstractEventLoop, news_queue: asyncio.Queue[News], news: News) -> None:
    try:
        loop.call_soon_threadsafe(news_queue.put_nowait, news)
    except RuntimeError:  # the loop has ended, and with it whoever asked
        return


async def _refused(request: Request, fault: Exception) -> Response:
    assert isinstance(fault, RequestRefused)
    headers = {"retry-after": str(RETRY_AFTER_S)} if fault.status == 503 else {}
    body = messages.error_body(str(fault), fault.status, fault.param, fault.code)
    return JSONResponse(body, fault.status, headers=headers)


async def _not_found(request: Request, fault: Exception) -> Response:
    assert isinstance(fault, HTTPException)
    text = f"{request.method} {request.url.path[:100]} is not served here: {fault.detail}"
    return JSONResponse(messages.error_body(text, fault.status_code), fault.status_code, headers=fault.headers)


async def _gone(request: Request, fault: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


def _code(failed: Failed) -> str | None:
    named = {"too_long": "context_length_exceeded", "waited": "overloaded", "timeout": "timeout", "stopped": "stopped"}
    return named.get(failed.kind)


def _event(value: JSON) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
