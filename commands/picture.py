"""What goes on in a federation, drawn for a terminal: the fleet, the newest versions, what is wrong."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from commands.figures import loss_if_measured

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from coordinator.watch.status import HeldOut, NodeStatus, Status, VersionStatus

MOST_VERSIONS = 12


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


def live_picture(status: "Status | None", trouble: str | None, remark: str | None, height: int) -> "RenderableType":
    """The same for who watches: with `trouble` it was seen last, and is dimmed. `remark` is said below."""
    from rich.console import Group
    from rich.styled import Styled
    from rich.text import Text

    above = [Text(f"! {trouble}; asking again every second", style="red")] if trouble is not None else []
    below = [Text(remark, style="dim")] if remark is not None else []
    if status is None:
        return Group(*above, *below)
    room = height - 2 * len(above) - 2 * len(below)
    drawn = picture(status, room)
    return Group(*above, drawn if trouble is None else Styled(drawn, "dim"), *below)


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
        loss_if_measured(node.loss),
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
            loss_if_measured(version.node_loss),
            loss_if_measured(version.gate_before),
            loss_if_measured(version.gate_after),
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


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _age(from_ns: int, now_ns: int) -> str:
    s = max(0, now_ns - from_ns) // 1_000_000_000
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if s >= 2 * length:
            return f"{s // length} {unit}"
    return f"{s} s"
