"""`alignfed broker` and `alignfed coordinator`: the long-running services."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from commands.console import (
    FAILURE,
    Broker,
    Config,
    DataDir,
    Federation,
    LogLevel,
    configuration,
    ending,
    log,
)

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
    keys: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Ask for certificates; DIR is what `keys init` made.")
    ] = None,
) -> None:
    """Run a broker for this machine.

    It listens on loopback only, and runs until Ctrl-C or SIGTERM. With --keys a revocation takes effect in a second.
    """
    from broker import service

    raise typer.Exit(service.run(kind, data_dir, port, keys))


@app.command(epilog=ending("alignfed coordinator --config alignfed.toml", FAILURE))
def coordinator(
    config: Config = None,
    broker: Broker = None,
    federation: Federation = None,
    http: Annotated[
        str | None, typer.Option("--http", metavar="HOST:PORT", help="Show there what goes on: page and /metrics.")
    ] = None,
    data_dir: DataDir = None,
    log_level: LogLevel = "info",
) -> None:
    """Run the coordinator of a federation.

    It runs until Ctrl-C or SIGTERM. Started again with the same folder, it continues the federation.
    """
    settings = configuration(config, federation, broker, coordinator={"data_dir": data_dir, "http": http})
    log(log_level)
    from coordinator import process

    raise typer.Exit(
        process.run(settings.federation, settings.base_model, settings.broker, settings.coordinator, settings.security)
    )
