"""`alignfed chat`: talk to a node from the terminal."""

import http.client
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.console import FAILED, USAGE, Broker, Config, Federation, configuration, ending, fail, with_certificate

if TYPE_CHECKING:
    from edge_node.serving.asking import Device

app = typer.Typer()

CONNECT_TIMEOUT_S = 120.0


@app.command(
    epilog=ending(
        "alignfed chat --node-url http://127.0.0.1:8000\n  alignfed chat --mqtt kitchen --broker gateway.local:1883",
        "1  the node does not answer",
        "130  interrupted",
    )
)
def chat(
    node_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where a node answers over HTTP, its --http address.")
    ] = None,
    mqtt: Annotated[str | None, typer.Option("--mqtt", metavar="NODE", help="Node to ask over MQTT instead.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="Ask once, then end.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Ask the base model, without the adapter.")] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, max=4096, help="Longest answer.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 gives the likeliest answer.")] = 0.0,
    config: Config = None,
    broker: Broker = None,
    federation: Federation = None,
) -> None:
    """Talk to a node, over HTTP or MQTT.

    Every line is a new question: nodes learn commands, not conversations. Answers stream, and each shows the adapter
    version that made it. Ends with an empty line or Ctrl-D. --config, --broker and --federation are for --mqtt.
    """
    questions = [prompt] if prompt is not None else _lines()
    fields = {"model": "base" if base else "alignfed", "temperature": temperature, "max_tokens": max_tokens}
    given = {name: value for name, value in fields.items() if value is not None}
    if (node_url is None) == (mqtt is None):
        fail("name the node by --node-url http://HOST:PORT, or by --mqtt NODE", USAGE)
    if node_url is not None:
        address = _address(node_url)
        for question in questions:
            _ask(address, question, given)
        return
    assert mqtt is not None
    settings = with_certificate(configuration(config, federation, broker))
    from edge_node.serving.asking import Unanswered, device_for

    try:
        with device_for(settings.broker, settings.federation, mqtt) as device:
            for question in questions:
                _ask_over_mqtt(device, question, given)
    except Unanswered as fault:
        fail(str(fault), FAILED)
    except ValueError as fault:
        fail(str(fault), USAGE)


def _lines() -> Iterator[str]:
    """Lines from the terminal, or of what is piped in, up to an empty one."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def _ask(address: tuple[str, int], question: str, fields: dict[str, Any]) -> None:
    """Stream one answer to standard output, and say on standard error which version it is of."""
    host, port = address
    body = json.dumps({**fields, "messages": [{"role": "user", "content": question}], "stream": True})
    connection = http.client.HTTPConnection(host, port, timeout=CONNECT_TIMEOUT_S)
    try:
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            fail(_said(response.read(65536), response.status), FAILED)
        for text in _texts(response):
            print(text, end="", flush=True)
        print(flush=True)
        print(f"  adapter version {response.headers['x-adapter-version']}", file=sys.stderr, flush=True)
    except (OSError, http.client.HTTPException) as fault:
        fail(f"the node at {host}:{port} does not answer: {fault}. Was it started with --http?", FAILED)
    finally:
        connection.close()


def _ask_over_mqtt(device: "Device", question: str, fields: dict[str, Any]) -> None:
    """The same over MQTT."""
    from schemas.messages import ChatTurn, InferenceRequest

    request = InferenceRequest(messages=(ChatTurn(role="user", content=question),), stream=True, **fields)
    for part in device.ask(request):
        print(part.text, end="", flush=True)
        if part.error is not None:
            print(end="\n" if part.index else "", flush=True)
            fail(f"{'the answer broke off' if part.index else 'the node refused'}: {part.error.reason}", FAILED)
        if part.last:
            version = "none" if part.version is None else part.version
            print(flush=True)
            print(f"  adapter version {version}", file=sys.stderr, flush=True)


def _texts(response: http.client.HTTPResponse) -> Iterator[str]:
    """The pieces of text of a streamed answer."""
    for line in response:
        event = line.decode().strip().removeprefix("data: ")
        if not event or event == "[DONE]":
            continue
        value = json.loads(event)
        if "error" in value:
            print(flush=True)
            fail(f"the answer broke off: {value['error']['message']}", FAILED)
        for choice in value["choices"]:
            yield choice["delta"].get("content") or ""


def _said(body: bytes, status: int) -> str:
    """The node's own words about a request that it refused."""
    try:
        return f"the node refused: {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"what answers there is no node: HTTP status {status}"


def _address(url: str) -> tuple[str, int]:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        if parts.scheme == "http" and parts.hostname and parts.port and parts.path in ("", "/"):
            return parts.hostname, parts.port
    except ValueError:  # a port that is no number
        pass
    fail(f"{url} is not a node's address: give http://HOST:PORT", USAGE)
