"""Every number on the page is the one that `alignfed status --json` and /metrics tell of the same moment."""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coordinator.watch.status import NodeStatus, ProcessStatus, Status
from tests.browser import Browser
from tests.page_figures import SECOND, SHOWN, on_page

PROCESS = ProcessStatus(
    boot_id="b" * 32,
    started_at_ns=time.time_ns() - 5 * 60 * SECOND,
    connected=True,
    messages_in=1_234,
    bytes_in=5_678_901,
    messages_out=432,
    bytes_out=98_765,
    publications_waiting=7,
    questions_waiting=1,
    journal_bytes=3_456_789,
)
VERDICTS = {"served": "served", "turned_down": "turned down", "waits": "waits for the gate"}

# Where the chart's ticks stand, and its marks, with what they say of themselves.
DRAWN = """(() => ({
    ticks: [...document.querySelectorAll('#loss text[text-anchor=end]')].map(
        (tick) => [+tick.textContent, tick.y.baseVal[0].value - 4]),
    marks: [...document.querySelectorAll('#loss title')].map((t) => {
        const box = t.parentElement.getBBox();
        return [t.parentElement.tagName, t.textContent, box.y + box.height / 2];
    }),
    bars: [...document.querySelectorAll('#share rect')].map((bar) => bar.width.baseVal.value),
}))()"""


def test_every_number_on_the_page_is_that_of_status_json_and_of_metrics(
    judged: Any, show: Callable[..., None], address: str, browser: Browser
) -> None:
    show(judged.facts(PROCESS))
    browser.open(address)
    browser.see("document.querySelector('details').open = true")
    told = status_json(address)
    assert {"served", "turned_down"} <= {version.verdict for version in told.versions}
    assert {node.liveness for node in told.nodes} == {"online", "offline", "unknown"}
    assert {alarm.kind for alarm in told.alarms} >= {"node_starved", "node_refused", "outbox_growing"}
    assert len(told.waiting) == 2 and told.dropped and told.refusals

    now_ns, page = browser.see(f"[newest.at_ns, {SHOWN}]")
    assert page == on_page(told, now_ns)
    assert in_metrics(told).items() <= metrics(address).items()

    later = now_ns + 3 * 3600 * SECOND  # whatever has an age grows older with the clock
    assert browser.see(f"show({{...newest, at_ns: {later}}}); {SHOWN}") == on_page(told, later)
    assert browser.faults == []


def test_what_is_drawn_lies_where_its_numbers_say_and_a_starved_node_stands_out(
    judged: Any, show: Callable[..., None], address: str, browser: Browser
) -> None:
    show(judged.facts())
    browser.open(address)
    told, drawn = status_json(address), browser.see(DRAWN)
    (low, y_low), *_, (high, y_high) = drawn["ticks"]
    measured = [version for version in told.versions if version.gate_after is not None]
    assert len(drawn["marks"]) == len(measured) == 23
    for version, (tag, text, y) in zip(measured, drawn["marks"], strict=True):
        assert version.gate_after == pytest.approx(low + (y - y_low) / (y_high - y_low) * (high - low), abs=0.01)
        assert text == f"version {version.version}: {version.gate_after:.3f}, {VERDICTS[version.verdict]}"
        assert tag == ("path" if version.verdict == "turned_down" else "circle")
    shares = sorted((node.weight_share for node in told.nodes if node.participation), reverse=True)
    assert all(a >= b for a, b in pairwise(drawn["bars"]))
    assert [width / drawn["bars"][0] for width in drawn["bars"]] == pytest.approx([s / shares[0] for s in shares])
    starved = "[...document.querySelectorAll('#share rect[fill*=bad] title')].map((title) => title.textContent)"
    assert browser.see(starved) == ["slow: 2.1 %"]
    assert browser.see(f"show({{...newest, alarms: []}}); {starved}") == []


# --- the other two who tell it ---


def status_json(address: str) -> Status:
    command = [sys.executable, "-m", "alignfed", "status", "--url", f"http://{address}", "--json"]
    return Status.model_validate_json(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)


def metrics(address: str) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def in_metrics(told: Status) -> dict[tuple[str, ...], float]:
    """What a status comes to in Prometheus' names, for each number on the page that has one."""
    samples: dict[tuple[str, ...], float | None] = {
        ("head_version",): told.head,
        ("release_version",): told.release.version,
        ("head_timestamp_seconds",): told.head_at_ns / 1e9,
        ("calibration_loss", "gate_before"): told.versions[-1].gate_before,
        ("calibration_loss", "gate_after"): told.versions[-1].gate_after,
        ("head_training_loss",): told.versions[-1].node_loss,
        ("update_staleness_versions_count",): sum(told.staleness.values()),
        ("update_staleness_versions_sum",): sum(value * count for value, count in told.staleness.items()),
        **{("gate_decisions_total", decision): count for decision, count in told.gate.items()},
        **{("model_seconds_total", stage): spent for stage, spent in told.model_seconds.items()},
        **{("waiting_updates", str(group.staleness)): group.updates for group in told.waiting},
        **{("updates_refused_total", cause): count for cause, count in told.refusals.items()},
        **{("messages_dropped_total", reason): count for reason, count in told.dropped.items()},
        **{("alarm", alarm.kind, alarm.node or ""): 1 for alarm in told.alarms},
        ("mqtt_bytes_total", "in"): PROCESS.bytes_in,
        ("mqtt_bytes_total", "out"): PROCESS.bytes_out,
        ("mqtt_messages_total", "in"): PROCESS.messages_in,
        ("mqtt_messages_total", "out"): PROCESS.messages_out,
        ("queue_depth", "publications"): PROCESS.publications_waiting,
        ("queue_depth", "questions"): PROCESS.questions_waiting,
        ("journal_bytes",): PROCESS.journal_bytes,
        ("start_timestamp_seconds",): PROCESS.started_at_ns / 1e9,
        **{sample: value for node in told.nodes for sample, value in of_node(node)},
    }
    return {(f"alignfed_{name}", *labels): value for (name, *labels), value in samples.items() if value is not None}


def of_node(node: NodeStatus) -> Iterator[tuple[tuple[str, ...], float | None]]:
    yield ("node_up", node.node), int(node.liveness == "online")
    yield ("node_version", node.node), node.version
    yield ("node_serving_version", node.node), node.serving
    yield ("node_versions_behind", node.node), node.behind
    yield ("node_loss", node.node), node.loss
    yield ("node_outbox_updates", node.node), node.outbox
    yield ("node_participation_total", node.node), node.participation
    yield ("node_weight_share", node.node), node.weight_share
    yield ("node_staleness_versions", node.node), node.staleness
    for of, held_out in node.held_out.items():
        yield ("node_held_out_loss", node.node, of), held_out.loss
        yield ("node_held_out_version", node.node, of), held_out.version
    for cause, count in node.refusals.items():
        yield ("node_refusals_total", node.node, cause), count
    if node.last_update:
        yield ("node_last_update_timestamp_seconds", node.node), node.last_update.at_ns / 1e9
