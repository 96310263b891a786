"""The node as a process: threads put what happens into one queue, and one loop hands it to the node, with the time.

The MQTT client, the trainer and whoever serves only put into the queue. It decides nothing by itself.
"""

import fcntl
import logging
import math
import os
import queue
import signal
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from base_model.chat_tokens import ChatTokens
from base_model.examples import InvalidExamples
from base_model.layout import layout_of
from base_model.reference import ResolvedModel, resolve
from base_model.settings import BaseModelSettings
from base_model.wheel import BaseModelError
from broker.bundle import Bundle, load_node_bundle
from broker.client import Client
from broker.events import NetworkThreadDied
from broker.key_files import KeyFileError
from broker.security import WITHOUT_KEYS, OpenBroker, SecuritySettings, refuse_open_broker
from broker.settings import BrokerSettings
from edge_node import effects, events, machine, state
from edge_node.data.local_data import LocalData
from edge_node.data.local_feed import LocalFeed, SharedBroker, refuse_federation_broker
from edge_node.health import Shown
from edge_node.memory import give_back_memory, share_one_heap
from edge_node.node import Equipment, Node, farewell_of, subscriptions
from edge_node.outbox import Outbox, OutboxDamaged
from edge_node.publisher import publication
from edge_node.settings import EdgeSettings
from edge_node.training.trainer import Trainer, TrainerDied
from schemas import topics

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from edge_node.serving.thread import Serving

log = logging.getLogger(__name__)

CLEAN, FAILED, REFUSED = 0, 1, 3
WILL_DELAY_S = 30
FAREWELL_S = 2.0
EXPECTED_FAULTS = (
    BaseModelError,
    InvalidExamples,
    KeyFileError,
    NetworkThreadDied,
    OpenBroker,
    OutboxDamaged,
    OSError,
    SharedBroker,
    sqlite3.DatabaseError,
)
CONDITIONS_EVERY_S = 15.0
TURN_S = 10.0  # the loop comes by so often whatever happens, so that whoever looks can tell that it does not hang


class AlreadyRunning(OSError):
    """Another process works in the same data folder."""


class StopRequested:
    """The owner asked the process to end."""


def run(
    federation: str,
    base_model: BaseModelSettings,
    broker: BrokerSettings,
    settings: EdgeSettings,
    security: SecuritySettings = WITHOUT_KEYS,
) -> NoReturn:
    """Run one node until SIGTERM or SIGINT, then end the process; call it from the main thread. It logs to `logging`.

    Exits with 0 after a clean stop, 1 after a fault that the log explains, 3 when the federation cannot take this node.
    """
    share_one_heap()
    code = _run(federation, base_model, broker, settings, security)
    logging.shutdown()
    # not sys.exit: a thread deep inside ONNX Runtime aborts the process when the interpreter is torn down around it;
    # all that matters is on disk and with the broker by now
    os._exit(code)


def _run(
    federation: str,
    base_model: BaseModelSettings,
    broker: BrokerSettings,
    settings: EdgeSettings,
    security: SecuritySettings,
) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the loop runs, either signal is an exception
    try:
        refuse_open_broker(security, broker)
        bundle = load_node_bundle(security.keys, federation, settings.node) if security.keys is not None else None
        with _alone_in(settings.data_dir), Outbox(settings.data_dir / "outbox.db") as outbox:
            resolved = resolve(base_model.name, base_model.cache, _log_stages())
            return Service(federation, resolved, base_model.cache, broker, settings, outbox, bundle).serve()
    except KeyboardInterrupt:
        return CLEAN
    except EXPECTED_FAULTS as fault:
        log.error("%s", fault)
        return FAILED


