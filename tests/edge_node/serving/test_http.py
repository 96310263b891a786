"""Clients of OpenAI's interface are answered, told which adapter version answered, and told what is wrong."""

import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from base_model.chat_tokens import ChatTokens
from edge_node.health import Told
from edge_node.http_body import MOST_BODY_BYTES
from edge_node.serving.answering import Answering, Question
from edge_node.serving.generation import Sampling
from edge_node.serving.http import application
from edge_node.serving.inference import Inference, ServedVersion
from edge_node.watching import HttpServer

USER = [{"role": "user", "content": "turn on the desk lamp"}]


class Client:
    """A plain HTTP client of one node."""

    def __init__(self, port, answering):
        self.port, self.answering = port, answering

    def send(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, {**headers, "Connection": "close"})  # the answer takes the socket over
        return connection.getresponse()

    def post(self, **fields):
        return self.send_json({"messages": USER, **fields})

    def send_json(self, value):
        body = value if isinstance(value, bytes) else json.dumps(value)
        return self.send("POST", "/v1/chat/completions", body, **{"Content-Type": "application/json"})

    def chat(self, **fields):
        return json.load(self.post(**fields))

    def get(self, path):
        return json.load(self.send("GET", path))

    def stream(self, **fields):
        """The events of a streamed answer."""
        lines = self.post(stream=True, **fields).read().decode().split("\n\n")
        return [line.removeprefix("data: ") for line in lines if line]


@contextmanager
def serving(inference, resolved, folder=None, parallel=2, waiting=8, timeout_s=30.0):
    answering = Answering(inference, ChatTokens(folder or resolved.path), parallel, waiting, timeout_s)
    server = HttpServer(application(inference, answering, resolved, usual_tokens=16), "127.0.0.1", 0)
    server.start()
    try:
        yield Client(server.port, answering)
    finally:
        answering.stop()
        server.stop()


@pytest.fixture(scope="module")
def adapters(session, make_adapter):
    inference = Inference(session)
    return [
        inference.prepare(make_adapter(seed), ServedVersion(1, seed), make_adapter(seed).digest) for seed in (1, 2, 3)
    ]


@pytest.fixture(scope="module")
def node(session, resolved, adapters):
    inference = Inference(session)
    inference.swap(adapters[0])
    with serving(inference, resolved) as client:
        yield client


def test_an_answer_has_openais_shape_and_names_its_adapter(node, adapters):
    response = node.post(max_tokens=5)
    answer = json.load(response)
    assert response.status == 200
    assert response.headers["x-adapter-version"] == "1"
    assert answer["system_fingerprint"] == f"v1-{adapters[0].digest[:12]}"
    assert (answer["object"], answer["model"]) == ("chat.completion", "alignfed")
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "length"
    usage = answer["usage"]
    assert usage["completion_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5


def test_the_base_model_can_be_asked_without_the_adapter(node, resolved):
    response = node.post(model="base", max_tokens=5)
    answer = json.load(response)
    assert response.headers["x-adapter-version"] == "none"
    assert answer["system_fingerprint"] == f"base-{resolved.digest[:12]}"
    assert answer["choices"][0]["message"] != node.chat(max_tokens=5)["choices"][0]["message"]


def test_a_streamed_answer_is_the_same_text_piece_by_piece(node):
    *events, done = node.stream(max_tokens=12)
    chunks = [json.loads(event) for event in events]
    assert done == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert len(deltas) > 4
    whole = node.chat(max_tokens=12)
    assert "".join(delta.get("content", "") for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert {chunk["system_fingerprint"] for chunk in chunks} == {whole["system_fingerprint"]}
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_streamed_answer_counts_its_tokens_if_asked(node):
    events = node.stream(max_tokens=3, stream_options={"include_usage": True})
    last = json.loads(events[-2])
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3


def test_a_stop_string_ends_the_answer_before_it(node):
    whole = node.chat(max_tokens=12)["choices"][0]["message"]["content"]
    stop = whole[3:5]
    answer = node.chat(max_tokens=12, stop=[stop])["choices"][0]
    assert answer["message"]["content"] == whole[: whole.index(stop)]
    assert answer["finish_reason"] == "stop"


def test_the_same_seed_gives_the_same_answer_at_any_temperature(node):
    texts = [
        node.chat(max_tokens=12, temperature=1.5, seed=seed)["choices"][0]["message"]["content"] for seed in (-4, -4, 5)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_content_may_come_in_parts(node):
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "turn on "}, {"type": "text", "text": "the desk lamp"}]}
    ]
    assert node.chat(messages=parts)["choices"] == node.chat()["choices"]


