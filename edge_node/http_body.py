"""The body of a request over HTTP, within bounds, and the refusal of one that cannot be answered, for all routes.

It does not know what is asked.
"""

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the messages can be read without a server
    from starlette.requests import Request

MOST_BODY_BYTES = 256 << 10
BODY_TIMEOUT_S = 10.0


class RequestRefused(ValueError):
    """A request that cannot be answered as it is: the HTTP status, the field at fault, and what to do."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


async def read_body(request: "Request") -> bytes:
    """The request's body, no larger and no slower than allowed; RequestRefused otherwise."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # a web page may send anything else here without asking its user's browser for permission
        raise RequestRefused(415, "send the request as content-type application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                body += part
                if len(body) > MOST_BODY_BYTES:
                    raise RequestRefused(413, f"a request may have {MOST_BODY_BYTES} bytes", code="request_too_large")
    except TimeoutError:
        raise RequestRefused(408, f"the request did not arrive within {BODY_TIMEOUT_S:g} s") from None
    return bytes(body)
