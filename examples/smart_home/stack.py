"""What a stack of containers starts from: the broker's configuration, the coordinator's settings, and nodes to be.

| below the folder | |
|---|---|
| broker/mosquitto.conf | made anew each time |
| coordinator/alignfed.toml, coordinator/calibration.jsonl | the coordinator's settings and its own commands |
| nodes/node-1/alignfed.toml, nodes/node-1/data.jsonl ... | one identity each, with private commands |

What is there already stays as it is, for it may be an owner's own by now. Where the broker is, and which federation
this is, the containers' environment says.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from base_model.examples import Example, save_examples
from broker.config import private_network_config
from examples.smart_home.commands import calibration_examples, make_homes, private_examples
from examples.smart_home.recipe import RECIPE
from examples.smart_home.workplace import write_sections

BROKER_PORT = 1883
SETTINGS = "alignfed.toml"


def make_stack(folder: Path, federation: str, messages: Path, nodes: int, seed: int) -> None:
    """Write what is missing for so many nodes; the broker is to keep its messages in the folder `messages`."""
    (folder / "broker").mkdir(parents=True, exist_ok=True)
    (folder / "broker" / "mosquitto.conf").write_text(private_network_config(BROKER_PORT, messages), encoding="utf-8")
    homes = [private_examples(home, RECIPE.private_examples) for home in make_homes(nodes, seed)]
    for number, examples in enumerate(homes, start=1):
        node = folder / "nodes" / f"node-{number}"
        if not (node / "data.jsonl").exists():
            save_examples(examples, node / "data.jsonl")
        if not (node / SETTINGS).exists():
            write_sections(node / SETTINGS, federation, {"edge": _edge(node.resolve())})
    _make_coordinator(folder / "coordinator", federation, seed, {example for home in homes for example in home})


def _make_coordinator(folder: Path, federation: str, seed: int, seen: set[Example]) -> None:
    calibration = folder / "calibration.jsonl"
    if not calibration.exists():
        wanted = RECIPE.anchor_examples + RECIPE.gate_examples
        save_examples(calibration_examples(wanted, seed, seen), calibration)
    if not (folder / SETTINGS).exists():
        write_sections(folder / SETTINGS, federation, {"coordinator": _coordinator(folder.resolve(), seed)})


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
