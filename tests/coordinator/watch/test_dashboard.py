"""The dashboard and the alert rules name only metrics that there are."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from coordinator.core import found
from coordinator.watch.alarms import with_alarms
from coordinator.watch.history import History, observe
from coordinator.watch.metrics import metrics_page
from coordinator.watch.status import Facts, ProcessStatus, status_of
from edge_node.core import initial_state
from edge_node.metrics import Metrics
from edge_node.settings import EdgeSettings
from edge_node.state import Identity, Memory

DOCKER = Path(__file__).parents[3] / "docker"
BUILT_IN = {"up"}
WORD = re.compile(r"\b(alignfed_\w+|up)\b(?=[\s{)\[]|$)")


@pytest.fixture
def names(config: Any, adapter: Any) -> set[str]:
    """Every name that a coordinator and a node give samples, or would once there is something to count."""
    state, effects = found(config(), adapter(0), 1)
    history = observe(History(), None, effects, 1)
    process = ProcessStatus(
        boot_id="b" * 32,
        started_at_ns=1,
        connected=True,
        messages_in=0,
        bytes_in=0,
        messages_out=0,
        bytes_out=0,
        publications_waiting=0,
        questions_waiting=0,
        journal_bytes=0,
    )
    status = with_alarms(status_of(Facts(state, history, process=process), 2))
    version = status.versions[0].model_copy(update={"node_loss": 1.0})
    node = Metrics()
    settings = EdgeSettings(node="attic", data=Path("none"))
    node.show(initial_state(Identity("home", "b" * 32, "0" * 64, settings), Memory(), 0.0)[0])
    pages = (metrics_page(status.model_copy(update={"versions": (version,)})), node.page())
    families = [family for page in pages for family in text_string_to_metric_families(page.decode())]
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {family.name + ending for family in families for ending in endings.get(family.type, ("",))}


def expressions() -> list[str]:
    board = json.loads((DOCKER / "grafana" / "alignfed.json").read_text())
    rules = yaml.safe_load((DOCKER / "prometheus" / "alerts.yaml").read_text())
    on_board = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    variables = [variable["query"]["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    return [*on_board, *variables, *(rule["expr"] for group in rules["groups"] for rule in group["rules"])]


def test_every_metric_of_dashboard_and_alerts_exists(names: set[str]) -> None:
    used = {word for expression in expressions() for word in WORD.findall(expression.replace(",", " "))}
    assert used - BUILT_IN <= names
    assert len(used) > 20


def test_every_alert_says_what_to_do() -> None:
    rules = yaml.safe_load((DOCKER / "prometheus" / "alerts.yaml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["summary"] and rule["annotations"]["description"], rule["alert"]


def test_panels_do_not_overlap() -> None:
    board = json.loads((DOCKER / "grafana" / "alignfed.json").read_text())
    cells = [
        (x, y)
        for panel in board["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
