"""The real model, served and trained in a gigabyte."""

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from base_model.layout import initial_adapter, layout_of
from base_model.reference import DEFAULT_NAME, default_cache, gguf_of, resolve
from broker.embedded import EmbeddedBroker
from edge_node.serving.export import export, prepack
from tests.edge_node.processes.by_hand import LORA, asked
from tests.patience import PATIENCE_S

MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")
GIGABYTE = 1_000_000_000


@pytest.fixture
def limited() -> Iterator[Path]:
    """A control group that may have a gigabyte of memory, and no swap."""
    group = MEMORY_GROUPS / f"alignfed-test-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(GIGABYTE))
        (group / "memory.swappiness").write_text("0")
    except OSError as fault:
        pytest.skip(
            f"THE GIGABYTE IS NOT TESTED: NO CONTROL GROUP OF MEMORY CAN BE MADE HERE (cgroup v1, root): {fault}"
        )
    yield group
    for pid in (group / "cgroup.procs").read_text().split():
        psutil.Process(int(pid)).kill()
    deadline = time.monotonic() + PATIENCE_S
    while (group / "cgroup.procs").read_text().split() and time.monotonic() < deadline:
        time.sleep(0.05)
    group.rmdir()


def _forget_pages(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


@pytest.mark.slow
def test_a_node_serves_and_trains_the_real_model_in_a_gigabyte(
    broker: EmbeddedBroker, found: Any, start: Any, limited: Path, free_port: int
) -> None:
    cache = default_cache()
    real = resolve(DEFAULT_NAME, cache)
    served = prepack(export(real, cache, "q41x"), cache)  # once per machine, and not in this group
    for path in (gguf_of(real, cache), *served.graph.parent.iterdir()):
        _forget_pages(path)  # those that others have read would be counted as theirs
    federation = found(broker, real)
    federation.announce()
    address = f"127.0.0.1:{free_port}"
    training = {"steps": 3, "batch_size": 4}
    node = start(federation, broker, limited, training=training, serving={"http": address, "parallel": 2})
    node.says("answering on http://", 300)
    version = initial_adapter(layout_of(real, LORA), seed=0)
    federation.release(federation.publish(0, version))
    node.says("serving the head of version 0", 300)
    node.says("training on the blocks of ", 300)
    assert asked(free_port)[0] == "0"  # while it trains
    node.says("training on version 0: 3 steps", 300)
    _, manifest, delta = federation.hears_update()
    assert (manifest.base_version, manifest.steps) == (0, 3)
    assert delta.norm > 0
    assert asked(free_port)[0] == "0"
    assert node.is_asked_to_end() == 0
    assert "cannot train" not in node.log
    assert "oom_kill 0" in (limited / "memory.oom_control").read_text()
    assert int((limited / "memory.max_usage_in_bytes").read_text()) <= GIGABYTE


@pytest.mark.slow
def test_where_memory_ends_the_training_goes_and_the_service_stays(
    broker: EmbeddedBroker, found: Any, start: Any, limited: Path, free_port: int
) -> None:
    (limited / "memory.limit_in_bytes").write_text(str(250 << 20))
    real = resolve(DEFAULT_NAME, default_cache())
    federation = found(broker, real)
    federation.announce()
    node = start(federation, broker, limited, serving={"http": f"127.0.0.1:{free_port}"})
    node.says("answering on http://", 300)
    federation.release(federation.publish(0, initial_adapter(layout_of(real, LORA), seed=0)))
    node.says("cannot train: the training process was killed", 300)
    assert asked(free_port)[0] == "0"
    assert node.is_asked_to_end() == 0
