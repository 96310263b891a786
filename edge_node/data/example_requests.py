"""POST /v1/examples: private examples from programs that reach the node's HTTP face, on the address it is bound to.

All of a request is kept, or nothing of it; what is kept is on disk before the answer. It gives no example out.
"""

import asyncio
import ipaddress
import sqlite3
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from base_model.examples import Example
from edge_node.data.local_data import LocalData
from edge_node.http_body import RequestRefused, read_body
from schemas.faults import first_fault

MOST_EXAMPLES = 1000  # in one request
SOURCE = "http"
_SHAPE = 'an object with the texts "prompt" and "completion", or a list of such objects'
_several: TypeAdapter[tuple[Example, ...]] = TypeAdapter(
    Annotated[tuple[Example, ...], Field(max_length=MOST_EXAMPLES)]
)


def example_routes(data: LocalData, accepted_from: Literal["off", "local", "network"]) -> tuple[Route, ...]:
    """The route that takes examples into `data`; none when it is off."""
    if accepted_from == "off":
        return ()

    async def take(request: Request) -> Response:
        check_sender(request, accepted_from)
        examples = parse_examples(await read_body(request))
        try:
            added = await asyncio.to_thread(data.add, SOURCE, examples)  # it waits for the disk
        except sqlite3.OperationalError as fault:
            raise RequestRefused(507, f"the examples could not be kept: {fault}; look at the node's disk") from fault
        return JSONResponse(added._asdict())

    return (Route("/v1/examples", take, methods=["POST"]),)


def check_sender(request: Request, accepted_from: Literal["local", "network"]) -> None:
    """Refuse other machines unless the owner lets them, and every web page: its user was not asked."""
    if "origin" in request.headers:
        raise RequestRefused(403, "examples are not taken from web pages", code="forbidden")
    if accepted_from == "local" and not _is_this_machine(request.client.host if request.client else ""):
        text = 'examples are taken from this machine only; the node\'s owner can set edge.local_data.http to "network"'
        raise RequestRefused(403, text, code="forbidden")


def _is_this_machine(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def parse_examples(body: bytes) -> Sequence[Example]:
    """One example or several; RequestRefused says which is wrong and why."""
    try:
        if body.lstrip()[:1] == b"[":
            return _several.validate_json(body, strict=True)
        return (Example.model_validate_json(body, strict=True),)
    except ValidationError as error:
        fault = first_fault(error, 200)
        raise RequestRefused(400, f"{fault.text}. Send {_SHAPE}", param=fault.where or None) from None
