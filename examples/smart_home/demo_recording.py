"""Make the recording that the tests replay: the demo with a small adapter, and an operator who steps in.

    python -m examples.smart_home.demo_recording tests/golden/demo.rec

Four homes train the real base model over a real broker, with keys. One of them sends its deltas as float16, too large
for one message. One is put into quarantine and forgiven, so that updates of it are refused. What nodes serve goes back
to an earlier version once. The recording is the coordinator's journal, cut at its end.
"""

import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path

from rich.console import Console

from base_model.settings import BaseModelSettings, TrainingConfig
from broker.embedded import EmbeddedBroker
from broker.settings import BrokerSettings
from coordinator.journal import read_updates, read_versions
from coordinator.operations.order_file import answer_of, give
from coordinator.operations.orders import Forgive, Order, Quarantine, RollBack
from coordinator.registry import Registry
from coordinator.replay.recorded import Cut, cut
from coordinator.strategies import AlignFed
from edge_node.data.settings import LocalDataSettings
from edge_node.settings import EdgeSettings
from examples.smart_home.federation import coordinator_settings, environment, program, sections
from examples.smart_home.fleet import Fleet
from examples.smart_home.plan import Plan, make_plan
from examples.smart_home.recipe import Recipe
from examples.smart_home.stages import line
from examples.smart_home.steps import fetch_base_model, make_data, make_keys
from examples.smart_home.workplace import FEDERATION, Workplace, make_workplace, write_config
from schemas.adapter import LoraConfig

RECIPE = Recipe(
    versions=6,
    lora=LoraConfig(rank=2, alpha=4, target_modules=("q_proj", "v_proj"), last_layers=20),
    strategy=AlignFed(buffer_size=2),
    training=TrainingConfig(steps=4, batch_size=2, learning_rate=2e-3),
    private_examples=60,
    anchor_examples=8,
    gate_examples=8,
    held_out_examples=8,
)
NODES = 4
IN_CHUNKS = "home-3"  # sends float16
SHUT_OUT = "home-2"
LARGEST = 2_000_000  # bytes that a recording in the repository may have
PATIENCE_S = 1200.0
LOOK_EVERY_S = 0.5


def make_recording(out: Path, runs: Path) -> None:
    """Run the federation below `runs` and write its recording. Raises TimeoutError when it does not get on."""
    console = Console()
    plan = make_plan(RECIPE, NODES, None, 0, None)
    place = make_workplace(runs, datetime.now())
    fetch_base_model(BaseModelSettings(), console)
    make_data(plan, place, console)
    keys = make_keys(plan, place, console)
    with EmbeddedBroker("auto", place.broker, keys=keys) as broker, Fleet(environment()) as fleet:
        _write_configs(plan, place, broker.settings.port, keys)
        for name in ("coordinator", *(node.name for node in plan.nodes)):
            fleet.start(program(place, name))
        _operate(place, fleet, console)
    cut(place.journal, out, Cut())
    with closing(sqlite3.connect(out)) as recording:
        recording.execute("PRAGMA journal_mode = DELETE")  # one file, which can be read where nothing can be written
    line(console, "recording", f"{out}, {out.stat().st_size} bytes")
    if out.stat().st_size > LARGEST:
        raise ValueError(f"{out} is larger than {LARGEST} bytes: make the adapter smaller")


def _write_configs(plan: Plan, place: Workplace, port: int, keys: Path | None) -> None:
    shared = {"base_model": BaseModelSettings(), "broker": BrokerSettings(port=port)}
    own = {"coordinator": coordinator_settings(plan, place)}
    write_config(place.config("coordinator"), FEDERATION, sections(shared | own, keys, "coordinator"))
    for node in plan.nodes:
        edge = EdgeSettings(
            node=node.name,
            data=place.data(node.name),
            data_dir=place.node(node.name),
            codec="fp16" if node.name == IN_CHUNKS else "kltp",
            slowdown=node.slowdown,
            training=plan.recipe.training,
            local_data=LocalDataSettings(held_out=0),
        )
        write_config(place.config(node.name), FEDERATION, sections(shared | {"edge": edge}, keys, f"nodes/{node.name}"))


def _operate(place: Workplace, fleet: Fleet, console: Console) -> None:
    """Step in where the story says so, until the last version is out and decided on."""
    registry = Registry(place.adapters)

    def until(what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            fleet.tend()
            if time.monotonic() > deadline:
                raise TimeoutError(f"waiting for {what}; the logs are in {place.log('coordinator').parent}")
            time.sleep(LOOK_EVERY_S)
        line(console, "", what)

    def order(given: Order) -> None:
        number = give(place.coordinator, given)
        until(f"{given.kind} is obeyed", lambda: answer_of(place.coordinator, number) is not None)

    def is_out(version: int) -> bool:
        return place.journal.exists() and len(read_versions(place.journal)) > version

    def is_refused() -> bool:
        return any(u.node == SHUT_OUT and u.status == "rejected" for u in read_updates(place.journal))

    until("version 2 is out", lambda: is_out(2))
    order(Quarantine(node=SHUT_OUT, reason="its lamp flickers"))
    until(f"an update of {SHUT_OUT} is refused", is_refused)
    order(Forgive(node=SHUT_OUT))
    until("version 4 is out", lambda: is_out(4))
    order(RollBack(version=1))
    until("version 6 is out", lambda: is_out(RECIPE.versions))
    until("it is decided whether nodes serve it", lambda: registry.has_decided(RECIPE.versions))


if __name__ == "__main__":
    make_recording(Path(sys.argv[1]), Path("runs"))
