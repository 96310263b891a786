"""Every number that the coordinator's page has to show of a status, told from the status alone."""

import re
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from math import floor, inf

from coordinator.watch.status import GroupStatus, NodeStatus, ProcessStatus, Status, VersionStatus

SECOND = 1_000_000_000
STALENESS_EDGES = ((0, 0), (1, 1), (2, 2), (3, 3), (4, 5), (6, 8), (9, 13), (14, 21), (22, 34), (35, inf))
LOSSES = {
    "gate_after": "calibration loss of the candidate",
    "gate_before": "of what was served before",
    "node_loss": "nodes' own training loss",
}

# Every text with a digit in it that can be seen, and what charts say of themselves, by the place where it stands. No
# number can be left out, but those at the ticks of the losses.
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
        if (!/[0-9]/.test(text.data) || !at.checkVisibility() || at.closest('#loss svg')) continue;
        (found[place(at)] ??= []).push(text.data.trim());
    }
    for (const chart of document.querySelectorAll('svg')) (found[place(chart)] ??= []).push(chart.ariaLabel);
    return found;
})()"""


def on_page(told: Status, now_ns: int) -> dict[str, list[str]]:
    """Every text with a digit in it, by its place; the newest versions are folded out, and no more than 12 nodes."""
    texts = {**_glance(told, now_ns), **_charts(told), **_counts(told, now_ns)}
    for version in told.versions:
        texts |= {f"{version.version} {field}": [text] for field, text in _version(version, now_ns)}
    for node in told.nodes:
        texts |= {f"{node.node} {field}": said for field, said in _node(node, now_ns)}
    found = {place: [text for text in said if re.search("[0-9]", text)] for place, said in texts.items()}
    return {place: said for place, said in found.items() if said}


def _glance(told: Status, now_ns: int) -> dict[str, list[str]]:
    online, nodes = sum(node.liveness == "online" for node in told.nodes), len(told.nodes)
    alarms, finished = f"({len(told.alarms)}) " if told.alarms else "", " · finished" if told.finished else ""
    making = f"{told.in_the_making} in the making" if told.in_the_making else ""
    fairness = told.fairness.get("served") or told.fairness.get("head")
    return {
        "title": [f"{alarms}{told.federation} · version {told.head}"],
        "terms": [f"{told.strategy} · {told.base_model} · epoch {told.epoch}{finished}"],
        "alarm-list": [alarm.text for alarm in told.alarms],
        "head": [number(told.head), f"{age(told.head_at_ns, now_ns)} old"],
        "release": [number(told.release.version), told.release.variant],
        "loss": [number(told.release.loss, 3)],
        "online": [number(online), f"of {nodes}"],
        "waiting": [number(sum(group.updates for group in told.waiting)), making],
        "refused": [number(sum(told.refusals.values()))],
        "fairness": [number(fairness.worst, 3), fairness.worst_node] if fairness else [],
        "fleet-caption": [f"{nodes} of {nodes} nodes. A heading sorts by its column."],
    }


def _version(version: VersionStatus, now_ns: int) -> Iterator[tuple[str, str]]:
    yield "version", str(version.version)
    yield "age", age(version.created_at_ns, now_ns)
    yield "updates", number(version.updates)
    yield "staleness", number(version.staleness)
    yield "node_loss", number(version.node_loss, 3)
    yield "gate_before", number(version.gate_before, 3)
    yield "gate_after", number(version.gate_after, 3)


def _node(node: NodeStatus, now_ns: int) -> Iterator[tuple[str, list[str]]]:
    last, from_ = node.last_update, node.training_from
    yield "node", [node.node]
    yield "version", [number(node.version)]
    yield "serving", [number(node.serving)]
    yield "behind", [number(node.behind)]
    yield "training", ["" if from_ is None else f"v{from_} {node.step}/{node.steps}"]
    yield "rank", [number(node.rank)]
    yield "loss", [number(node.loss, 3)]
    if told := node.held_out.get("served") or node.held_out.get("head"):
        yield "held_out", [f"{number(told.loss, 3)} v{told.version}"]
    yield "participation", [number(node.participation)]
    yield "weight_share", [percent(node.weight_share)]
    yield "staleness", [number(node.staleness, 1)]
    yield "outbox", [number(node.outbox)]
    yield "refusals", [number(sum(node.refusals.values()))]
    if last:
        yield "last_update", [last.update_id[:8], f"{last.status}, {age(last.at_ns, now_ns)} ago"]


def _charts(told: Status) -> dict[str, list[str]]:
    nodes = sorted((node for node in told.nodes if node.participation), key=lambda node: node.node, reverse=True)
    shares = [(n.node, percent(n.weight_share)) for n in sorted(nodes, key=lambda node: -node.weight_share)]
    stalenesses, losses = list(_stalenesses(told)), list(_losses(told.versions))
    charts = {}
    if losses:
        charts["chart of loss"] = [f"Loss over {len(told.versions)} versions. {'; '.join(losses)}."]
    if stalenesses:
        charts["chart of staleness"] = _bars("Updates by staleness in versions", stalenesses)
    if shares:
        charts["chart of share"] = _bars("Share of the weight", shares)
        charts["share-note"] = [f"Equal shares would be {percent(1 / len(nodes))}. Over the newest versions."]
    return charts


def _bars(title: str, bars: list[tuple[str, str]]) -> list[str]:
    words = "; ".join(f"{name}: {text}" for name, text in bars)
    return [*(text for bar in bars for text in bar), f"{title}: {words}."]


def _stalenesses(told: Status) -> Iterator[tuple[str, str]]:
    if not told.staleness:
        return
    longest = max(at for at, (low, _) in enumerate(STALENESS_EDGES) if low <= max(told.staleness))
    for low, high in STALENESS_EDGES[: max(3, longest + 1)]:
        count = sum(updates for value, updates in told.staleness.items() if low <= value <= high)
        yield str(low) if low == high else f"{low}\N{EN DASH}{high}" if high < inf else f"{low} or more", number(count)


def _losses(versions: tuple[VersionStatus, ...]) -> Iterator[str]:
    for field, name in LOSSES.items():
        measured = [version for version in versions if getattr(version, field) is not None]
        if measured:
            yield f"{name} {number(getattr(measured[-1], field), 3)} at version {measured[-1].version}"


def _counts(told: Status, now_ns: int) -> dict[str, list[str]]:
    tables = {
        "Updates refused": [(cause, [number(count)]) for cause, count in told.refusals.items()],
        "Messages without an answer": [(reason, [number(count)]) for reason, count in told.dropped.items()],
        "Gate": [(decision.replace("_", " "), [number(n)]) for decision, n in told.gate.items() if n],
        "Processor time of the base model": [
            (stage, [f"{number(s, 1)} s"]) for stage, s in told.model_seconds.items() if s
        ],
        "Waiting, by staleness": [_waiting(group) for group in told.waiting],
        "This process": [(name, [text]) for name, text in _process(told.process, now_ns)] if told.process else [],
    }
    return {f"{title}: {name}": texts for title, rows in tables.items() for name, texts in rows}


def _waiting(group: GroupStatus) -> tuple[str, list[str]]:
    name = f"{group.staleness} (from version {group.base_version})"
    return name, [name, number(group.updates)]


def _process(process: ProcessStatus, now_ns: int) -> Iterator[tuple[str, str]]:
    yield "running for", age(process.started_at_ns, now_ns)
    yield "in", f"{size(process.bytes_in)}, {number(process.messages_in)} messages"
    yield "out", f"{size(process.bytes_out)}, {number(process.messages_out)} messages"
    yield "publications waiting", number(process.publications_waiting)
    yield "questions to the base model", number(process.questions_waiting)
    yield "journal", size(process.journal_bytes)


def number(value: float | None, digits: int = 0) -> str:
    """As the page words it; of its shortest decimal form, halves go up. Nothing for None."""
    if value is None:
        return ""
    return f"{Decimal(repr(value)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP):,}"


def percent(share: float) -> str:
    return f"{number(100 * share, 1)} %"


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{number(count, 0 if unit == 'B' else 1)} {unit}"
        count /= 1024
    return f"{number(count, 1)} GiB"


def age(from_ns: int, now_ns: int) -> str:
    seconds = max(0, now_ns - from_ns) / SECOND
    for unit, length, least in (("d", 86_400, 172_800), ("h", 3600, 5400), ("min", 60, 90)):
        if seconds >= least:
            return f"{floor(seconds / length + 0.5)} {unit}"
    return f"{floor(seconds + 0.5)} s"
