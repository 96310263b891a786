"""What a node's process shows of itself over HTTP."""

import contextlib
import http.client
import json
import socket
import time
from typing import Any

import psutil

from broker.embedded import EmbeddedBroker
from schemas.adapter import Adapter
from tests.patience import PATIENCE_S


def shown(port: int, path: str) -> tuple[int, str]:
    """What a node shows there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request("GET", path)
    response = connection.getresponse()
    told = response.status, response.read().decode()
    connection.close()
    return told


def until_shown(port: int, connected: bool) -> None:
    """Wait for a node that does its work, and says this of its broker."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError):
            status, told = shown(port, "/healthz")
            if status == 200 and json.loads(told)["connected"] == connected:
                return
        time.sleep(0.1)
    raise AssertionError(f"the node does not say that connected is {connected}")


def test_a_node_that_only_trains_shows_its_health_and_figures_and_stays_small(
    broker: EmbeddedBroker, found: Any, start: Any, first: Adapter, free_port: int
) -> None:
    federation = found(broker)
    federation.announce()
    federation.publish(0, first)
    node = start(federation, broker, metrics_http=f"127.0.0.1:{free_port}")
    federation.hears_update()
    until_shown(free_port, connected=True)
    status, figures = shown(free_port, "/metrics")
    assert status == 200
    assert "alignfed_edge_head_version 0.0" in figures
    assert shown(free_port, "/v1/models")[0] == 404
    assert psutil.Process(node.process.pid).memory_info().rss < 80e6
    broker.kill()
    until_shown(free_port, connected=False)
    assert node.is_asked_to_end() == 0


def test_an_address_that_is_taken_ends_the_node_with_a_sentence(broker: EmbeddedBroker, found: Any, start: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        node = start(found(broker), broker, serving={"http": address})
        assert node.ends() == 1
        watched = start(found(broker), broker, metrics_http=address)
        assert watched.ends() == 1
    assert f"cannot answer on {address}: Address already in use; choose another --http" in node.log
    assert f"cannot answer on {address}: Address already in use; choose another edge.metrics_http" in watched.log
    assert "Traceback" not in node.log + watched.log
