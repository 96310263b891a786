"""`alignfed status` and `alignfed trace`: what goes on in a federation, in the terminal or as JSON."""

import http.client
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.console import FAILED, USAGE, Config, DataDir, Json, configuration, ending, fail, note

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from coordinator.settings import CoordinatorSettings
    from coordinator.watch.status import HeldOut, NodeStatus, Status, VersionStatus
    from coordinator.watch.trace import Trace

TIMEOUT_S = 20.0
NO_ANSWER = "1  there is no coordinator to ask, and no data of one"
MOST_VERSIONS = 12

Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="Ask the coordinator that shows itself there, its --http address."),
]

app = typer.Typer()


class NoAnswer(ConnectionError):
    """Nobody answers at an address; the text says where and why."""


@app.command(epilog=ending("alignfed status --url http://127.0.0.1:9100", NO_ANSWER, "130  interrupted"))
def status(
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, and draw it again every second.")] = False,
    as_json: Json = False,
) -> None:
    """Show what goes on in a federation.

    The coordinator is asked over HTTP, at --url or where the settings say that it shows itself. If it shows itself
    nowhere, or is off, its data folder is read: then nobody can say which nodes are online.
    """
    ask = _asking(url, config, data_dir)
    if as_json:
        print(ask().model_dump_json(indent=2))
        return
    from rich.console import Console

    console = Console()
    if not watch:
        console.print(picture(ask(), None))
        return
    from rich.live import Live

    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            live.update(picture(ask(), console.size.height), refresh=True)
            time.sleep(1)


