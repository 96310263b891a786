"""Real node processes, a real broker, a real tiny model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from base_model.examples import save_examples
from base_model.layout import initial_adapter, layout_of
from base_model.reference import ResolvedModel, resolve
from broker.embedded import EmbeddedBroker
from schemas.adapter import Adapter
from tests.edge_node.processes.by_hand import EXAMPLES, LORA, Federation, NodeProcess
from tests.ports import free_port


@pytest.fixture(scope="module")
def resolved(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return resolve(str(tiny_model_dir), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def first(resolved: ResolvedModel) -> Adapter:
    """The adapter of version 0."""
    return initial_adapter(layout_of(resolved, LORA), seed=0)


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as running:
        yield running


@pytest.fixture(name="free_port")
def _free_port() -> int:
    return free_port()


@pytest.fixture
def found(resolved: ResolvedModel) -> Iterator[Any]:
    """Found a federation on a broker."""
    federations = []

    def found(broker: EmbeddedBroker, model: ResolvedModel = resolved) -> Federation:
        federations.append(Federation(broker, model))
        return federations[-1]

    yield found
    for federation in federations:
        federation.close()


@pytest.fixture
def start(tmp_path: Path, resolved: ResolvedModel) -> Iterator[Any]:
    """Start the node home-1 of a federation; the same folder each time."""
    processes: list[NodeProcess] = []
    save_examples(EXAMPLES, tmp_path / "examples.jsonl")

    def start(federation: Federation, broker: EmbeddedBroker, group: Path | None = None, **edge: Any) -> NodeProcess:
        usual = {
            "node": "home-1",
            "data": str(tmp_path / "examples.jsonl"),
            "data_dir": str(tmp_path / "home-1"),
            "training": {"steps": 2, "batch_size": 2, "learning_rate": 0.01},
        }
        config = {
            "federation": federation.name,
            "base_model": {"name": str(resolved.path), "cache_dir": str(tmp_path / "cache")},
            "broker": {"host": broker.settings.host, "port": broker.settings.port},
            "edge": usual | edge,
        }
        if federation.resolved != resolved:
            config["base_model"] = {"name": federation.resolved.name}
        processes.append(NodeProcess(config, tmp_path / f"node-{len(processes)}.log", group))
        return processes[-1]

    yield start
    for node in processes:
        if node.process.poll() is None:
            node.process.kill()
            node.process.wait()
