"""What a stack of containers starts from: the broker's configuration, the coordinator's settings, and nodes to be.

| below the folder | |
|---|---|
| keys/ | what `alignfed keys` makes: the broker's configuration, too |
| keys/broker/observer/ | the observer's certificate, for the broker's health check |
| coordinator/alignfed.toml, coordinator/calibration.jsonl | the coordinator's settings and its own commands |
| nodes/node-1/alignfed.toml, nodes/node-1/data.jsonl ... | one identity each, with private commands |
| nodes/node-1/keys/ | its bundle |

What is there already stays as it is, for it may be an owner's own by now. Where the broker is, and which federation
this is, the containers' environment says.
"""

import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from base_model.examples import Example, save_examples
from broker.access import COORDINATOR, OBSERVER
from broker.federation_keys import enrol, init
from broker.settings import TLS_PORT
from examples.smart_home.commands import calibration_examples, make_homes, private_examples
from examples.smart_home.recipe import RECIPE
from examples.smart_home.workplace import write_sections

BROKER_HOSTS = ("broker", "localhost", "127.0.0.1")
DAYS = 730
SETTINGS = "alignfed.toml"


def make_stack(folder: Path, federation: str, nodes: int, seed: int) -> None:
    """Write what is missing for so many nodes."""
    keys = (folder / "keys").resolve()
    init(keys, federation, BROKER_HOSTS, DAYS, TLS_PORT)
    (keys / "broker" / "data").mkdir(exist_ok=True)
    shutil.copytree(keys / OBSERVER, keys / "broker" / OBSERVER, dirs_exist_ok=True)
    homes = [private_examples(home, RECIPE.private_examples) for home in make_homes(nodes, seed)]
    for number, examples in enumerate(homes, start=1):
        node = folder / "nodes" / f"node-{number}"
        shutil.copytree(enrol(keys, node.name, DAYS), node / "keys", dirs_exist_ok=True)
        if not (node / "data.jsonl").exists():
            save_examples(examples, node / "data.jsonl")
        if not (node / SETTINGS).exists():
            own = {"security": {"keys": str(node.resolve() / "keys")}, "edge": _edge(node.resolve())}
            write_sections(node / SETTINGS, federation, own)
    seen = {example for home in homes for example in home}
    _make_coordinator(folder / "coordinator", keys / COORDINATOR, federation, seed, seen)


def _make_coordinator(folder: Path, keys: Path, federation: str, seed: int, seen: set[Example]) -> None:
    calibration = folder / "calibration.jsonl"
    if not calibration.exists():
        wanted = RECIPE.anchor_examples + RECIPE.gate_examples
        save_examples(calibration_examples(wanted, seed, seen), calibration)
    if not (folder / SETTINGS).exists():
        own = {"security": {"keys": str(keys)}, "coordinator": _coordinator(folder.resolve(), seed)}
        write_sections(folder / SETTINGS, federation, own)


# only what differs from the defaults: the file outlives this version of the program


def _coordinator(folder: Path, seed: int) -> dict[str, Any]:
    calibration = {
        "data": str(folder / "calibration.jsonl"),
        "anchor_examples": RECIPE.anchor_examples,
        "gate_examples": RECIPE.gate_examples,
        "training": _changed(RECIPE.training),
    }
    strategy = {"name": RECIPE.strategy.name, **_changed(RECIPE.strategy)}
    lora = _changed(RECIPE.lora)
    place = {"data_dir": str(folder / "state"), "seed": seed}
    return {**place, "lora": lora, "strategy": strategy, "calibration": calibration}


def _edge(node: Path) -> dict[str, Any]:
    place = {"node": node.name, "data": str(node / "data.jsonl"), "data_dir": str(node / "state")}
    return {**place, "codec": RECIPE.codec, "training": _changed(RECIPE.training)}


def _changed(settings: BaseModel) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude_defaults=True)
