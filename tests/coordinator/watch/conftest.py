"""What tests of the coordinator's views share: one that shows itself, what nodes say, what others take of it."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import jsonschema
import pytest

from coordinator.core import found, step
from coordinator.publisher import publication
from coordinator.questions import MeasuredLosses, MeasureLosses, TrainedAnchor, answer_to_bytes
from coordinator.stages import AnchorStage, ReleaseStage
from coordinator.state import Answered, CalibrationTerms, Event, FederationState, Ordered, Received
from coordinator.strategies import FedBuff
from coordinator.watch.alarms import with_alarms
from coordinator.watch.board import Board
from coordinator.watch.fleet import NodeHeard, hear
from coordinator.watch.history import History, LastUpdate, NodeHistory, observe
from coordinator.watch.http import watching
from coordinator.watch.metrics import metrics_page
from coordinator.watch.ordering import Guard
from coordinator.watch.status import Facts, GroupStatus, ProcessStatus, Status, status_of
from edge_node.core import initial_state
from edge_node.metrics import Metrics
from edge_node.settings import EdgeSettings
from edge_node.state import GlobalAdapter, HeldOutLoss, Identity, Memory, Training, TrainingJob
from schemas.messages import GlobalPointer, NodeMetrics, NodeState
from schemas.topics import GlobalHead, NodeMetricsOf, NodeStateOf, route
from tests.ports import free_port

FEDERATION, BOOT, SECOND = "test", "b" * 32, 1_000_000_000
GATED = FedBuff(buffer_size=3, anchor=AnchorStage(), release=ReleaseStage(choose="gated"))
SCHEMA = json.loads((Path(__file__).parent / "home_assistant_discovery.json").read_text(encoding="utf-8"))
TOPIC = re.compile(r"[^/+#]+/device/([a-zA-Z0-9_-]+/)?[a-zA-Z0-9_-]+/config")


@pytest.fixture
def address() -> str:
    """A free address on this machine."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def watched(start_coordinator: Callable[..., Any], base_model: Path, address: str) -> Any:
    """A coordinator that makes a version of every two updates, and shows it."""
    return start_coordinator(base_model, f'strategy = {{name = "fedbuff", buffer_size = 2}}\nhttp = "{address}"')


@pytest.fixture
def says(node: Any) -> Callable[..., None]:
    """says(name, version, **told): a node of this name says what it is and holds, and how it does."""

    def say(name: str, version: int = 0, **told: Any) -> None:
        state, metrics = _words({"base_model": node.base_model, "version": version} | told)
        node.client.publish(publication(FEDERATION, NodeStateOf(name), state.to_bytes()))
        node.client.publish(publication(FEDERATION, NodeMetricsOf(name), metrics.to_bytes()))

    return say


def _words(told: dict[str, Any]) -> tuple[NodeState, NodeMetrics]:
    """What a node says of itself, on the topic that is kept and on the one that is not."""
    usual = {"online": True, "base_model": "0" * 64, "version": 0}
    lasting = {name: value for name, value in told.items() if name in NodeState.model_fields}
    passing = {name: value for name, value in told.items() if name not in lasting}
    return NodeState(boot_id=BOOT, **(usual | lasting)), NodeMetrics(boot_id=BOOT, **passing)


