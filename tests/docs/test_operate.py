"""docs/operate.md names every metric, every field of the status, every alarm and every path that there is."""

import ast
import inspect
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from coordinator.watch import alarms, http, status, trace
from coordinator.watch.metrics import metrics_page
from coordinator.watch.status import (
    Alarm,
    Fairness,
    GroupStatus,
    HeldOut,
    NodeStatus,
    ProcessStatus,
    ReleaseStatus,
    Status,
    UpdateStatus,
    Value,
    VersionStatus,
)
from coordinator.watch.trace import Arrival, Trace, VersionOfUpdate
from edge_node import watching
from edge_node.core import initial_state
from edge_node.metrics import Metrics
from edge_node.settings import EdgeSettings
from edge_node.state import GlobalAdapter, Identity, Memory, Training, TrainingJob
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.messages import GlobalPointer

MODELS = (
    Status,
    NodeStatus,
    HeldOut,
    Fairness,
    UpdateStatus,
    VersionStatus,
    ReleaseStatus,
    GroupStatus,
    ProcessStatus,
    Alarm,
    Trace,
    Arrival,
    VersionOfUpdate,
)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_fields_of_every_part_are_the_code(model, generated, table, field_rows):
    header = ["field", "type", "default", "meaning"]
    generated("operate.md", model.__name__, f"{inspect.getdoc(model)}\n\n{table(header, field_rows(model))}")


def test_every_part_is_in_the_document():
    of_status = {model for _, model in inspect.getmembers(status, inspect.isclass) if issubclass(model, Value)}
    of_trace = {model for _, model in inspect.getmembers(trace, inspect.isclass) if issubclass(model, Value)}
    assert (of_status | of_trace) - {Value} == set(MODELS)


def test_every_metric_is_in_the_document(generated, table):
    families = [*text_string_to_metric_families(_pages()), *text_string_to_metric_families(_node_page())]
    rows = [
        [f"`{family.name}`", family.type, family.documentation]
        for family in sorted(families, key=lambda family: family.name)
    ]
    generated("operate.md", "metrics", table(["name", "type", "meaning"], iter(rows)))


def test_every_alarm_is_in_the_document(docs):
    text = (docs / "operate.md").read_text(encoding="utf-8")
    source = ast.parse(Path(inspect.getfile(alarms)).read_text(encoding="utf-8"))
    kinds = [
        word.value.value
        for call in ast.walk(source)
        if isinstance(call, ast.Call)
        for word in call.keywords
        if word.arg == "kind" and isinstance(word.value, ast.Constant)
    ]
    assert kinds and [kind for kind in kinds if f"| `{kind}` |" not in text] == []


def test_every_path_is_in_the_document(docs):
    text = (docs / "operate.md").read_text(encoding="utf-8")
    paths = re.findall(r'Route\("([^"]+)"', inspect.getsource(http))
    assert paths and [path for path in paths if f"| `{path}` |" not in text] == []


def test_every_path_of_a_node_is_in_the_document(docs):
    text = (docs / "operate.md").read_text(encoding="utf-8")
    paths = re.findall(r'Route\("([^"]+)"', inspect.getsource(watching))
    assert paths and [path for path in paths if f"`{path}`" not in text] == []


def _pages() -> str:
    """A coordinator's metrics; what there is nothing of yet has a name and a meaning all the same."""
    version = {field: 0 for field in VersionStatus.model_fields} | {
        "digest": "",
        "strategy": "",
        "groups": (),
        "verdict": "waits",
    }
    release = ReleaseStatus(version=0, variant="head", judged=0, loss=None)
    words = {"federation": "", "base_model": "", "strategy": "", "head_digest": "", "finished": False}
    counts = dict.fromkeys(("at_ns", "epoch", "head", "head_at_ns", "in_the_making", "incomplete_bytes"), 0)
    empty = {
        key: {} for key in ("fairness", "staleness", "group_sizes", "gate", "refusals", "dropped", "model_seconds")
    }
    process = dict.fromkeys(ProcessStatus.model_fields, 0) | {"boot_id": "", "connected": True}
    parts = {"release": release, "process": process, "waiting": (), "nodes": (), "versions": (version,)}
    return metrics_page(Status.model_validate({**words, **counts, **empty, **parts})).decode()


def _node_page() -> str:
    """A node's metrics; what it holds, serves and trains is there, too."""
    layout = Layout(lora=LoraConfig(rank=1), tensors=(("x.lora_A.weight", (1, 1)), ("x.lora_B.weight", (1, 1))))
    pointer = GlobalPointer(epoch=1, version=0, digest="0" * 64, parent=None, size=1, chunks=1)
    held = GlobalAdapter(pointer, Adapter(layout, np.zeros(layout.size, np.float32)))
    identity = Identity("home", "b" * 32, "0" * 64, EdgeSettings(node="attic", data=Path("none")))
    state, _ = initial_state(identity, Memory(), 0.0)
    training = Training(TrainingJob(held, sequence=0, seed=0))
    metrics = Metrics()
    metrics.show(replace(state, held=held, served=pointer, training=training, last_loss=1.0))
    return metrics.page().decode()
