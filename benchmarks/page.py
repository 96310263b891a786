"""What a status costs the coordinator's page in a real browser: 200 nodes, as a ratio to 10 in the same run.

    .venv/bin/python benchmarks/page.py --json page.json

Every node has a share, a staleness and figures of its own. What is shown, STATUSES times each: the same again; a second
more on every age; new figures of one node; new figures of every node. Processor time of the thread that runs scripts,
lays the page out and paints it, not wall-clock; a status comes once a second. The median of ROUNDS, in turns.
"""

import argparse
import json
import socket
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from made_up_updates import FEDERATION, LAYOUT, bodies, messages, terms

from coordinator.core import found, step
from coordinator.watch.board import Board
from coordinator.watch.fleet import Fleet, hear
from coordinator.watch.history import History, observe
from coordinator.watch.http import watching
from coordinator.watch.ordering import Guard
from coordinator.watch.status import Facts
from schemas.adapter import Adapter
from schemas.messages import NodeMetrics, NodeState
from schemas.topics import NodeMetricsOf, NodeStateOf
from tests.browser import DESK, Browser

SIZES = (10, 200)
STATUSES = 20
ROUNDS = 5
OLDEST = 3  # base versions that updates start from: the newest, and those before it
KINDS = {
    "nothing new": "at_ns: newest.at_ns",
    "all ages": "at_ns: newest.head_at_ns + (60 - left) * 1e9",
    "one node": "nodes: newest.nodes.map((n, at) => at === 5 ? moved(n) : n)",
    "every node": "nodes: newest.nodes.map(moved)",
}
SHOW = """new Promise((done) => {
    const moved = (n) => ({...n, loss: n.loss + 0.01, step: n.step + 1, outbox: n.outbox + 1, behind: n.behind + 1,
        weight_share: 1 - n.weight_share, staleness: n.staleness + 0.1});
    let left = %d;
    const next = () => {
        if (!left--) return done();
        show({...newest, %s});
        requestAnimationFrame(next);
    };
    requestAnimationFrame(next);
})"""


def facts_of(nodes: int) -> Facts:
    """A federation in which so many nodes have two updates each in versions, and say how they are."""
    state, effects = found(terms(max(2, nodes // 10)), Adapter.zeros(LAYOUT), 0)
    history, fleet, states = observe(History(), None, effects, 0), dict[str, Any](), [state]
    [body] = bodies(1)
    for number in range(2 * nodes):
        base = states[-1 - number % min(OLDEST, len(states))]
        for message in messages(number, body, base, nodes):
            state, effects = step(state, message)
            history = observe(history, message, effects, message.at_ns)
        if state.head.version > states[-1].head.version:
            states.append(state)
    for number in range(nodes):
        fleet = dict(_says(fleet, f"node-{number}", loss=1 + number / 7, base_version=0, step=3, steps=8))
    return Facts(state, history, fleet)


def _says(fleet: Fleet, node: str, **metrics: Any) -> Fleet:
    """The fleet when a node has said that it is there, and how it is."""
    state = NodeState(online=True, boot_id="b" * 32, base_model="0" * 64, version=0)
    fleet = hear(fleet, NodeStateOf(node), state.to_bytes(), 0, max(SIZES))
    return hear(fleet, NodeMetricsOf(node), NodeMetrics(boot_id="b" * 32, **metrics).to_bytes(), 0, max(SIZES))


def measured(browser: Browser, address: str, nodes: int) -> dict[str, float]:
    """Milliseconds for each kind of status on the page there, which shows so many nodes."""
    browser.begin_anew()
    browser.on(DESK)
    browser.ask("Performance.enable", timeDomain="threadTicks")
    browser.open(address)
    browser.see("stream.close()")
    assert browser.see("newest.nodes.filter((node) => node.weight_share > 0).length") == nodes
    return {kind: _milliseconds(browser, news) for kind, news in KINDS.items()}


def _milliseconds(browser: Browser, news: str) -> float:
    begun = _busy_s(browser)
    browser.see(SHOW % (STATUSES, news))
    return 1e3 * (_busy_s(browser) - begun) / STATUSES


def _busy_s(browser: Browser) -> float:
    """Processor time of the page's thread so far."""
    found = {metric["name"]: metric["value"] for metric in browser.ask("Performance.getMetrics")["metrics"]}
    return float(found["TaskDuration"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    file: Path | None = parser.parse_args().json
    rounds: dict[tuple[int, str], list[float]] = {(size, kind): [] for size in SIZES for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        browser, facts = Browser(Path(folder) / "browser"), {size: facts_of(size) for size in SIZES}
        try:
            for _ in range(ROUNDS):
                for size in SIZES:
                    board, address = Board(), _free_address()
                    board.show(facts[size])
                    with watching(address, Path(folder), FEDERATION, board, Guard(None, ())):
                        for kind, took in measured(browser, address, size).items():
                            rounds[size, kind].append(took)
        finally:
            browser.end()
    figures = {kind: {str(size): round(median(rounds[size, kind]), 2) for size in SIZES} for kind in KINDS}
    _print(figures)
    if file is not None:
        file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    sys.exit(bool(browser.faults))


def _print(figures: dict[str, dict[str, float]]) -> None:
    few, many = map(str, SIZES)
    print(f"{'ms of processor a status':<24}{few + ' nodes':>10}{many + ' nodes':>12}{'ratio':>8}")
    for kind, took in figures.items():
        print(f"{kind:<24}{took[few]:10.2f}{took[many]:12.2f}{took[many] / took[few]:8.1f}")


def _free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}"


if __name__ == "__main__":
    main()
