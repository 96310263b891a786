"""`alignfed broker`, `coordinator` and `edge`: the long-running services."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from commands.console import (
    FAILURE,
    USAGE,
    Broker,
    Config,
    DataDir,
    Federation,
    LogLevel,
    configuration,
    ending,
    fail,
    log,
)

REFUSED = "3  the federation cannot take this node, for instance for its base model"

app = typer.Typer()


@app.command(epilog=ending("alignfed broker --port 1884", "1  the broker could not start, or ended by itself"))
def broker(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Loopback port; 0 takes a free one.")] = 1883,
    data_dir: Annotated[Path, typer.Option(metavar="FOLDER", help="Where mosquitto keeps messages.")] = Path(
        "alignfed-data/broker"
    ),
    kind: Annotated[
        Literal["auto", "mosquitto", "iotcore"], typer.Option(help="auto: mosquitto where it is installed.")
    ] = "auto",
) -> None:
    """Run a broker for this machine.

    It listens on loopback only, and runs until Ctrl-C or SIGTERM.
    """
    from broker import service

    raise typer.Exit(service.run(kind, data_dir, port))


@app.command(epilog=ending("alignfed coordinator --config alignfed.toml", FAILURE))
def coordinator(
    config: Config = None,
    broker: Broker = None,
    federation: Federation = None,
    data_dir: DataDir = None,
    log_level: LogLevel = "info",
) -> None:
    """Run the coordinator of a federation.

    It runs until Ctrl-C or SIGTERM. Started again with the same folder, it continues the federation.
    """
    settings = configuration(config, federation, broker, coordinator={"data_dir": data_dir})
    log(log_level)
    from coordinator import service

    raise typer.Exit(service.run(settings.federation, settings.base_model, settings.broker, settings.coordinator))


@app.command(epilog=ending("alignfed edge --node kitchen --data kitchen.jsonl", FAILURE, REFUSED))
def edge(
    config: Config = None,
    node: Annotated[str | None, typer.Option(metavar="NAME", help="This node's name.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private examples, JSON lines.")] = None,
    broker: Broker = None,
    federation: Federation = None,
    http: Annotated[
        str | None, typer.Option("--http", metavar="HOST:PORT", help="Answer there, in OpenAI's shape.")
    ] = None,
    data_dir: DataDir = None,
    log_level: LogLevel = "info",
) -> None:
    """Run an edge node on its private examples.

    It runs until Ctrl-C or SIGTERM. A broker that is away is waited for; updates wait on disk meanwhile. With --http it
    also answers questions, with the newest adapter that the federation releases.
    """
    serving = {"http": http} if http is not None else None
    node_settings = {"node": node, "data": data, "data_dir": data_dir, "serving": serving}
    settings = configuration(config, federation, broker, edge=node_settings)
    if settings.edge is None:
        fail("no node is configured: pass --node and --data, or set them in [edge] of the settings file", USAGE)
    log(log_level)
    from edge_node import service

    service.run(settings.federation, settings.base_model, settings.broker, settings.edge)
