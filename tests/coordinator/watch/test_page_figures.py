"""Every number on the page is the one that `alignfed status --json` and /metrics tell of the same moment."""

import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from math import floor
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coordinator.watch.status import NodeStatus, ProcessStatus, Status, VersionStatus
from tests.browser import Browser

SECOND, MINUTE = 1_000_000_000, 60_000_000_000
PROCESS = ProcessStatus(
    boot_id="b" * 32,
    started_at_ns=time.time_ns() - 5 * MINUTE,
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

# Every text with a digit in it that can be seen, by the place where it stands: no number can be left out.
SHOWN = """(() => {
    const place = (at) => {
        const field = at.closest('[data-field]')?.dataset.field, row = at.closest('tr'), chart = at.closest('svg');
        if (at.closest('#facts')) return `${at.closest('table').caption.textContent}: ${row.dataset.key}`;
        if (field) return row ? `${row.dataset.key} ${field}` : field;
        return chart ? `chart of ${chart.parentElement.id}` : at.closest('[id]').id;
    };
    const found = {title: [document.title]}, texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const text = texts.currentNode, at = text.parentElement;
        if (/[0-9]/.test(text.data) && at.checkVisibility()) (found[place(at)] ??= []).push(text.data.trim());
    }
    for (const chart of document.querySelectorAll('svg')) found[place(chart)].push(chart.ariaLabel);
    return found;
})()"""

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
    assert page.pop("chart of loss")[-1] == label_of_losses(told.versions)  # the ticks are looked at below
    assert page == with_digits(on_page(told, now_ns))
    assert in_metrics(told).items() <= metrics(address).items()

    later = now_ns + 3 * 3600 * SECOND  # whatever has an age grows older with the clock
    page = browser.see(f"show({{...newest, at_ns: {later}}}); {SHOWN}")
    del page["chart of loss"]
    assert page == with_digits(on_page(told, later))
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
        ("node_loss",): told.versions[-1].node_loss,
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
    for cause, count in node.refusals.items():
        yield ("node_refusals_total", node.node, cause), count
    if node.last_update:
        yield ("node_last_update_timestamp_seconds", node.node), node.last_update.at_ns / 1e9


# --- what the page has to show ---


def on_page(told: Status, now_ns: int) -> dict[str, list[str]]:
    """Every text of the page by its place, from the status alone."""
    online = sum(node.liveness == "online" for node in told.nodes)
    refused, waiting = sum(told.refusals.values()), sum(group.updates for group in told.waiting)
    assert told.process is not None
    return {
        "title": [f"({len(told.alarms)}) {told.federation} · version {told.head}"],
        "terms": [f"{told.strategy} · {told.base_model} · epoch {told.epoch}"],
        "alarm-list": [alarm.text for alarm in told.alarms],
        "head": [str(told.head), f"{age(told.head_at_ns, now_ns)} old"],
        "release": [str(told.release.version), told.release.variant],
        "loss": [number(told.release.loss, 3)],
        "online": [str(online), f"of {len(told.nodes)}"],
        "waiting": [str(waiting)],
        "refused": [str(refused)],
        "fleet-caption": [f"{len(told.nodes)} of {len(told.nodes)} nodes. A heading sorts by its column."],
        **{f"{version.version} {field}": [text] for version in told.versions for field, text in row(version, now_ns)},
        **{f"{node.node} {field}": texts for node in told.nodes for field, texts in cells(node, now_ns)},
        **charts(told),
        **{f"Updates refused: {cause}": [str(count)] for cause, count in told.refusals.items()},
        **{f"Messages without an answer: {reason}": [str(count)] for reason, count in told.dropped.items()},
        **{f"Gate: {decision.replace('_', ' ')}": [str(count)] for decision, count in told.gate.items()},
        **{
            f"Processor time of the base model: {stage}": [f"{s:.1f} s"] for stage, s in told.model_seconds.items() if s
        },
        **{
            f"Waiting, by staleness: {(name := f'{group.staleness} (from version {group.base_version})')}": [
                name,
                str(group.updates),
            ]
            for group in told.waiting
        },
        **{f"This process: {name}": [text] for name, text in facts(told.process, now_ns)},
    }


def row(version: VersionStatus, now_ns: int) -> Iterator[tuple[str, str]]:
    yield "version", str(version.version)
    yield "age", age(version.created_at_ns, now_ns)
    yield "updates", str(version.updates)
    yield "staleness", str(version.staleness)
    yield "node_loss", number(version.node_loss, 3)
    yield "gate_before", number(version.gate_before, 3)
    yield "gate_after", number(version.gate_after, 3)


def cells(node: NodeStatus, now_ns: int) -> Iterator[tuple[str, list[str]]]:
    last, from_ = node.last_update, node.training_from
    yield "version", [number(node.version)]
    yield "serving", [number(node.serving)]
    yield "behind", [number(node.behind)]
    yield "training", ["" if from_ is None else f"v{from_} {node.step}/{node.steps}"]
    yield "rank", [number(node.rank)]
    yield "loss", [number(node.loss, 3)]
    yield "participation", [str(node.participation)]
    yield "weight_share", [f"{100 * node.weight_share:.1f} %"]
    yield "staleness", [number(node.staleness, 1)]
    yield "outbox", [number(node.outbox)]
    yield "refusals", [str(sum(node.refusals.values()))]
    if last:
        yield "last_update", [last.update_id[:8], f"{last.status}, {age(last.at_ns, now_ns)} ago"]


def charts(told: Status) -> dict[str, list[str]]:
    counts = {"0": 47, "1": 22, "2": 0}
    assert {int(name): count for name, count in counts.items() if count} == told.staleness == Counter(told.staleness)
    words = "; ".join(f"{name}: {count}" for name, count in counts.items())
    nodes = sorted((node for node in told.nodes if node.participation), key=lambda node: -node.weight_share)
    shares = [(node.node, f"{100 * node.weight_share:.1f} %") for node in nodes]
    return {
        "chart of staleness": [
            *(text for name, count in counts.items() for text in (name, str(count))),
            f"Updates by staleness in versions: {words}.",
        ],
        "chart of share": [
            *(share for _, share in shares),
            f"Share of the weight: {'; '.join(f'{name}: {share}' for name, share in shares)}.",
        ],
        "share-note": [f"Equal shares would be {100 / len(nodes):.1f} %. Over the newest versions."],
    }


def label_of_losses(versions: tuple[VersionStatus, ...]) -> str:
    last = versions[-1]
    return (
        f"Loss over {len(versions)} versions. calibration loss of the candidate {last.gate_after:.3f} at version "
        f"{last.version}; of what was served before {last.gate_before:.3f} at version {last.version}; nodes' own "
        f"training loss {last.node_loss:.3f} at version {last.version}."
    )


def facts(process: ProcessStatus, now_ns: int) -> Iterator[tuple[str, str]]:
    yield "running for", age(process.started_at_ns, now_ns)
    yield "in", f"{process.bytes_in / 2**20:.1f} MiB, {process.messages_in:,} messages"
    yield "out", f"{process.bytes_out / 2**10:.1f} KiB, {process.messages_out} messages"
    yield "publications waiting", str(process.publications_waiting)
    yield "questions to the base model", str(process.questions_waiting)
    yield "journal", f"{process.journal_bytes / 2**20:.1f} MiB"


def with_digits(texts: dict[str, list[str]]) -> dict[str, list[str]]:
    found = {place: [text for text in said if re.search("[0-9]", text)] for place, said in texts.items()}
    return {place: said for place, said in found.items() if said}


def number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def age(from_ns: int, now_ns: int) -> str:
    seconds = (now_ns - from_ns) / SECOND
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= {"d": 172_800, "h": 5400, "min": 90}[unit]:
            return f"{floor(seconds / length + 0.5)} {unit}"
    return f"{floor(seconds + 0.5)} s"
