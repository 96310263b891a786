"""`alignfed keys`: a federation's certificates and signing keys."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.console import FAILURE, USAGE, Config, Federation, Json, configuration, ending, fail, note, print_table

if TYPE_CHECKING:
    from broker.federation_keys import Keys

Dir = Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where the federation's keys are.")]
Days = Annotated[int, typer.Option(min=1, max=3650, help="How long what is issued now is valid.")]
Node = Annotated[str, typer.Argument(metavar="NODE", help="The node's name.")]
Member = Annotated[str, typer.Argument(metavar="NODE", help="The node's name, or home-assistant.")]
KEYS = Path("alignfed-keys")

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make, enrol and revoke a federation's keys.")


@app.command(epilog=ending("alignfed keys init --federation plant --host gateway.local", FAILURE))
def init(
    hosts: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="NAME", help="Name or address of the broker; may be repeated."),
    ] = None,
    folder: Dir = KEYS,
    days: Days = 730,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The broker's port.")] = 8883,
    broker_at: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the broker will find DIR/broker.  [default: there]")
    ] = None,
    config: Config = None,
    federation: Federation = None,
    as_json: Json = False,
) -> None:
    """Make a federation's keys.

    A certificate authority, an offline root, the coordinator's key, and the broker's certificate with its configuration
    and access rules. Run again, it makes what is missing and adds hosts to the broker's certificate.
    """
    from broker.federation_keys import init

    named = configuration(config, federation).federation
    local = ["localhost", "127.0.0.1"]
    made = init(folder, named, [*local, *(hosts or [])], days, port, broker_at)
    _report(made, folder, as_json)
    note(
        f"The root's key is in {folder / 'offline'}. WHOEVER HAS IT CAN MAKE EVERY NODE TAKE ANY ADAPTER.",
        "Move that folder to a medium that is connected to nothing, and keep a copy; `keys rotate` asks for it again.",
        f"Next: `alignfed keys enrol NODE`, and run mosquitto with {folder / 'broker' / 'mosquitto.conf'}.",
    )


@app.command(epilog=ending("alignfed keys enrol kitchen", FAILURE))
def enrol(node: Node, folder: Dir = KEYS, days: Days = 730, as_json: Json = False) -> None:
    """Make a node's bundle.

    The folder to copy to the node, which names it by security.keys. A running coordinator takes the node within a
    second. Run again, it renews a certificate that is about to run out; keys stay.
    """
    from pydantic import TypeAdapter, ValidationError

    from broker.federation_keys import enrol
    from schemas.topics import Name

    try:
        name = TypeAdapter(Name).validate_python(node)
        bundle = enrol(folder, name, days)
    except ValidationError:
        fail(f"{node} is no name for a node: letters, digits, '_', '.', '-'; at most 64", USAGE)
    if as_json:
        print(json.dumps({"node": node, "bundle": str(bundle)}, indent=2))
        return
    print(f"{node} is enrolled; its bundle is {bundle}")
    note(f"Copy the folder to the node, and nothing else of {folder}. Set there: security.keys = <the folder>")


@app.command(epilog=ending("alignfed keys home-assistant --config alignfed.toml", FAILURE))
def home_assistant(folder: Dir = KEYS, days: Days = 730, config: Config = None, as_json: Json = False) -> None:
    """Let Home Assistant read what it is told of nodes.

    Makes its bundle, and access rules by which the coordinator publishes discovery messages below the prefix in
    [coordinator.home_assistant], and Home Assistant reads them and what they refer to. Nothing else is allowed to it.
    Run again, it renews a certificate that is about to run out.
    """
    from broker.federation_keys import let_in_home_assistant
    from coordinator.settings import HomeAssistantSettings

    prefix = (configuration(config).coordinator.home_assistant or HomeAssistantSettings()).prefix
    bundle = let_in_home_assistant(folder, prefix, days)
    if as_json:
        print(json.dumps({"discovery_prefix": prefix, "bundle": str(bundle)}, indent=2))
        return
    print(f"Home Assistant is let in, for devices below {prefix}/; its bundle is {bundle}")
    note(
        "Give it the files ca.crt, client.crt and client.key of that folder, in the settings of its MQTT integration.",
        f"Send mosquitto a SIGHUP, so that it reads {folder / 'broker' / 'acl'} again.",
    )


@app.command(epilog=ending("alignfed keys revoke kitchen", FAILURE))
def revoke(node: Member, folder: Dir = KEYS, as_json: Json = False) -> None:
    """Put a node's keys out of force, or Home Assistant's.

    A running coordinator takes nothing of it from then on, and drops what waits. For the broker send mosquitto a
    SIGHUP: it then denies the node every topic; a restart refuses its certificate too.
    """
    from broker.federation_keys import look, revoke

    revoke(folder, node)
    ring = look(folder).ring_number
    if as_json:
        print(json.dumps({"node": node, "revoked": True, "ring": ring}, indent=2))
        return
    print(f"{node} is revoked (key ring {ring})")
    note(f"Send mosquitto a SIGHUP, so that it reads {folder / 'broker' / 'acl'} again.")


@app.command(epilog=ending("alignfed keys rotate", FAILURE))
def rotate(folder: Dir = KEYS, days: Days = 730, as_json: Json = False) -> None:
    """Give the coordinator a new signing key.

    Needs DIR/offline. A running coordinator takes it up within a second; nodes that have heard of it take nothing that
    the old key signs.
    """
    from broker.federation_keys import rotate

    _report(rotate(folder, days), folder, as_json)


@app.command("list", epilog=ending("alignfed keys list --json", FAILURE))
def list_keys(folder: Dir = KEYS, as_json: Json = False) -> None:
    """Show what keys there are."""
    from broker.federation_keys import look

    _report(look(folder), folder, as_json)


def _report(keys: "Keys", folder: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_as_json(keys), indent=2))
        return
    print(f"federation   {keys.federation}, keys in {folder}")
    print(f"root         {keys.root}")
    print(f"coordinator  key {keys.coordinator_key_id}, certificate {keys.certificate_number}")
    print(f"             until {keys.certificate_expires:%Y-%m-%d}; renew it by `alignfed keys rotate`")
    print(f"broker       {', '.join(keys.hosts)}")
    if keys.discovery_prefix is not None:
        print(f"discovery    below {keys.discovery_prefix}/, for Home Assistant")
    rows = [
        [
            m.name,
            m.key_id,
            "revoked" if m.revoked else "",
            f"{m.certificate_expires:%Y-%m-%d}" if m.certificate_expires else "",
        ]
        for m in keys.nodes
    ]
    if rows:
        print_table(["node", "key", "", "certificate until"], rows)
    if keys.root_is_here:
        note(f"The root's key still lies in {folder / 'offline'}: move it to where nothing is connected.")


def _as_json(keys: "Keys") -> dict[str, Any]:
    nodes = [
        {**vars(m), "certificate_expires": m.certificate_expires.isoformat() if m.certificate_expires else None}
        for m in keys.nodes
    ]
    return {**vars(keys), "certificate_expires": keys.certificate_expires.isoformat(), "nodes": nodes}
