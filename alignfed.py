"""The one console command: its front door, the demo and the doctor. Nobody imports it.

Every command imports what it needs when it runs, so that `alignfed --help` answers at once.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from commands import (
    adapters,
    chat,
    codec,
    deploy,
    edge,
    experiments,
    keys,
    nodes,
    record,
    recording,
    replay,
    services,
    status,
)
from commands.console import (
    FAILED,
    FAILURE,
    USAGE,
    Broker,
    Config,
    Federation,
    Json,
    ending,
    fail,
)
from commands.faults import DEBUG_VARIABLE, said_in_words

DemoStrategy = Literal[
    "alignfed", "fedbuff", "fedasync", "fedavg", "fedex", "flora", "ffa_lora", "calibration_only", "alignfed_literal"
]


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=ending("alignfed demo", FAILURE),
)


def main() -> None:
    """Run the command line; every error is a sentence on standard error, with --debug also a traceback."""
    with said_in_words():
        app(prog_name="alignfed")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"alignfed {version('alignfed')}")
        raise typer.Exit


@app.callback()
def _alignfed(
    debug: Annotated[bool, typer.Option("--debug", help=f"Show tracebacks; also by {DEBUG_VARIABLE}=1.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Federated LoRA fine-tuning over MQTT: nodes learn from private data and never wait for each other."""
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


@app.command(epilog=ending("alignfed demo --nodes 6 --report report.json", FAILURE, "130  interrupted"))
def demo(
    nodes: Annotated[int, typer.Option(min=2, help="Edge nodes.")] = 4,
    versions: Annotated[
        int | None, typer.Option(min=1, help="Versions to make.  [default: as many as use the recipe's updates]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of data, speeds and the first adapter.")] = 0,
    strategy: Annotated[DemoStrategy, typer.Option(help="When to aggregate and how.")] = "alignfed",
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report here too, as JSON.")] = None,
    http: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Show the run there, in a browser.  [default: a free port, printed]"),
    ] = None,
) -> None:
    """Run the whole system on this machine.

    A broker, a coordinator and edge nodes of unequal speed teach SmolLM2 smart-home commands, each node from data of
    its own. Ends with what was learned, on commands that no node has seen.
    """
    from pydantic import ValidationError

    from coordinator.settings import CoordinatorSettings
    from examples.smart_home.demo import DemoOptions, run_demo
    from examples.smart_home.plan import ImpossiblePlan

    try:
        CoordinatorSettings(http=http)
    except ValidationError:
        raise typer.BadParameter(f"{http} is not HOST:PORT, such as 127.0.0.1:9100", param_hint="--http") from None
    options = DemoOptions(nodes=nodes, versions=versions, seed=seed, strategy=strategy, report=report, http=http)
    try:
        raise typer.Exit(run_demo(options))
    except ImpossiblePlan as error:
        fail(str(error), USAGE)


@app.command(
    epilog=ending("alignfed doctor --broker gateway.local:1883", "1  a check failed, of the settings or another")
)
def doctor(
    config: Config = None,
    node: edge.Node = None,
    data: edge.Data = None,
    broker: Broker = None,
    federation: Federation = None,
    as_json: Json = False,
) -> None:
    """Check this machine, its keys and the broker.

    Tries what the broker must be able to do, and looks at settings, keys, the federation on the broker, clock, disk,
    memory, folders and libraries. Fetches the base model if it is not here yet. Says what to do about whatever is
    wrong.
    """
    from doctor.examination import examine

    checks = []
    for check in examine(config, federation, broker, node, data):
        checks.append(check)
        if not as_json:
            advice = f"\n      {check.advice}" if check.advice else ""
            print(f"{check.status:<4}  {check.name}: {check.found}{advice}", flush=True)
    if as_json:
        print(json.dumps([check._asdict() for check in checks], indent=2))
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(FAILED)


for group in (services, status, chat, experiments, record, replay, deploy):
    app.add_typer(group.app)
app.add_typer(adapters.app, name="adapters", epilog=ending("alignfed adapters list", FAILURE))
app.add_typer(edge.app, name="edge", epilog=edge.EPILOG)
app.add_typer(codec.app, name="codec", epilog=ending("alignfed codec list", FAILURE))
app.add_typer(keys.app, name="keys", epilog=ending("alignfed keys list", FAILURE))
app.add_typer(nodes.app, name="nodes", epilog=ending("alignfed nodes list", FAILURE))
app.add_typer(recording.app, name="recording", epilog=ending("alignfed recording info incident.rec", FAILURE))

if __name__ == "__main__":
    main()
