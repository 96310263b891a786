"""What several commands share: their common options, help, settings, tables, and how they end.

Imports of what a command needs stay inside it, so that `alignfed --help` answers at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from commands.faults import FAILED as FAILED
from commands.faults import fail as fail
from commands.faults import note as note

if TYPE_CHECKING:
    from configuration import Configuration

USAGE, UNANSWERED = 2, 3
FAILURE = "1  failed; the last line says why"
UNCUT = 1_000  # columns

Config = Annotated[Path | None, typer.Option(metavar="FILE", help="Settings file.  [default: alignfed.toml, if there]")]
Broker = Annotated[
    str | None, typer.Option("--broker", metavar="HOST[:PORT]", help="Broker to connect to; port 1883, 8883 with TLS.")
]
Federation = Annotated[str | None, typer.Option(metavar="NAME", help="Federation to take part in.")]
DataDir = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where this process keeps its files.")]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], typer.Option(help="How much to log.")]
Wait = Annotated[float, typer.Option(min=0, max=3600, help="Seconds to wait for the coordinator.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def ending(example: str, *codes: str) -> str:
    """What follows the options in a command's help."""
    every = sorted(("0  done", "2  wrong usage or settings", *codes), key=lambda code: int(code.split()[0]))
    return "\b\nExample:\n  " + example + "\n\n\b\nExit codes:\n  " + "\n  ".join(every)


def configuration(
    file: Path | None,
    federation: str | None = None,
    broker: str | None = None,
    option: str = "--broker",
    **sections: dict[str, Any],
) -> "Configuration":
    """The settings; what is wrong with them ends the process with a sentence. `option` said where the broker is."""
    from configuration import ConfigurationError, from_flags, load

    try:
        return load(file, from_flags(federation, broker, option, **sections))
    except ConfigurationError as error:
        fail(str(error), USAGE)


def with_certificate(settings: "Configuration") -> "Configuration":
    """The settings with the bundle's certificate for the broker, where keys are set; for who only connects."""
    if settings.security.keys is None:
        return settings
    from broker.bundle import read_bundle

    broker = read_bundle(settings.security.keys).reaches(settings.broker)
    return settings.model_copy(update={"broker": broker})


def log(level: str, **always: str) -> None:
    """Log from this level on; what is in `always` is said in every line that programs read."""
    import logs

    logs.set_up(level, **always)


def print_table(header: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in header:
        table.add_column(name, no_wrap=name not in ("nodes", "state", "reason"))
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console.width = UNCUT  # for files and other programs
    console.print(table)