class Federation:
    """A federation in memory, with its history beside it; an update a second, from `begun_ns` on."""

    def __init__(self, config: Any, adapter: Any, message: Any, begun_ns: int) -> None:
        self.message, self.adapter, self.sent, self.begun_ns = message, adapter, 0, begun_ns
        self.state: FederationState
        self.state, effects = found(config, adapter(0), begun_ns)
        self.history = observe(History(), None, effects, begun_ns)
        self.fleet: dict[str, Any] = {}

    @property
    def now_ns(self) -> int:
        return self.begun_ns + self.sent * SECOND

    def hears(self, node: str, delta: float = 0.1, base_version: int | None = None, **changes: Any) -> None:
        """One update of a node, from the head unless it is said otherwise."""
        base = self.state.head.version if base_version is None else base_version
        digest = self.state.digests.get(base, "0" * 64)
        event = self.message(node, delta, base, digest, sequence=self.sent, at_ns=self.now_ns, **changes)
        self.sent += 1
        self._take(event, event.at_ns)

    def hears_garbage(self) -> None:
        """A message on a topic of its own."""
        self._take(Received(self.now_ns, route(FEDERATION, GlobalHead()).topic, b"stray"), self.now_ns)

    def is_answered(self, before: float, candidate: float) -> None:
        """The base model answers all that it is asked, and these losses where it judges."""
        while (asked := self.state.background) is not None:
            answer = TrainedAnchor(self.adapter(0.1), before, candidate, seconds=2.5)
            if isinstance(asked.question, MeasureLosses):
                answer = MeasuredLosses((before, candidate), seconds=0.7)
            self._take(Answered(self.now_ns, asked.id, answer_to_bytes(answer)), self.now_ns)

    def is_ordered(self, order: bytes) -> None:
        """The operator orders this."""
        self._take(Ordered(self.now_ns, self.state.orders + 1, order), self.now_ns)

    def says(self, node: str, **told: Any) -> None:
        """A node says how it is, and whether it is there."""
        state, metrics = _words(told)
        for address, said in ((NodeStateOf(node), state), (NodeMetricsOf(node), metrics)):
            self.fleet = dict(hear(self.fleet, address, said.to_bytes(), self.begun_ns + 5, 1000))

    def facts(self, process: ProcessStatus | None = None) -> Facts:
        return Facts(self.state, self.history, self.fleet, process)

    def status(self, now_ns: int | None = None) -> Status:
        return with_alarms(status_of(self.facts(), self.now_ns if now_ns is None else now_ns))

    def _take(self, event: Event, at_ns: int) -> None:
        self.state, effects = step(self.state, event)
        self.history = observe(self.history, event, effects, at_ns)


@pytest.fixture
def federation(config: Any, adapter: Any, message: Any) -> Any:
    """federation(strategy, begun_ns, **terms): a federation of these terms, in memory."""
    return lambda strategy, begun_ns=0, **terms: Federation(config(strategy, **terms), adapter, message, begun_ns)


@pytest.fixture
def judged(federation: Any, calibration: CalibrationTerms) -> Any:
    """A gate that has taken and turned down, a starved node, one shut out, updates that wait and that were refused."""
    here = federation(GATED, time.time_ns() - 9 * 60 * SECOND, calibration=calibration)
    here.hears("slow")
    for candidate in (2.5, 1.75, 1.812, 1.375, *[1.25] * 18, 1.687):
        here.hears("kitchen")
        here.hears("kitchen")
        here.hears("garage", base_version=max(0, here.state.head.version - 1))
        here.is_answered(before=3.0 if candidate == 2.5 else 1.5, candidate=candidate)
    for _ in range(3):
        here.hears("garage", base_version=999)
    here.hears("attic")
    here.hears_garbage()
    here.says("kitchen", version=21, serving=20, base_version=21, step=3, steps=8, loss=0.812, outbox=2)
    here.says("garage", version=19, online=False)
    here.says("cellar", version=23, outbox=5, served_loss=1.5, served_loss_version=20, served_loss_examples=9)
    here.is_ordered(b'{"kind": "quarantine", "node": "slow", "reason": "stolen"}')
    return here


@pytest.fixture
def show(address: str, tmp_path: Path) -> Iterator[Callable[[Facts], None]]:
    """show(facts): whoever asks at the address is shown these from now on."""
    board = Board()
    with watching(address, tmp_path, FEDERATION, board, Guard(None, ())):
        yield board.show


# --- Home Assistant's part: what it takes as a discovery message, and how it renders a template ---


def _environment() -> jinja2.Environment:
    # a name that nobody knows is an error, as it is for a person who reads the log there
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    environment.filters |= {"to_json": json.dumps, "from_json": json.loads}
    return environment


