"""`alignfed nodes`: what the coordinator keeps of each node, and what an operator can do about one."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.console import (
    FAILED,
    FAILURE,
    Config,
    DataDir,
    Json,
    Wait,
    configuration,
    ending,
    fail,
    note,
    print_table,
)
from commands.picture import training
from commands.status import NoAnswer, shown_at

if TYPE_CHECKING:
    from coordinator.journal import UpdateRow
    from coordinator.operations.orders import Forgive, Quarantine
    from coordinator.trust.ledger import NodeReport
    from coordinator.watch.status import NodeStatus

USUAL_DELTA = 1e-5
WORDS = {"served": "which it serves", "head": "which it trained from"}
MOST_SHOWN = 10  # of a node's refusals, the latest

Node = Annotated[str, typer.Argument(metavar="NODE", help="A node's name.")]

Delta = Annotated[
    float | None,
    typer.Option(
        min=1e-15, max=0.5, help="Chance with which epsilon may be exceeded.  [default: the settings', or 1e-05]"
    ),
]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at nodes, shut one out, let it in again.")


@app.command("list", epilog=ending("alignfed nodes list --data-dir alignfed-data/coordinator", FAILURE))
def list_nodes(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List every node that the coordinator has heard.

    In the column `agreement` is the mean cosine of a node's updates to what the coordinator's own examples teach: it is
    above zero for a node that learns the same. An alarm means that over a fifth of a node's updates are refused.
    """
    reports = _reports(_folder(config, data_dir))
    if as_json:
        print(json.dumps([report.model_dump(mode="json") for report in reports], indent=2))
        return
    rows = [
        [
            r.node,
            str(r.participation),
            str(sum(r.refusals.values())),
            f"{r.refused_share:.0%}",
            _agreement(r),
            _state(r),
        ]
        for r in reports
    ]
    print_table(["node", "accepted", "refused", "share", "agreement", "state"], rows)


