"""`alignfed edge`: a node as a service, and what it has to learn from."""

import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.console import (
    FAILURE,
    USAGE,
    Broker,
    Config,
    DataDir,
    Federation,
    Json,
    LogLevel,
    configuration,
    ending,
    fail,
    log,
    note,
)

if TYPE_CHECKING:
    from base_model.examples import Example
    from base_model.settings import BaseModelSettings
    from edge_node.data.example_store import Summary
    from edge_node.data.quality import QualityWarning
    from edge_node.settings import EdgeSettings

REFUSED = "3  the federation cannot take this node, for instance for its base model"
EPILOG = ending("alignfed edge --node kitchen --data kitchen.jsonl", FAILURE, REFUSED)
INSTALLED = Path("/etc/alignfed/alignfed.toml")
NO_NODE = "no node is configured: pass --node and --data, or set them in [edge] of the settings file"

Data = Annotated[Path | None, typer.Option(metavar="PATH", help="Its private examples: JSON lines, or a folder.")]
Node = Annotated[str | None, typer.Option(metavar="NAME", help="This node's name.")]

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def edge(
    context: typer.Context,
    config: Config = None,
    node: Node = None,
    data: Data = None,
    broker: Broker = None,
    federation: Federation = None,
    http: Annotated[
        str | None, typer.Option("--http", metavar="HOST:PORT", help="Answer there, in OpenAI's shape.")
    ] = None,
    data_dir: DataDir = None,
    identities: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Be the first free node of it, for replicas of a container.")
    ] = None,
    log_level: LogLevel = "info",
) -> None:
    """Run an edge node on its private examples.

    It runs until Ctrl-C or SIGTERM. A broker that is away is waited for; updates wait on disk meanwhile. With --http it
    also answers questions, with the newest adapter that the federation releases, and takes examples.
    """
    if context.invoked_subcommand is not None:
        if any(value is not None for value in (config, node, data, broker, federation, http, data_dir, identities)):
            fail(f"put the options behind `alignfed edge {context.invoked_subcommand}`", USAGE)
        return
    log(log_level)
    locks = list[int]()
    if identities is not None:
        from edge_node.identities import claim

        identity = claim(identities, platform.node())
        config = identity.settings
        locks.append(identity.lock)
    serving = {"http": http} if http is not None else None
    node_settings = {"node": node, "data": data, "data_dir": data_dir, "serving": serving}
    settings = configuration(config, federation, broker, edge=node_settings)
    if settings.edge is None:
        fail(NO_NODE, USAGE)
    from commands.node_process import NodeOrder, become

    become(
        NodeOrder(
            federation=settings.federation,
            base_model=settings.base_model,
            broker=settings.broker,
            edge=settings.edge,
            security=settings.security,
            log_level=log_level,
        ),
        *locks,
    )


@app.command("data", epilog=ending("alignfed edge data --config kitchen.toml", FAILURE))
def show_data(
    config: Config = None,
    node: Node = None,
    data: Data = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show what a node has to learn from.

    Counts its private examples and the lines that are none, with the reason, and says what is doubtful about them. No
    text of an example is shown. The node may run meanwhile; nothing is changed.
    """
    settings = configuration(config, edge={"node": node, "data": data, "data_dir": data_dir})
    if settings.edge is None:
        fail(NO_NODE, USAGE)
    from edge_node.data.local_data import LocalData

    local = LocalData.look(settings.edge.data, settings.edge.data_dir, settings.edge.local_data)
    local.refresh()
    summary = local.summary()
    warnings = _warnings(settings.edge, settings.base_model, summary, local.training())
    if as_json:
        print(json.dumps(_as_json(settings.edge, summary, warnings), indent=2))
        return
    print(*_facts(settings.edge, summary), sep="\n")
    for warning in warnings:
        print(f"\nwarning     {warning.found}\n            {warning.advice}")


@app.command(epilog=ending("alignfed edge install --dry-run", FAILURE))
def install(
    config: Annotated[Path, typer.Option(metavar="FILE", help="The node's settings file.")] = INSTALLED,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Where units are.")] = Path("/etc/systemd/system"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the unit, write nothing.")] = False,
) -> None:
    """Make the node a service of this machine.

    Writes a systemd unit that may do little else than run the node, and says how to start it. Keys that only root may
    read are handed over by systemd.
    """
    from edge_node.unit import NAME, STATE, hidden, unit

    python, settings = Path(sys.executable), configuration(config) if config.exists() or not dry_run else None
    keys = settings.security.keys if settings is not None else None
    try:
        text = unit(python, config.absolute(), keys.absolute() if keys is not None else None)
    except ValueError as error:
        fail(str(error), USAGE)
    for path in (python, Path(sys.base_prefix), config.absolute()):
        if (folder := hidden(path)) is not None:
            note(f"alignfed: the service will not see {path}: move it out of {folder}, for instance to /opt or /etc")
    if dry_run:
        print(text, end="")
        return
    if settings is None or settings.edge is None:
        fail(f"{config} configures no node: set node and data in its section [edge]", USAGE)
    (to / NAME).write_text(text, encoding="utf-8")
    print(f"{to / NAME} is written. Its files will be in {STATE}. Start it, now and after every boot:")
    print(f"  systemctl daemon-reload && systemctl enable --now {NAME}")


def _warnings(
    edge: "EdgeSettings", base_model: "BaseModelSettings", summary: "Summary", training: "tuple[Example, ...]"
) -> "tuple[QualityWarning, ...]":
    from edge_node.data.quality import quality
    from edge_node.training.example_tokens import over_the_limits

    found = quality(training, summary.held_out, edge.training.steps * edge.training.batch_size)
    return found + over_the_limits(training, base_model.name, base_model.cache)


def _facts(edge: "EdgeSettings", summary: "Summary") -> list[str]:
    newest = datetime.fromtimestamp(summary.newest_at, UTC).isoformat(" ", "seconds") if summary.newest_at else "none"
    most = edge.local_data.most_bytes
    facts = [
        f"examples    {summary.examples}: {summary.training} to train on, {summary.held_out} held out",
        f"size        {summary.size} bytes of text, at most {most}; {summary.dropped} dropped to make room",
        f"newest      {newest}",
        f"duplicates  {summary.duplicates}",
        f"refused     {sum(tally.lines for tally in summary.refused)} lines",
    ]
    facts += [f"  {t.source}: {t.lines} {t.outcome}, the last in line {t.last}" for t in summary.refused]
    facts += [f"from        {source}: {count}" for source, count in summary.sources.items()]
    return facts


def _as_json(edge: "EdgeSettings", summary: "Summary", warnings: "tuple[QualityWarning, ...]") -> dict[str, Any]:
    return {
        "node": edge.node,
        "examples": summary.examples,
        "training": summary.training,
        "held_out": summary.held_out,
        "size_bytes": summary.size,
        "most_bytes": edge.local_data.most_bytes,
        "dropped": summary.dropped,
        "newest_at": summary.newest_at,
        "duplicates": summary.duplicates,
        "refused": [
            {"source": t.source, "reason": t.outcome, "lines": t.lines, "last_line": t.last} for t in summary.refused
        ],
        "sources": dict(summary.sources),
        "warnings": [vars(warning) for warning in warnings],
    }
