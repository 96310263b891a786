"""A federation on this machine: its processes, started and tended, and what is seen of them at the broker.

It decides nothing about learning; it is a supervisor and a bystander.
"""

import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from pydantic import BaseModel
from rich.console import Console

from base_model.examples import Example
from base_model.settings import BaseModelSettings
from broker.client import Client
from broker.config import LOOPBACK
from broker.embedded import BrokerFailed, EmbeddedBroker
from broker.events import Message
from broker.security import SecuritySettings
from broker.settings import BrokerSettings
from coordinator.settings import CalibrationSettings, CoordinatorSettings
from edge_node.data.settings import LocalDataSettings
from edge_node.settings import EdgeSettings, ServingSettings
from examples.smart_home.fleet import MAX_RESTARTS, Fleet, Program, Restart
from examples.smart_home.fleet_view import OBSERVED, FleetView, first_view, observe
from examples.smart_home.interview import Heard, Interviewer
from examples.smart_home.live import Setting, Show, shown
from examples.smart_home.plan import NodePlan, Plan
from examples.smart_home.workplace import FEDERATION, Workplace, write_config
from schemas.topics import topic_filter

COORDINATOR = "coordinator"
STALLED_AFTER_S = 600.0  # a version takes minutes on a machine that has other things to do
LAST_WORD_S = 30.0  # for the home to take up and use what was released last
_TURN_S = 0.1
_EVENTS_A_TURN = 200


class Stalled(RuntimeError):
    """No new version for a long time; says where to look."""


@dataclass(frozen=True)
class Ran:
    """What was seen from start to end, which processes had to be started again, and what a home answered meanwhile."""

    view: FleetView
    restarts: Mapping[str, int]
    heard: Sequence[Heard]
    unanswered: int


def serving_node(plan: Plan) -> str:
    """The home that answers during the run: the first that is there from the beginning."""
    return next(node.name for node in plan.nodes if node.joins_at is None)


def federate(
    plan: Plan,
    place: Workplace,
    base_model: BaseModelSettings,
    broker: EmbeddedBroker,
    keys: Path | None,
    http: str,
    questions: Sequence[Example],
    console: Console,
) -> Ran:
    """Run the federation until its final version is out, then stop every process. With `keys` each has its bundle.

    The coordinator shows itself at `http`, HOST:PORT. One home answers all the while, and is asked these questions
    again and again.
    Raises BrokerFailed, NetworkThreadDied, ProcessFailed or Stalled; no process is left in any case.
    """
    _write_configs(plan, place, base_model, broker.settings.port, keys, http)
    first = first_view(FEDERATION, plan.recipe.versions, {node.name: node.slowdown for node in plan.nodes})
    setting = Setting(f"{broker.kind} on {broker.settings.address}", plan.recipe.strategy.name, time.time_ns())
    filters = [topic_filter(FEDERATION, kind) for kind in OBSERVED]
    with (
        Fleet(environment()) as fleet,
        Client(broker.settings, f"{FEDERATION}-bystander", subscriptions=filters, clean_start=True) as client,
        shown(console, setting, first) as show,
        Interviewer(broker.settings, FEDERATION, serving_node(plan), questions, plan.recipe.ask_every_s) as interviewer,
    ):
        site = _Site(plan, place, broker, fleet, console)
        try:
            view = _watch(site, client, first, show)
            interviewer.until_version(max(view.served, default=0), LAST_WORD_S)
        except KeyboardInterrupt:
            console.print("stopping the processes; once more to kill them", style="yellow", highlight=False)
            raise
        return Ran(view, dict(site.restarts), *interviewer.result())


@dataclass(frozen=True)
class _Site:
    """What a supervisor looks after."""

    plan: Plan
    place: Workplace
    broker: EmbeddedBroker
    fleet: Fleet
    console: Console
    restarts: Counter[str] = field(default_factory=Counter)


def _watch(site: _Site, client: Client, view: FleetView, show: Show) -> FleetView:
    """Start everybody, look on and tend until the last version is out and it is decided whether nodes serve it."""
    site.fleet.start(program(site.place, COORDINATOR))
    waiting = list(site.plan.nodes)
    progressed_at, head = time.monotonic(), view.head
    while not view.is_final:
        for message in _arrived(client):
            view = observe(view, message)
            show(view, time.time_ns())
        show(view, time.time_ns())
        for node in [node for node in waiting if _may_join(node, view)]:
            site.fleet.start(program(site.place, node.name))
            waiting.remove(node)
        if not view.is_final:  # then the processes may end by themselves
            _tend(site)
        if view.head != head:
            progressed_at, head = time.monotonic(), view.head
        elif time.monotonic() - progressed_at > STALLED_AFTER_S:
            raise Stalled(_stalled(view, site.place))
    return view


