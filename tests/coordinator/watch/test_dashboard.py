"""Metrics have names of their own, and dashboard and alert rules name only those that there are."""

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

DOCKER = Path(__file__).parents[3] / "docker"
BUILT_IN = {"up"}
OF_IDLE_NODES = {"alignfed_edge_idle"}  # and the node of these tests trains
WORD = re.compile(r"\b(alignfed_\w+|up)\b(?=[\s{)\[]|$)")


@pytest.fixture
def names(coordinator_page: bytes, node_page: bytes) -> set[str]:
    """Every name that a coordinator and a node give samples, or would once there is something to count."""
    families = [family for page in (coordinator_page, node_page) for family in families_of(page)]
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {family.name + ending for family in families for ending in endings.get(family.type, ("",))}


def families_of(page: bytes) -> list[Metric]:
    return list(text_string_to_metric_families(page.decode()))


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


def test_every_metric_of_coordinator_and_node_has_a_name_of_its_own(coordinator_page: bytes, node_page: bytes) -> None:
    names = [family.name for page in (coordinator_page, node_page) for family in families_of(page)]
    assert len(names) == len(set(names)) > 50


def test_a_pages_metrics_all_have_samples_and_a_meaning(coordinator_page: bytes, node_page: bytes) -> None:
    families = [*families_of(coordinator_page), *families_of(node_page)]
    assert {family.name for family in families if not family.samples} == OF_IDLE_NODES
    assert [family.name for family in families if not family.documentation] == []


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
