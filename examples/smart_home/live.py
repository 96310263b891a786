"""The fleet as a picture in the terminal, or as lines where there is none to draw on.

It draws a FleetView and knows nothing of how that came about. The picture never grows beyond the terminal's height.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from examples.smart_home.fleet_view import FleetView, NodeView, VersionView
from examples.smart_home.news import news
from examples.smart_home.wording import in_clock, speed

ACCENT = "cyan"
DRAWS_PER_SECOND = 4
_FRAME_LINES = 5  # header, column titles of both tables, blank lines between
_MOST_VERSIONS = 8


@dataclass(frozen=True)
class Setting:
    """What does not change during a run and stands in the header."""

    broker: str
    strategy: str
    started_at_ns: int


Show = Callable[[FleetView, int], None]
"""Called as show(view, now_ns) whenever there may be something new."""


@contextmanager
def shown(console: Console, setting: Setting, first: FleetView) -> Iterator[Show]:
    """A place to show views of the fleet: a live picture on a terminal, else one line for each piece of news."""
    if console.is_terminal and not console.is_dumb_terminal:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            yield _Picture(live, setting)
    else:
        yield _Lines(console, setting, first)


class _Picture:
    def __init__(self, live: Live, setting: Setting) -> None:
        self._live, self._setting, self._drawn_at = live, setting, 0.0

    def __call__(self, view: FleetView, now_ns: int) -> None:
        if view.is_final or time.monotonic() - self._drawn_at > 1 / DRAWS_PER_SECOND:
            self._drawn_at = time.monotonic()
            height = self._live.console.size.height
            self._live.update(picture(view, self._setting, now_ns, height), refresh=True)


class _Lines:
    def __init__(self, console: Console, setting: Setting, first: FleetView) -> None:
        self._console, self._setting, self._last = console, setting, first

    def __call__(self, view: FleetView, now_ns: int) -> None:
        clock = in_clock((now_ns - self._setting.started_at_ns) / 1e9)
        for line in news(self._last, view):
            # no markup and no wrapping: one event is one line, also when it is read by a program
            self._console.print(f"{clock}  {line}", markup=False, highlight=False, soft_wrap=True)
        self._last = view


def picture(view: FleetView, setting: Setting, now_ns: int, height: int) -> RenderableType:
    """The whole picture, at most `height` - 1 lines when `height` is 11 or more."""
    footer = _footer(view)
    free = max(4, height - 1 - _FRAME_LINES - bool(footer))
    node_rows = min(len(view.nodes), free - 2)
    version_rows = min(_MOST_VERSIONS, free - node_rows - (node_rows < len(view.nodes)))
    parts: list[RenderableType] = [
        _header(view, setting, now_ns),
        Text(""),
        _nodes(view, node_rows),
        Text(""),
        _versions(view, version_rows, now_ns),
    ]
    if footer:
        parts.append(Text(footer, style="yellow", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def _footer(view: FleetView) -> str:
    """What did not go as it should: refused updates, and messages that belong to nobody here."""
    ignored = view.malformed + view.strangers
    notes = [f"{ignored} foreign or malformed messages seen"] if ignored else []
    if (refusal := view.last_refusal) is not None:
        notes.append(f"{view.refused} updates refused, last: {refusal.node}: {refusal.status}: {refusal.reason}")
    return "; ".join(notes)


def _header(view: FleetView, setting: Setting, now_ns: int) -> RenderableType:
    at = "waiting for the first version" if view.head is None else f"version {view.head} of {view.final_version}"
    coordinator = "  coordinator offline" if view.epoch is not None and not view.coordinator_online else ""
    left = Text.assemble((at, "bold"), (coordinator, "yellow"), (f"   {setting.strategy} · {setting.broker}", "dim"))
    left.no_wrap, left.overflow = True, "ellipsis"
    row = Table.grid(expand=True, padding=(0, 1))
    row.add_column(ratio=1)
    row.add_column(width=20)
    row.add_column(justify="right")
    elapsed = Text(in_clock((now_ns - setting.started_at_ns) / 1e9), style="bold")
    row.add_row(left, _bar(view.head or 0, view.final_version, 20), elapsed)
    return row


def _nodes(view: FleetView, rows: int) -> RenderableType:
    table = _table()
    table.add_column("node", no_wrap=True, min_width=6)
    table.add_column("speed", justify="right", no_wrap=True)
    for title in ("trains from", "behind"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("training", no_wrap=True, ratio=1)
    for title in ("sent", "accepted", "loss"):
        table.add_column(title, justify="right", no_wrap=True)
    for name in list(view.nodes)[:rows]:
        table.add_row(*_node_cells(view, name, view.nodes[name]))
    if rows < len(view.nodes):
        table.add_row(Text(f"and {len(view.nodes) - rows} more", style="dim"))
    return table


def _node_cells(view: FleetView, name: str, node: NodeView) -> tuple[RenderableType, ...]:
    behind = view.staleness(name)
    return (
        Text(name, style="bold" if node.online else "dim"),
        Text(speed(node.slowdown), style="dim"),
        _number(node.base_version),
        Text("-" if behind is None else str(behind), style="yellow" if behind else ""),
        _training(node),
        _number(len(node.sent)),
        Text(str(len(node.accepted)), style="green" if node.accepted else ""),
        Text("-" if node.loss is None else f"{node.loss:.2f}"),
    )


def _training(node: NodeView) -> RenderableType:
    if not node.online:
        return Text("not here", style="dim")
    if node.base_version is None or not node.steps:
        return Text("waits", style="dim")
    cells = Table.grid(expand=True, padding=(0, 1, 0, 0))
    cells.add_column(ratio=1)
    cells.add_column(justify="right", min_width=5, no_wrap=True)
    cells.add_row(_bar(node.step, node.steps, None), Text(f"{node.step}/{node.steps}", style="dim"))
    return cells


def _versions(view: FleetView, rows: int, now_ns: int) -> RenderableType:
    table = _table()
    table.add_column("version", justify="right", no_wrap=True)
    table.add_column("digest", no_wrap=True)
    table.add_column("made from (node @ version it trained from)", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("served", no_wrap=True)
    table.add_column("age", justify="right", no_wrap=True)
    for version in reversed(view.versions[-rows:]):
        style = "bold" if version.version == view.head else ""
        age = in_clock(max(0.0, (now_ns - version.created_at_ns) / 1e9))
        digest, served = Text(version.digest[:12], style="dim"), Text(view.served.get(version.version, ""), style="dim")
        table.add_row(Text(str(version.version), style=style), digest, _made_of(version), served, age)
    return table


def _made_of(version: VersionView) -> Text:
    if not version.inputs:
        return Text("no update in it" if version.version else "first adapter, from the seed", style="dim")
    words = Text(no_wrap=True, overflow="ellipsis")
    for node, base_version in version.inputs:
        late = base_version < version.version - 1
        words.append(f"{node} ").append(f"@{base_version}   ", style="yellow" if late else "dim")
    return words


def _table() -> Table:
    return Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def _bar(done: int, total: int, width: int | None) -> ProgressBar:
    return ProgressBar(max(1, total), min(done, total), width, complete_style=ACCENT, finished_style=ACCENT)


def _number(value: int | None) -> Text:
    return Text("-" if value is None else str(value))
