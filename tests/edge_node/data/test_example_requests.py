"""POST /v1/examples over real HTTP."""

import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request

from base_model.examples import Example
from edge_node.data.example_requests import MOST_EXAMPLES, check_sender, example_routes
from edge_node.data.local_data import LocalData
from edge_node.data.settings import LocalDataSettings
from edge_node.http_body import MOST_BODY_BYTES, RequestRefused
from edge_node.serving.http import handlers
from edge_node.watching import HttpServer

LAMP = {"prompt": "lamp on", "completion": "TurnOn"}
FAN = {"prompt": "fan off", "completion": "TurnOff"}


class Node:
    """A node's address for examples, and what it has."""

    def __init__(self, port: int, data: LocalData) -> None:
        self.port, self.data = port, data

    def post(self, body: Any, method: str = "POST", **headers: str) -> tuple[int, Any]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, "/v1/examples", raw, {"Content-Type": "application/json"} | headers)
        response = connection.getresponse()
        answer = response.status, json.loads(response.read() or b"null")
        connection.close()
        return answer


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    servers: list[HttpServer] = []

    def serve(accepted_from: Any = "local") -> Node:
        data = LocalData.open(None, tmp_path / "node", LocalDataSettings(held_out=0))
        app = Starlette(routes=example_routes(data, accepted_from), exception_handlers=handlers())
        servers.append(HttpServer(app, "127.0.0.1", 0))
        servers[-1].start()
        return Node(servers[-1].port, data)

    yield serve
    for server in servers:
        server.stop()


def test_one_example_and_several_are_kept_before_the_answer_comes(serve: Any) -> None:
    node = serve()
    assert node.post(LAMP) == (200, {"added": 1, "duplicates": 0})
    assert node.post([LAMP, FAN]) == (200, {"added": 1, "duplicates": 1})
    assert node.data.training() == (Example(**LAMP), Example(**FAN))
    assert node.data.summary().sources == {"http": 2}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"nonsense", "Invalid JSON"),
        (b"\xff", "Invalid JSON"),
        (b"", "Invalid JSON"),
        ({"prompt": "a"}, "completion: Field required"),
        ({"prompt": "", "completion": "b"}, "prompt: String should have at least 1 character"),
        ({"prompt": "a" * 9000, "completion": "b"}, "prompt: String should have at most 8192 characters"),
        ({"prompt": "a", "completion": 1}, "completion: Input should be a valid string"),
        ({**LAMP, "more": 1}, "more: Extra inputs are not permitted"),
        ([LAMP, {"prompt": "a"}], "1.completion: Field required"),
        ([LAMP] * (MOST_EXAMPLES + 1), f"at most {MOST_EXAMPLES}"),
        ("text", "should be an object"),
    ],
)
def test_a_request_that_is_wrong_anywhere_is_refused_as_a_whole_and_says_where(
    serve: Any, body: Any, said: str
) -> None:
    node = serve()
    status, answer = node.post(body)
    assert status == 400
    assert said in answer["error"]["message"]
    assert 'Send an object with the texts "prompt" and "completion"' in answer["error"]["message"]
    assert node.data.summary().examples == 0


def test_a_field_s_name_reaches_nobody_s_terminal_raw(serve: Any) -> None:
    _, answer = serve().post({**LAMP, "\x1b[31m": 1})
    assert "\x1b" not in answer["error"]["message"]


def test_a_request_that_is_too_large_or_no_json_by_its_type_is_refused(serve: Any) -> None:
    node = serve()
    assert node.post(b" " * (MOST_BODY_BYTES + 1))[0] == 413
    assert node.post(LAMP, **{"Content-Type": "text/plain"})[0] == 415
    assert node.post(b"", method="GET")[0] == 405


def test_a_web_page_cannot_teach_the_node(serve: Any) -> None:
    node = serve("network")
    status, answer = node.post(LAMP, Origin="http://127.0.0.1")
    assert (status, answer["error"]["message"]) == (403, "examples are not taken from web pages")
    assert node.data.summary().examples == 0


def test_nothing_is_taken_where_it_is_off(serve: Any) -> None:
    assert serve("off").post(LAMP)[0] == 404


@pytest.mark.parametrize(
    ("host", "accepted_from", "taken"),
    [
        ("127.0.0.1", "local", True),
        ("127.8.8.8", "local", True),
        ("::1", "local", True),
        ("::ffff:127.0.0.1", "local", True),
        ("192.168.1.7", "local", False),
        ("", "local", False),
        ("192.168.1.7", "network", True),
    ],
)
def test_other_machines_may_send_examples_only_where_the_owner_lets_them(
    host: str, accepted_from: Any, taken: bool
) -> None:
    request = Request({"type": "http", "headers": [], "client": (host, 1234) if host else None})
    if taken:
        check_sender(request, accepted_from)
    else:
        with pytest.raises(RequestRefused, match=r"set edge\.local_data\.http"):
            check_sender(request, accepted_from)


def test_a_full_disk_is_an_answer(serve: Any) -> None:
    node = serve()
    node.data._store._database.execute("PRAGMA max_page_count = 1")
    status, answer = node.post([{"prompt": str(n), "completion": "x" * 5000} for n in range(40)])
    assert status == 507
    assert "look at the node's disk" in answer["error"]["message"]
    assert node.data.summary().examples == 0
    node.data._store._database.execute("PRAGMA max_page_count = 100000")
    assert node.post(LAMP)[0] == 200
