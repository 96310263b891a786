"""What tests of the coordinator's views share: a coordinator that shows itself, and what nodes say of themselves."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coordinator.publisher import publication
from schemas.messages import NodeMetrics, NodeState
from schemas.topics import NodeMetricsOf, NodeStateOf

FEDERATION, BOOT = "test", "b" * 32


@pytest.fixture
def address() -> str:
    """A free address on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def watched(start_coordinator: Callable[..., Any], base_model: Path, address: str) -> Any:
    """A coordinator that makes a version of every two updates, and shows it."""
    return start_coordinator(base_model, f'strategy = {{name = "fedbuff", buffer_size = 2}}\nhttp = "{address}"')


@pytest.fixture
def says(node: Any) -> Callable[..., None]:
    """says(name, version, serving, **metrics): a node of this name says what it holds, and how it is."""

    def say(name: str, version: int = 0, serving: int | None = None, **metrics: Any) -> None:
        state = NodeState(online=True, boot_id=BOOT, base_model=node.base_model, version=version, serving=serving)
        node.client.publish(publication(FEDERATION, NodeStateOf(name), state.to_bytes()))
        said = NodeMetrics(boot_id=BOOT, **metrics)
        node.client.publish(publication(FEDERATION, NodeMetricsOf(name), said.to_bytes()))

    return say
