"""Orders over HTTP: who may give one, and how it is passed on. It decides nothing about the federation.

An order that passes goes the way of all orders, through the coordinator's `orders.db`, and is journalled as they are.
Three things stand before it. The name by which the page was reached must be an address or one that was set, so that no
foreign name can be pointed here. A browser must say that the page itself asks. And a header, which no other site can
make a browser send, must carry the token.
"""

import asyncio
import hmac
import ipaddress
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from coordinator.operations.order_file import answer_of, give
from coordinator.operations.orders import LARGEST, OrderAnswer, order_from_bytes
from schemas.messages import InvalidMessage

log = logging.getLogger("coordinator")

WRONG_TOKENS, WITHIN_S = 10, 60.0  # so many wrong ones in that time, and nobody is listened to until it is over
BODY_S = 5.0  # for an order to come in
ANSWER_S = 8.0  # for the coordinator to obey
NO_STORE = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class Unwelcome(Exception):
    """A request that is not listened to: the HTTP status, and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Guard:
    """Lets orders of whoever has the token pass; safe in one thread. `clock` is in seconds, and never goes back."""

    def __init__(self, token: str | None, names: Collection[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._token, self._clock = token, clock
        self._names = {"localhost", *(name.lower() for name in names)}
        self._wrong: deque[float] = deque(maxlen=WRONG_TOKENS)

    @property
    def takes_orders(self) -> bool:
        """Whether there is a token at all."""
        return self._token is not None

    def check(self, headers: Mapping[str, str]) -> None:
        """Raise Unwelcome unless these are the headers of somebody who may give orders."""
        if self._token is None:
            raise Unwelcome(403, "this coordinator shows, and takes no orders here: set coordinator.http_token")
        self._check_place(headers)
        now = self._clock()
        if len(self._wrong) == WRONG_TOKENS and now - self._wrong[0] < WITHIN_S:
            wait = WITHIN_S - (now - self._wrong[0])
            raise Unwelcome(429, f"too many wrong tokens: nobody is listened to for {wait:.0f} s")
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise Unwelcome(401, "give the token that is in the file of coordinator.http_token")
        if not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            self._wrong.append(now)
            log.warning("an order with a wrong token was refused")
            raise Unwelcome(401, "the token is wrong: it is in the file of coordinator.http_token")

    def _check_place(self, headers: Mapping[str, str]) -> None:
        host = headers.get("host", "").lower()
        name = _name_in(f"//{host}")
        if name not in self._names and not _is_address(name):
            raise Unwelcome(403, f"orders are not taken under the name {name!r:.80}: add it to coordinator.http_names")
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            raise Unwelcome(403, "another site asks for this: give orders on the coordinator's own page")


async def can_order(guard: Guard, request: Request) -> Response:
    """Whether orders are taken here, and, for who shows a token, whether it is the right one."""
    if not guard.takes_orders or "authorization" not in request.headers:
        return JSONResponse({"takes_orders": guard.takes_orders, "allowed": False}, headers=NO_STORE)
    try:
        guard.check(request.headers)
    except Unwelcome as fault:
        return _refused(fault)
    return JSONResponse({"takes_orders": True, "allowed": True}, headers=NO_STORE)


async def take_order(guard: Guard, data_dir: Path, request: Request) -> Response:
    """Pass one order on and wait for what comes of it."""
    try:
        guard.check(request.headers)
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise Unwelcome(415, "an order is JSON, and has to say so in content-type")
        order = order_from_bytes(await asyncio.wait_for(_body(request), BODY_S))
        number = await asyncio.to_thread(give, data_dir, order)
        answer = await asyncio.to_thread(answer_of, data_dir, number, ANSWER_S)
    except Unwelcome as fault:
        return _refused(fault)
    except InvalidMessage as fault:
        return _refused(Unwelcome(400, str(fault)))
    except (TimeoutError, ClientDisconnect):
        return _refused(Unwelcome(408, "the order did not come in whole"))
    except OSError as fault:
        log.error("%s", fault)
        return _refused(Unwelcome(503, "the order cannot be left for the coordinator; its log says why"))
    return _answered(number, answer)


async def _body(request: Request) -> bytes:
    """The body, which must not be larger than any order."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST:
            raise Unwelcome(413, f"an order has at most {LARGEST} bytes")
    return body


def _answered(number: int, answer: OrderAnswer | None) -> Response:
    if answer is None:
        return JSONResponse({"order": number, "answer": None}, 202, headers=NO_STORE)
    said = {"order": number, "answer": answer.model_dump(mode="json")}
    if answer.refused is not None:
        said["error"] = answer.refused
    return JSONResponse(said, 200 if answer.refused is None else 409, headers=NO_STORE)


def _refused(fault: Unwelcome) -> Response:
    challenge = {"www-authenticate": "Bearer"} if fault.status == 401 else {}
    later = {"retry-after": str(int(WITHIN_S))} if fault.status == 429 else {}
    # what was not read of the body must not be taken for the next request
    headers = NO_STORE | challenge | later | {"connection": "close"}
    return Response(json.dumps({"error": fault.reason}), fault.status, headers, "application/json")


def _name_in(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:  # half an IPv6 address
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
