"""What a node that waits has in memory: no module that only a command line or a serving node needs, and no adapter."""

import hashlib
import json
import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from base_model.settings import BaseModelSettings
from broker.security import SecuritySettings
from broker.settings import BrokerSettings
from commands.node_process import NodeOrder
from edge_node import held_adapter
from edge_node.effects import KeepPieces
from edge_node.memory import MAPS, let_go_of_file, let_go_of_values
from edge_node.settings import EdgeSettings
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.topics import GlobalChunk, GlobalHead, GlobalManifestOf

NOT_WANTED = (
    *("typer", "rich", "structlog", "pydantic_settings", "configuration", "coordinator"),  # of the command line
    *("onnxruntime", "onnx", "tokenizers", "jinja2", "uvicorn", "starlette"),  # of a node that serves
    *("torch", "transformers", "peft", "gguf"),  # of the training process
)
HELD = """
import json, sys
import commands.node_process, edge_node.service
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
LARGE = Layout(
    lora=LoraConfig(rank=8, target_modules=("x",)),
    tensors=(("x.lora_A.weight", (8, 1 << 17)), ("x.lora_B.weight", (1 << 17, 8))),
)


def resident(mapped: mmap.mmap) -> int:
    """Bytes of a mapping that this process has in memory."""
    start = np.frombuffer(mapped, np.uint8).ctypes.data
    lines = iter(MAPS.read_text().splitlines())
    for line in lines:
        first, _, rest = line.partition("-")
        if rest and " " in rest and int(first, 16) == start:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Rss:"))
    raise AssertionError("nothing is mapped there")


def test_an_idle_node_imports_nothing_of_the_command_line_of_serving_or_of_training() -> None:
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert {"edge_node", "numpy", "paho"} <= loaded
    assert loaded.isdisjoint(NOT_WANTED)


def test_settings_reach_the_nodes_process_as_they_are() -> None:
    order = NodeOrder(
        federation="home",
        base_model=BaseModelSettings(),
        broker=BrokerSettings(host="broker.local", port=8883, ca_file=Path("ca.pem")),
        edge=EdgeSettings.model_validate({"node": "attic", "data": "x.jsonl", "serving": {"http": "127.0.0.1:8000"}}),
        security=SecuritySettings(),
        log_level="info",
    )
    assert NodeOrder.model_validate_json(order.model_dump_json()) == order


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux tells what is resident")
def test_a_kept_adapter_is_in_memory_only_while_it_is_looked_at(tmp_path: Path, coordinator: Any) -> None:
    adapter = Adapter(LARGE, np.arange(LARGE.size, dtype=np.float32))
    pointer = coordinator.version(1).pointer.model_copy(update={"digest": adapter.digest})
    held_adapter.keep(tmp_path, pointer, held_adapter.body_of(adapter))
    kept = held_adapter.verified(tmp_path, pointer, LARGE)
    mapped = kept.values.base.obj if isinstance(kept.values.base, memoryview) else kept.values.base
    assert isinstance(mapped, mmap.mmap)
    assert resident(mapped) == 0
    assert kept == adapter
    assert resident(mapped) >= 4 * LARGE.size
    let_go_of_values(kept.values)
    assert resident(mapped) == 0
    assert kept == adapter


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux tells what is resident")
def test_what_was_written_over_a_mapped_file_is_not_lost(tmp_path: Path) -> None:
    path, size = tmp_path / "weights", 1 << 20
    path.write_bytes(b"a" * size)
    with path.open("r+b") as file:
        clean = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        changed = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    changed[0] = ord("b")
    assert clean[:] == b"a" * size and resident(clean) == size
    let_go_of_file(path)
    assert resident(clean) == 0
    assert changed[0] == ord("b")
    assert clean[:] == b"a" * size


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux tells what is resident")
def test_of_a_mapped_adapter_that_is_written_elsewhere_one_piece_is_in_memory(tmp_path: Path, coordinator: Any) -> None:
    adapter = Adapter(LARGE, np.arange(LARGE.size, dtype=np.float32))
    pointer = coordinator.version(1).pointer.model_copy(update={"digest": adapter.digest})
    held_adapter.keep(tmp_path, pointer, held_adapter.body_of(adapter))
    kept = held_adapter.verified(tmp_path, pointer, LARGE)
    memory = kept.values.base.obj if isinstance(kept.values.base, memoryview) else kept.values.base
    assert isinstance(memory, mmap.mmap)
    content, most = hashlib.sha256(), 0
    for piece in held_adapter.body_of(kept):
        content.update(piece)
        most = max(most, resident(memory))
    assert content.hexdigest() == adapter.digest
    assert 0 < most < 2 * LARGE.size  # half of its bytes
    assert resident(memory) == 0


def test_no_piece_of_a_version_waits_in_memory_for_those_after_it(member: Any, coordinator: Any) -> None:
    version = coordinator.version(3, 2.0, chunk_size=100)
    member.hears(GlobalHead(), version.pointer)
    member.hears(GlobalManifestOf(3), version.manifest)
    for index, chunk in enumerate(version.chunks[:-1]):
        assert KeepPieces(version.pointer, 100 * index, (chunk,)) in member.hears(GlobalChunk(3, index), chunk)
        assert member.state.fetch.assembly.parts == {}
        assert member.state.fetch.assembly.held == 100 * (index + 1)