def test_models_show_the_base_and_the_adapter_version(node, resolved, adapters):
    adapted, base = node.get("/v1/models")["data"]
    assert (adapted["id"], base["id"]) == ("alignfed", "base")
    assert adapted["adapter"] == {"epoch": 1, "version": 1, "digest": adapters[0].digest}
    assert (
        adapted["base_model"]
        == base["base_model"]
        == {"name": resolved.name, "digest": resolved.digest, "precision": "fp32"}
    )
    assert base["adapter"] is None
    assert node.get("/v1/models/alignfed") == adapted


def test_health_says_what_is_served(node):
    assert node.get("/healthz")["status"] == "ok"
    assert node.get("/healthz")["adapter"]["version"] == 1


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "Invalid JSON"),
        (b"{", 400, "Invalid JSON"),
        (b"[]", 400, "object"),
        (b"[" * 100_000, 400, "Invalid JSON"),
        (b'{"messages": "\xff"}', 400, "Invalid JSON"),
        ({}, 400, "messages: Field required"),
        ({"messages": []}, 400, "messages: "),
        ({"messages": [{"role": "wizard", "content": ""}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 3}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content"),
        ({"messages": USER, "temperature": "hot"}, 400, "temperature: "),
        ({"messages": USER, "temperature": 9}, 400, "temperature: "),
        ({"messages": USER, "max_tokens": 0}, 400, "max_tokens: "),
        ({"messages": USER, "max_tokens": True}, 400, "max_tokens: "),
        ({"messages": USER, "top_p": 0}, 400, "top_p: "),
        ({"messages": USER, "n": 2}, 400, "n: "),
        ({"messages": USER, "tools": [{}]}, 400, "tools: "),
        ({"messages": USER, "response_format": {"type": "json_object"}}, 400, "response_format.type: "),
        ({"messages": USER, "stop": [""]}, 400, "stop"),
        (
            {"messages": USER, "model": "gpt-4"},
            404,
            "this node serves the models alignfed and base; 'gpt-4' is neither",
        ),
        ({"messages": [{"role": "user", "content": "lamp " * 5000}]}, 400, "do not fit a context of 2048"),
        ({"messages": [{"role": "user", "content": "x" * MOST_BODY_BYTES}]}, 413, "a request may have 262144 bytes"),
    ],
    ids=repr,
)
def test_a_bad_request_is_told_what_is_wrong_in_openais_shape(node, body, status, said):
    response = node.send_json(body)
    error = json.load(response)["error"]
    assert response.status == status
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"
    assert {"message", "type", "param", "code"} == error.keys()


def test_fields_that_a_node_does_not_know_are_ignored(node):
    assert node.post(user="me", store=False, metadata={}, logprobs=False, n=1, tools=[], max_tokens=1).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/v1/models/x", 404), ("GET", "/v1/chat/completions", 405), ("POST", "/healthz", 405)],
)
def test_other_paths_are_refused_in_openais_shape(node, method, path, status):
    response = node.send(method, path)
    assert response.status == status
    assert json.load(response)["error"]["message"]


def test_a_request_that_a_web_page_could_send_unasked_is_refused(node):
    response = node.send(
        "POST", "/v1/chat/completions", json.dumps({"messages": USER}), **{"Content-Type": "text/plain"}
    )
    assert response.status == 415


def test_an_answer_under_way_ends_on_the_adapter_that_began_it(session, resolved, adapters):
    inference = Inference(session)
    inference.swap(adapters[0])
    with serving(inference, resolved) as node:
        alone = node.chat(max_tokens=200)
        response = node.post(max_tokens=200, stream=True)  # its first bytes come when the answer is begun
        inference.swap(adapters[1])
        inference.swap(adapters[2])
        lines = [line for line in response.read().decode().split("\n\n") if line]
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert text == alone["choices"][0]["message"]["content"]
        assert {chunk["system_fingerprint"] for chunk in chunks} == {alone["system_fingerprint"]}
        assert node.post(max_tokens=1).headers["x-adapter-version"] == "3"


def test_an_overloaded_node_says_so_at_once_and_recovers(session, resolved, endless):
    with serving(Inference(session), resolved, endless, parallel=1, waiting=1) as node:
        with ThreadPoolExecutor(8) as clients:
            responses = list(clients.map(lambda _: node.post(max_tokens=1900), range(8)))
        assert {response.status for response in responses} == {200, 503}
        refused = next(response for response in responses if response.status == 503)
        assert refused.headers["retry-after"] == "1"
        error = json.load(refused)["error"]
        assert (error["type"], error["code"]) == ("server_error", "overloaded")
        assert node.post(max_tokens=1).status == 200