class Service:
    """The loop of one node and what it works with; nothing of it runs outside of `serve`."""

    def __init__(
        self,
        federation: str,
        resolved: ResolvedModel,
        cache: Path,
        broker: BrokerSettings,
        settings: EdgeSettings,
        outbox: Outbox,
        bundle: Bundle | None,
    ) -> None:
        boot_id = f"{outbox.count_boot():08x}{uuid.uuid4().hex[8:]}"  # a later boot sorts behind an earlier one
        self._identity = state.Identity(federation, boot_id, resolved.digest, settings)
        broker = bundle.reaches(broker) if bundle is not None else broker
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._conditions_at = 0.0 if settings.policy.looks_at_the_machine else math.inf  # when to look next
        self._data = _local_data(settings)
        log.info("node %s: %d private examples, %s", settings.node, self._data.summary().examples, resolved.name)
        farewell = publication(federation, topics.NodeStateOf(settings.node), farewell_of(self._identity).to_bytes())
        self._client = Client(
            broker,
            client_id=f"{federation}:node:{settings.node}",  # no name holds a colon
            will=farewell if bundle is None else bundle.signed(farewell),
            will_delay_s=WILL_DELAY_S,
            subscriptions=subscriptions(federation, settings.node, is_signed=bundle is not None),
            # the session lasts as long as the process: nothing in an older one is missed, for what waits in the outbox
            # is sent again, and a version half fetched then must not go on coming
            clean_start=True,
        )
        self._trainer = Trainer(resolved, cache, self._data, settings, self._inbox.put)
        self._feed = _feed(federation, broker, settings, self._data, self._inbox.put)
        self._shown = Shown(lambda: self._data.summary().examples > 0)
        self._serving = _serving(self._identity, resolved, cache, broker, self._data, self._shown, self._inbox.put)
        self._equipment = Equipment(
            client=self._client,
            outbox=outbox,
            folder=settings.data_dir,
            trainer=self._trainer,
            serving=self._serving,
            layout_of=lambda lora: layout_of(resolved, lora),
            bundle=bundle,
            max_packet_size=broker.max_packet_size,
        )
        self._node = Node(self._identity, self._equipment, time.monotonic())

    def serve(self) -> int:
        """Work until asked to stop, or until the federation refuses this node; returns the exit code."""
        ended = threading.Event()
        forwarder = threading.Thread(target=_forward, args=(self._client, self._inbox.put, ended), daemon=True)
        with ExitStack() as running:  # what was started is ended, the last first, also when a later start fails
            running.enter_context(_signals_to(self._inbox.put))
            running.enter_context(self._watching())
            running.callback(log.info, "stopped")
            for part in (self._feed, self._serving, self._trainer):
                if part is not None:
                    part.start()
                    running.callback(part.stop)
            self._client.start()
            running.callback(ended.set)
            running.callback(self._client.stop, FAREWELL_S)
            running.callback(self._node.farewell)
            running.callback(self._trainer.abort)
            forwarder.start()
            return self._loop()

    def _loop(self) -> int:
        code = _code_after(self._node.begin())
        while code is None:
            self._shown.show(self._node.state)
            self._node.rest()
            code = self._turn()
        return code

    def _turn(self) -> int | None:
        """Deal with what comes next, and hold nothing of it afterwards; the exit code if it was the last."""
        item = self._next(self._node.deadline)
        if isinstance(item, StopRequested):
            return CLEAN
        if isinstance(item, TrainerDied):
            raise item.error
        if isinstance(item, Exception):  # what the client's or the serving thread died of
            raise item
        return _code_after(self._node.take(item, time.monotonic(), time.time_ns()))

    def _watching(self) -> AbstractContextManager[None]:
        """Whoever may look while this lasts, if the owner wants that where nobody is answered."""
        if (http := self._identity.settings.metrics_http) is None:
            return nullcontext()
        from edge_node.watching import served_on, watching  # nobody else needs its memory

        looks = [part.look for part in (self._shown, self._serving) if part is not None]
        return served_on(http, watching(self._shown.metrics, looks), "edge.metrics_http")

    def _next(self, deadline: float | None) -> Any:
        """What the client, the trainer or a signal has put into the queue; after the deadline, a tick."""
        now = time.monotonic()
        if now >= self._conditions_at:
            return self._conditions(now)
        deadline = min(self._conditions_at, now + TURN_S, math.inf if deadline is None else deadline)
        try:
            return self._inbox.get(timeout=max(0.0, deadline - now))
        except queue.Empty:
            return events.Ticked(time.monotonic())

    def _conditions(self, now: float) -> events.ConditionsRead:
        """What the machine is at, and when to look again: only if the owner's policy wants to know."""
        self._conditions_at = now + CONDITIONS_EVERY_S
        try:
            self._data.refresh()
        except InvalidExamples as fault:
            log.warning("%s", fault)
        summary = self._data.summary()
        examples = summary.examples + summary.dropped
        return events.ConditionsRead(now, machine.conditions(examples))