@pytest.fixture(scope="session")
def rendered() -> Callable[[str, bytes], str]:
    """A template for an MQTT payload: `value` is the text, and `value_json` is there if all of it is JSON."""

    def render(template: str, payload: bytes) -> str:
        names = {"value": payload.decode()}
        with suppress(json.JSONDecodeError):
            names["value_json"] = json.loads(payload)
        return _environment().from_string(template).render(**names)

    return render


@pytest.fixture(scope="session")
def discovery_faults() -> Callable[[str, Any], list[str]]:
    """What Home Assistant would not take of a discovery message on its topic; nothing for a good one."""

    def faults(topic: str, message: Any) -> list[str]:
        validator = jsonschema.Draft202012Validator(SCHEMA)
        found = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(message)]
        found += [f"{place}: {fault}" for place, fault in _template_faults(message)]
        return found if TOPIC.fullmatch(topic) else [*found, f"{topic} is no discovery topic"]

    return faults


def _template_faults(part: Any, place: str = "$") -> Iterator[tuple[str, str]]:
    for key, value in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
        if isinstance(value, str) and str(key).endswith("template"):
            try:
                _environment().from_string(value)
            except jinja2.TemplateError as fault:
                yield f"{place}.{key}", str(fault)
        yield from _template_faults(value, f"{place}.{key}")


@pytest.fixture
def coordinator_page(config: Any, adapter: Any) -> bytes:
    """A coordinator's metrics, with everything in them that there can be."""
    state, effects = found(config(), adapter(0), 1)
    boot = "b" * 32
    fleet = {
        "attic": NodeHeard(
            1,
            NodeState(online=True, boot_id=boot, base_model="0" * 64, version=0, serving=0),
            NodeMetrics(
                boot_id=boot,
                base_version=0,
                step=1,
                steps=8,
                loss=1.0,
                outbox=4,
                held_out_loss=1.0,
                held_out_version=0,
                held_out_examples=4,
            ),
        )
    }
    history = replace(
        observe(History(), None, effects, 1),
        nodes={"attic": NodeHistory(LastUpdate("0" * 32, 1, "stale", 0, 1.0), {"stale": 1}, 1, 0)},
        staleness={0: 3, 2: 1},
        group_sizes={2: 2},
        refusals={"stale": 1},
        gate={True: 1},
        seconds={"losses": 1.5},
    )
    process = ProcessStatus(
        boot_id=boot,
        started_at_ns=1,
        connected=False,
        messages_in=0,
        bytes_in=0,
        messages_out=0,
        bytes_out=0,
        publications_waiting=0,
        questions_waiting=0,
        journal_bytes=0,
    )
    status = with_alarms(status_of(Facts(state, history, fleet, process), 2))
    measured = dict.fromkeys(("node_loss", "gate_before", "gate_after", "anchor_before", "anchor_after"), 1.0)
    some = {
        "nodes": (status.nodes[0].model_copy(update={"staleness": 1.0}),),
        "versions": (status.versions[0].model_copy(update=measured),),
        "waiting": (GroupStatus(base_version=0, staleness=0, updates=1),),
        "dropped": {"no update manifest": 1},
    }
    return metrics_page(status.model_copy(update=some))


@pytest.fixture
def node_page(adapter: Any) -> bytes:
    """A node's metrics, with everything in them that there can be."""
    pointer = GlobalPointer(epoch=1, version=0, digest="0" * 64, parent=None, size=1, chunks=1)
    held = GlobalAdapter(pointer, adapter(0))
    settings = EdgeSettings(node="attic", data=Path("none"))
    state, _ = initial_state(Identity("home", "b" * 32, "0" * 64, settings), Memory(), 0.0)
    training = Training(TrainingJob(held, sequence=0, seed=0))
    metrics = Metrics()
    loss = HeldOutLoss(version=0, loss=1.0, examples=4)
    state = replace(state, held=held, served=pointer, held_out=loss, served_held_out=loss)
    metrics.show(replace(state, training=training, last_loss=1.0))
    metrics.tokens.labels("answer").inc()
    metrics.answers.labels("whole").inc()
    for histogram in (metrics.swap_seconds, metrics.first_token_seconds, metrics.answer_seconds):
        histogram.observe(0.2)
    return metrics.page()