def test_an_answer_that_takes_too_long_is_given_up(session, resolved, endless, too_short_s):
    with serving(Inference(session), resolved, endless, timeout_s=too_short_s) as node:
        response = node.post(max_tokens=1900)
        assert response.status == 504
        assert json.load(response)["error"]["code"] == "timeout"
        *_, last = node.stream(max_tokens=1900)
        assert json.loads(last)["error"]["code"] == "timeout"


def test_a_client_that_hangs_up_makes_room_for_others(session, resolved, endless):
    with serving(Inference(session), resolved, endless, parallel=1, waiting=1, timeout_s=600) as node:
        for stream in (True, False):
            body = json.dumps({"messages": USER, "max_tokens": 2000, "stream": stream}).encode()
            lines = [
                "POST /v1/chat/completions HTTP/1.1",
                "Host: x",
                "Content-Type: application/json",
                f"Content-Length: {len(body)}",
                "\r\n",
            ]
            with socket.create_connection(("127.0.0.1", node.port)) as client:
                client.sendall("\r\n".join(lines).encode() + body)
                time.sleep(0.2)
            assert node.post(max_tokens=1).status == 200


def test_a_stopping_node_tells_who_waits(session, resolved, endless):
    with serving(Inference(session), resolved, endless, parallel=1) as node, ThreadPoolExecutor(3) as clients:
        answers = [clients.submit(node.post, max_tokens=1900) for _ in range(3)]
        while node.answering.waiting < 2:
            time.sleep(0.01)
        stopping = threading.Thread(target=node.answering.stop)
        stopping.start()
        assert {answer.result().status for answer in answers} == {503}
        stopping.join()
        assert node.post().status == 503


def test_an_address_that_is_taken_is_an_error_at_once(node):
    with pytest.raises(OSError, match="in use"):
        HttpServer(None, "127.0.0.1", node.port)


def health(node):
    response = node.send("GET", "/healthz")
    return response.status, json.load(response)["faults"]


def until_health(node, wanted):
    """Look until the status is this; what keeps it from its work then."""
    deadline = time.monotonic() + 120
    while (told := health(node))[0] != wanted:
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
    return told[1]


def test_a_node_that_nobody_asks_finds_out_that_it_cannot_answer_and_that_it_can_again(session, resolved):
    inference = Inference(session)
    with serving(inference, resolved) as node:
        inference.session = None
        assert until_health(node, 503) == [
            "a question of the node's own was not answered: the node met an error: AttributeError"
        ]
        inference.session = session
        assert until_health(node, 200) == []
        assert b"alignfed_edge_answers_total{" not in node.send("GET", "/metrics").read()  # its own do not count


def test_one_question_that_meets_an_error_says_nothing_of_others(session, resolved):
    inference = Inference(session)
    with serving(inference, resolved) as node:
        inference.session = None
        assert node.post().status == 500
        inference.session = session
        for _ in range(3):
            assert health(node) == (200, [])
            while node.answering.look().about["waiting"]:
                time.sleep(0.01)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_answering_thread_that_died_and_one_that_does_not_come_back_are_faults(session, resolved):
    question, begun, released = Question(USER, Sampling(1)), threading.Event(), threading.Event()

    def hold_up(_news):
        begun.set()
        released.wait()

    def end_the_thread(_news):
        raise SystemExit

    with serving(Inference(session), resolved) as node:
        node.answering.ask(question, hold_up)
        begun.wait()
        assert node.answering.look().faults == ()
        [late] = node.answering.look(time.monotonic() + 1000).faults
        assert "should have been given up" in late
        node.answering.ask(question, end_the_thread)
        assert "1 of 2 answering threads died; the node's log says why" in until_health(node, 503)
        released.set()


def test_what_other_parts_of_the_node_say_is_in_its_health(session, resolved):
    def look():
        return Told(("the loop hangs",), {"connected": False})

    answering = Answering(Inference(session), ChatTokens(resolved.path), 1, 1, timeout_s=30)
    server = HttpServer(application(Inference(session), answering, resolved, 16, looks=[look]), "127.0.0.1", 0)
    server.start()
    try:
        response = Client(server.port, answering).send("GET", "/healthz")
        told = json.load(response)
    finally:
        answering.stop()
        server.stop()
    assert response.status == 503
    assert told == {
        "status": "failing",
        "faults": ["the loop hangs"],
        "connected": False,
        "adapter": None,
        "waiting": 0,
    }