def _tend(site: _Site) -> None:
    """Start again what was ended from outside, and say so. Raises ProcessFailed or BrokerFailed."""
    restarts = list(site.fleet.tend())
    if not psutil.pid_exists(site.broker.pid):
        if site.restarts["broker"] == MAX_RESTARTS:
            raise BrokerFailed(f"{site.broker.kind} ended {MAX_RESTARTS + 1} times")
        site.broker.restart()
        restarts.append(Restart("broker", "was ended", site.restarts["broker"] + 1))
    for restart in restarts:
        site.restarts[restart.name] = restart.count
        often = "" if restart.count == 1 else f" ({restart.count} times by now)"
        line = f"{restart.name} {restart.ended}; started it again{often}"
        site.console.print(line, style="yellow", highlight=False, soft_wrap=True)


def _arrived(client: Client) -> Iterator[Message]:
    """Messages that wait now, at most some; every one is acknowledged once the caller is done with it."""
    patience_s = _TURN_S
    for _ in range(_EVENTS_A_TURN):
        event = client.next_event(patience_s)
        if event is None:
            return
        if isinstance(event, Message):
            yield event
            client.ack(event)
        patience_s = 0


def _may_join(node: NodePlan, view: FleetView) -> bool:
    return node.joins_at is None or (view.head is not None and view.head >= node.joins_at)


def program(place: Workplace, name: str) -> Program:
    """The process of a run that has this name."""
    role = COORDINATOR if name == COORDINATOR else "edge"
    command = (sys.executable, "-m", "alignfed", role, "--config", str(place.config(name)))
    return Program(name, command, place.log(name))


def free_address() -> str:
    """A port of this machine that nobody listens on now."""
    with socket.create_server((LOOPBACK, 0)) as taken:
        return f"{LOOPBACK}:{taken.getsockname()[1]}"


def _write_configs(
    plan: Plan, place: Workplace, base_model: BaseModelSettings, port: int, keys: Path | None, http: str
) -> None:
    recipe = plan.recipe
    shared: dict[str, BaseModel] = {"base_model": base_model, "broker": BrokerSettings(port=port)}
    coordinator = coordinator_settings(plan, place).model_copy(update={"http": http})
    own = sections(shared | {"coordinator": coordinator}, keys, COORDINATOR)
    write_config(place.config(COORDINATOR), FEDERATION, own)
    for node in plan.nodes:
        edge = EdgeSettings(
            node=node.name,
            data=place.data(node.name),
            data_dir=place.node(node.name),
            codec=recipe.codec,
            slowdown=node.slowdown,
            training=recipe.training,
            # commands of other homes measure the demo, so that each home learns from all it has
            local_data=LocalDataSettings(held_out=0),
            serving=ServingSettings(mqtt=node.name == serving_node(plan)),
        )
        own = sections(shared | {"edge": edge}, keys, f"nodes/{node.name}")
        write_config(place.config(node.name), FEDERATION, own)


def coordinator_settings(plan: Plan, place: Workplace) -> CoordinatorSettings:
    """What the coordinator of a plan is told."""
    recipe = plan.recipe
    return CoordinatorSettings(
        data_dir=place.coordinator,
        lora=recipe.lora,
        strategy=recipe.strategy,
        seed=plan.seed,
        final_version=recipe.versions,
        calibration=CalibrationSettings(
            data=place.calibration,
            anchor_examples=recipe.anchor_examples,
            gate_examples=recipe.gate_examples,
            training=recipe.training,
        ),
    )


def sections(own: Mapping[str, BaseModel], keys: Path | None, bundle: str) -> Mapping[str, BaseModel]:
    """The sections of one process's settings, with its bundle where there are keys."""
    return own if keys is None else {**own, "security": SecuritySettings(keys=keys / bundle)}


def environment() -> dict[str, str]:
    """For the processes: one thread each, and no setting of this shell that would overrule their files."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ALIGNFED_")}
    single = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return inherited | single | {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}


def _stalled(view: FleetView, place: Workplace) -> str:
    at = "no version at all" if view.head is None else f"no version after {view.head}"
    return f"{at} for {STALLED_AFTER_S:.0f} s. Look into the logs in {place.log(COORDINATOR).parent}."