@app.command("show", epilog=ending("alignfed nodes show kitchen", "1  there is no such node"))
def show_node(
    node: Node, delta: Delta = None, config: Config = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Show what the coordinator keeps of one node: what it took, what it refused, and why.

    Where the coordinator shows itself over HTTP it is asked, too, for what the node says of itself: whether it trains
    now, or why not.

    Privacy is epsilon at --delta for all versions that the node had a part in, as docs/privacy.md explains it.
    """
    folder = _folder(config, data_dir)
    report = next((report for report in _reports(folder) if report.node == node), None)
    if report is None:
        fail(f"the coordinator has not heard of {node}; `alignfed nodes list` names all", FAILED)
    refused, (delta, bound) = _refused(folder, node), _bound(report, delta, config)
    said = _said(node, config, data_dir)
    if as_json:
        latest, privacy = [vars(update) for update in refused], {"epsilon": bound, "delta": delta}
        words = {"latest_refused": latest, "says": None if said is None else said.model_dump(mode="json")}
        print(json.dumps({**report.model_dump(mode="json"), **privacy, **words}, indent=2))
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.refusals.items()) or "none"
    print(f"node        {report.node}: {_state(report)}")
    print(f"accepted    {report.participation} updates, {report.waiting} of them wait for a version")
    print(f"refused     {kinds} ({report.refused_share:.0%} of all)")
    print(f"agreement   {_agreement(report)}, over {report.compared} updates")
    print(f"privacy     {_promise(bound, delta)}")
    if report.norm is not None:
        print(f"latest      norm {report.norm:.3g}, moves products by up to {report.reach:.3g}")
    if report.overclaimed:
        print(f"claims      {report.overclaimed} updates claimed more participation than is counted here")
    for line in _words(said):
        print(line)
    if refused:
        rows = [[u.update_id, str(u.base_version), u.status, u.reason or ""] for u in refused]
        print_table(["refused", "base version", "status", "reason"], rows)


@app.command(epilog=ending('alignfed nodes quarantine kitchen --reason "sends noise"', FAILURE))
def quarantine(
    node: Node,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; the node is told.")] = "the operator shut it out",
    wait: Wait = 10,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Take nothing from a node any more.

    A running coordinator obeys within a second, and its answer is waited for; another one does when it starts. What is
    in published versions stays there: `alignfed replay --without NODE` shows the versions as they would be without it.
    """
    from coordinator.operations.orders import Quarantine

    _give(Quarantine(node=node, reason=reason), wait, config, data_dir, as_json)


@app.command(epilog=ending("alignfed nodes forgive kitchen", FAILURE))
def forgive(
    node: Node, wait: Wait = 10, config: Config = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """End a node's quarantine, and forget what speaks against it: its refusals and how its updates agreed."""
    from coordinator.operations.orders import Forgive

    _give(Forgive(node=node), wait, config, data_dir, as_json)


def _give(
    order: "Forgive | Quarantine", wait: float, config: Path | None, data_dir: Path | None, as_json: bool
) -> None:
    from coordinator.operations.order_file import answer_of, give

    folder = _folder(config, data_dir)
    number = give(folder, order)
    answer = answer_of(folder, number, wait)
    if as_json:
        said = None if answer is None else answer.model_dump(mode="json")
        print(json.dumps({"order": number, **order.model_dump(mode="json"), "answer": said}, indent=2))
    if answer is None:
        note(f"order {number} is given: {order.kind} {order.node}; no answer in {wait:g} s: a coordinator of {folder} "
             "obeys as soon as it runs")  # fmt: skip
    elif answer.refused is not None:
        fail(answer.refused, FAILED)
    else:
        note(f"order {number} is obeyed: {order.kind} {order.node}")


def _folder(config: Path | None, data_dir: Path | None) -> Path:
    folder = data_dir or configuration(config).coordinator.data_dir
    if not (folder / "journal.db").exists():
        fail(f"there is no coordinator's journal in {folder}; name the coordinator's folder by --data-dir", FAILED)
    return folder


def _reports(folder: Path) -> "list[NodeReport]":
    from coordinator.journal import read_nodes

    return read_nodes(folder / "journal.db")


def _refused(folder: Path, node: str) -> "list[UpdateRow]":
    from coordinator.journal import read_updates

    updates = read_updates(folder / "journal.db")
    return [u for u in updates if u.node == node and u.status in ("rejected", "stale")][-MOST_SHOWN:]


def _said(node: str, config: Path | None, data_dir: Path | None) -> "NodeStatus | None":
    """What the node says of itself; None where its coordinator cannot be asked."""
    settings = configuration(config).coordinator
    if data_dir is not None or settings.http is None:
        return None
    try:
        return shown_at(settings.http).node(node)
    except NoAnswer:
        return None


def _words(said: "NodeStatus | None") -> list[str]:
    """The lines of what a node says of itself."""
    if said is None or said.liveness == "unknown":
        return []
    losses = [f"{told.loss:.3f} on {told.examples} examples with version {told.version}, {WORDS[use]}"
              for use, told in said.held_out.items()]  # fmt: skip
    serves = "-" if said.serves is None else "no" if not said.serves else f"version {said.serving}"
    return [
        f"serves      {serves}",
        f"trains      {training(said)}, at rank {said.rank}",
        f"only with   {said.limits or 'nothing in particular'}",
        f"can send    {', '.join(said.codecs) or '-'}",
        f"held out    {'; '.join(losses) or '-'}",
    ]


def _bound(report: "NodeReport", delta: float | None, config: Path | None) -> tuple[float, float | None]:
    """Delta, and epsilon at it; none where nothing is promised to the node."""
    from coordinator.privacy.accounting import AccountantMissing, epsilon

    if delta is None:
        terms = configuration(config).coordinator.privacy
        delta = terms.delta if terms is not None else USUAL_DELTA
    if report.privacy_loss is None:
        return delta, None
    try:
        return delta, epsilon(report.privacy_loss, delta)
    except AccountantMissing as why:
        fail(str(why), FAILED)


def _promise(bound: float | None, delta: float) -> str:
    if bound is None:
        return "none: versions that it had a part in were made without noise"
    return f"epsilon {bound:.3g} at delta {delta:g}"


def _agreement(report: "NodeReport") -> str:
    return "-" if report.agreement is None else f"{report.agreement:+.2f}"


def _state(report: "NodeReport") -> str:
    """A node's state in words."""
    if report.quarantine is not None:
        return f"quarantined: {report.quarantine}"
    return f"alarm: {report.last_refusal}" if report.alarm else "well"