def _code_after(done: effects.Effects) -> int | None:
    return REFUSED if any(isinstance(effect, effects.Stop) for effect in done) else None


def _forward(client: Client, put: Callable[[Any], None], ended: threading.Event) -> None:
    """Move the client's events into the queue, where the trainer's are too."""
    try:
        while not ended.is_set():
            if (event := client.next_event(1.0)) is not None:
                put(event)
    except NetworkThreadDied as fault:
        put(fault)


def _local_data(settings: EdgeSettings) -> LocalData:
    """The private examples as they are now; files that cannot be read stop a start, for the path may be wrong."""
    data = LocalData.open(settings.data, settings.data_dir, settings.local_data)
    data.refresh()
    return data


def _feed(
    federation: str, broker: BrokerSettings, settings: EdgeSettings, data: LocalData, put: Callable[[Any], None]
) -> LocalFeed | None:
    """What listens to the gateway's own broker, if there is one."""
    if settings.local_broker is None:
        return None
    refuse_federation_broker(settings.local_broker, broker)
    return LocalFeed(settings.local_broker, f"{federation}:examples:{settings.node}", data, put)


def _serving(
    identity: state.Identity,
    resolved: ResolvedModel,
    cache: Path,
    broker: BrokerSettings,
    data: LocalData,
    shown: Shown,
    put: Callable[[Any], None],
) -> "Serving | None":
    """What answers, if the owner wants that."""
    node, settings = identity.settings.node, identity.settings.serving
    if not settings.is_on:
        return None
    chat = ChatTokens(resolved.path)  # it takes twice for a moment what it keeps: before the rest takes its part
    give_back_memory()
    from edge_node.serving.mqtt import MqttServer  # a node that only trains needs none of their memory
    from edge_node.serving.thread import Serving

    mqtt = MqttServer(broker, identity.federation, node, resolved.digest, put) if settings.over_mqtt else None
    routes, measured = _routes(identity.settings, data), identity.settings.local_data.measured
    watched = (shown.metrics, (shown.look,))
    return Serving(resolved, chat, cache, settings, mqtt, put, data.held_out, routes, measured, *watched)


def _routes(settings: EdgeSettings, data: LocalData) -> Sequence["BaseRoute"]:
    """What the node takes over HTTP beside questions."""
    if settings.serving.http is None:
        return ()
    from edge_node.data.example_requests import example_routes

    return example_routes(data, settings.local_data.http)


def _log_stages() -> Callable[[str, int, int | None], None]:
    """Progress of getting the base model, one line a stage."""
    said = set[str]()

    def progress(stage: str, _done: int, _total: int | None) -> None:
        if stage not in said:
            said.add(stage)
            log.info("base model: %s", stage)

    return progress


@contextmanager
def _signals_to(put: Callable[[Any], None]) -> Iterator[None]:
    """While this lasts, SIGTERM and SIGINT become one more item of the queue (whose put is safe in a handler)."""

    def handler(_number: int, _frame: Any) -> None:
        put(StopRequested())

    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the operating system lets go when the process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"another node works in {folder}: stop it, or give this one a data_dir of its own"
            ) from None
        yield