@app.command(epilog=ending("alignfed trace 3f9a21c0", "1  no update, or more than one, has this id"))
def trace(
    update_id: Annotated[str, typer.Argument(metavar="UPDATE_ID", help="The id, or its first six digits or more.")],
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Follow one update from node to version.

    It says when the update's parts arrived, what was decided and why, and which version it went into at what weight.
    Ids are in the log, in receipts and in `alignfed status`.
    """
    from coordinator.watch.trace import NoSuchUpdate
    from coordinator.watch.trace import trace as follow

    settings = configuration(config)
    try:
        found = follow(data_dir or settings.coordinator.data_dir, settings.federation, update_id)
    except NoSuchUpdate as fault:
        fail(str(fault), FAILED)
    if as_json:
        print(found.model_dump_json(indent=2))
        return
    print(f"update {found.update_id} of {found.node}")
    for line in _steps(found):
        print(f"  {line}")


def _asking(url: str | None, config: Path | None, data_dir: Path | None) -> Any:
    """How to get a status, now and again."""
    if url is not None:
        address = _address(url)
        return lambda: _ask(address)
    settings = configuration(config).coordinator
    if data_dir is not None or settings.http is None:
        return lambda: _read(data_dir or settings.data_dir)
    return lambda: _ask_or_read(settings)


def _ask_or_read(settings: "CoordinatorSettings") -> "Status":
    try:
        return shown_at(str(settings.http))
    except NoAnswer as fault:
        note(f"{fault}; reading {settings.data_dir}")
        return _read(settings.data_dir)


def shown_at(http: str) -> "Status":
    """What a coordinator shows at HOST:PORT. Raises NoAnswer."""
    host, _, port = http.rpartition(":")
    return _asked(host.strip("[]"), int(port))


def _ask(address: tuple[str, int]) -> "Status":
    try:
        return _asked(*address)
    except NoAnswer as fault:
        fail(f"{fault}. Was the coordinator started with --http?", FAILED)


def _asked(host: str, port: int) -> "Status":
    from pydantic import ValidationError

    from coordinator.watch.status import Status

    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/api/status")
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise NoAnswer(f"what answers at {host}:{port} says {answer.status} {answer.reason}")
        return Status.model_validate_json(body)
    except (OSError, http.client.HTTPException) as fault:
        raise NoAnswer(f"nobody answers at {host}:{port}: {fault}") from None
    except ValidationError:
        raise NoAnswer(f"what answers at {host}:{port} is no coordinator, or one of another release") from None
    finally:
        connection.close()


def _read(data_dir: Path) -> "Status":
    from coordinator.journal import fold_history
    from coordinator.watch.alarms import with_alarms
    from coordinator.watch.status import Facts, status_of

    journal = data_dir / "journal.db"
    if not journal.exists():
        fail(f"there is no coordinator's data in {data_dir}: name its folder by --data-dir, or ask it by --url", FAILED)
    last = None
    for state, history, _ in fold_history(journal):
        last = Facts(state, history)
    if last is None:
        fail(f"{journal} is empty: the coordinator has not begun yet", FAILED)
    return with_alarms(status_of(last, time.time_ns()))


def _address(url: str) -> tuple[str, int]:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        if parts.scheme == "http" and parts.hostname and parts.port and parts.path in ("", "/"):
            return parts.hostname, parts.port
    except ValueError:  # a port that is no number
        pass
    fail(f"{url} is not a coordinator's address: give http://HOST:PORT", USAGE)


# --- the picture ---


def picture(status: "Status", height: int | None) -> "RenderableType":
    """The status for a terminal of so many lines; None shows everything."""
    from rich.console import Group
    from rich.text import Text

    head = Text.assemble((status.federation, "bold"), f"  version {status.head}, nodes serve {_served(status)}")
    head.append(f"  {status.strategy}, epoch {status.epoch}{', finished' if status.finished else ''}", style="dim")
    alarms = [Text(f"! {alarm.text}", style="yellow") for alarm in status.alarms[:10]]
    counts = Text(_counts(status), style="dim")
    versions = status.versions[-MOST_VERSIONS:]
    heard = any(node.liveness != "unknown" for node in status.nodes)
    room = len(status.nodes)
    if height is not None:
        around = len(versions) + len(alarms) + 10 + heard * (3 + len(status.fairness))
        room = max(3, (height - around) // (1 + heard))
    words = [_words(status, room), *_fairness(status), Text("")] if heard else []
    table = _versions(versions, status.at_ns)
    return Group(head, *alarms, Text(""), _nodes(status, room), Text(""), *words, table, counts)


def _served(status: "Status") -> str:
    loss = "" if status.release.loss is None else f" (calibration loss {status.release.loss:.3f})"
    return f"the {status.release.variant} of {status.release.version}{loss}"


def _counts(status: "Status") -> str:
    waiting = sum(group.updates for group in status.waiting)
    parts = [f"{waiting} updates wait", f"{status.in_the_making} in the making"]
    parts += [f"{count} refused: {cause.replace('_', ' ')}" for cause, count in status.refusals.items()]
    parts += [f"{count} dropped: {reason}" for reason, count in status.dropped.items()]
    return "; ".join(parts)


def _nodes(status: "Status", room: int) -> "RenderableType":
    promised = any(node.epsilon is not None for node in status.nodes)
    table = _table(
        "node", "is", "holds", "serves", "behind", "loss", "accepted", "weight", "stale", "outbox", "refused"
    )
    if promised:
        table.add_column("epsilon", justify="right", no_wrap=True)
    table.add_column("last update", justify="left", no_wrap=True, overflow="ellipsis")
    for node in status.nodes[:room]:
        *cells, last = _cells(node, status.at_ns)
        table.add_row(*cells, *([_epsilon(node)] if promised else []), last)
    if room < len(status.nodes):
        table.add_row(f"and {len(status.nodes) - room} more")
    return table


def _cells(node: "NodeStatus", now_ns: int) -> list[Any]:
    from rich.text import Text

    colors = {"online": "green", "offline": "red", "unknown": "dim"}
    last = node.last_update
    return [
        Text(node.node),
        Text(node.liveness, style=colors[node.liveness]),
        _number(node.version),
        _number(node.serving),
        _number(node.behind),
        _loss(node.loss),
        str(node.participation),
        f"{node.weight_share:.1%}",
        "-" if node.staleness is None else f"{node.staleness:.1f}",
        _number(node.outbox),
        str(sum(node.refusals.values())),
        "-" if last is None else f"{last.update_id[:8]} {last.status}, {_age(last.at_ns, now_ns)} ago",
    ]


def _words(status: "Status", room: int) -> "RenderableType":
    """What nodes say of themselves: how well versions do on their own examples, whether they train now, or why not."""
    from rich.text import Text

    table = _table("says", "rank", "loss served", "loss of head")
    table.add_column("trains", justify="left", no_wrap=True)
    table.add_column("only with", justify="left")
    for node in status.nodes[:room]:
        losses = [_held_out(node.held_out.get(use)) for use in ("served", "head")]
        table.add_row(Text(node.node), _number(node.rank), *losses, training(node), Text(node.limits or "-"))
    if room < len(status.nodes):
        table.add_row(f"and {len(status.nodes) - room} more")
    return table


def _fairness(status: "Status") -> "Iterator[RenderableType]":
    """A line for what is served, and one for what is trained from, where nodes have measured them."""
    from rich.text import Text

    for use, found in status.fairness.items():
        nodes = f"held-out loss of {'what is served' if use == 'served' else 'the head'}: mean {found.mean:.3f}"
        ends = f"best {found.best:.3f} {found.best_node}, worst {found.worst:.3f} {found.worst_node}"
        yield Text(f"{nodes} over {found.nodes} nodes, {ends}", style="dim")


def _held_out(told: "HeldOut | None") -> str:
    return "-" if told is None else f"{told.loss:.3f} v{told.version}"


def training(node: "NodeStatus") -> str:
    """Whether a node trains, or why not, in a few words."""
    if node.training_from is not None:
        return f"from {node.training_from}, step {node.step} of {node.steps}"
    return "-" if node.idle is None else f"no: {node.idle.replace('_', ' ')}"


def _epsilon(node: "NodeStatus") -> str:
    return "none" if node.epsilon is None else f"{node.epsilon:.3g}"


def _versions(versions: "tuple[VersionStatus, ...]", now_ns: int) -> "RenderableType":
    table = _table("version", "age", "updates", "stalest", "nodes' loss", "before", "candidate")
    table.add_column("gate", justify="left")
    for version in reversed(versions):
        table.add_row(
            str(version.version),
            _age(version.created_at_ns, now_ns),
            str(version.updates),
            str(version.staleness),
            _loss(version.node_loss),
            _loss(version.gate_before),
            _loss(version.gate_after),
            version.verdict.replace("_", " "),
        )
    return table


def _table(first: str, *numbers: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _steps(found: "Trace") -> Iterator[str]:
    """What happened, a line for each step."""
    if found.base_version is not None:
        how = (
            "" if found.steps is None else f": {found.steps} steps on {found.examples} examples, loss {found.loss:.3f}"
        )
        yield f"trained from version {found.base_version}{how}"
    if found.arrivals:
        first, last = found.arrivals[0], found.arrivals[-1]
        size = sum(arrival.size for arrival in found.arrivals)
        took = (last.at_ns - first.at_ns) / 1e9
        yield f"{_time(first.at_ns)}  {len(found.arrivals)} messages arrived, {size} bytes, within {took:.2f} s"
    if found.decided_at_ns is None:
        yield "parts of it are still missing"
    else:
        said = f"{found.status}: {found.reason}" if found.reason else "accepted"
        yield f"{_time(found.decided_at_ns)}  {said}"
    if (into := found.went_into) is not None:
        share = f"weight {into.weight:.4g}, {into.weight_share:.1%} of that version"
        yield f"{_time(into.at_ns)}  went into version {into.version}, one of {into.updates}, {share}"
        loss = "" if into.gate_after is None else f", calibration loss {_loss(into.gate_after)}"
        yield f"version {into.version}: {into.verdict.replace('_', ' ')}{loss}"
    elif found.status == "accepted":
        yield "waits for the next version"


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _loss(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.3f}"


def _age(from_ns: int, now_ns: int) -> str:
    s = max(0, now_ns - from_ns) // 1_000_000_000
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if s >= 2 * length:
            return f"{s // length} {unit}"
    return f"{s} s"


def _time(ns: int) -> str:
    """Local time, to the millisecond."""
    from datetime import datetime

    return datetime.fromtimestamp(ns / 1e9).isoformat(sep=" ", timespec="milliseconds")
