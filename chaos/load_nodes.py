"""Many enrolled nodes in one process: the production node, with a training that costs nothing and changes a little.

    python -m chaos.load_nodes SETTINGS.json

Everything between a finished training and its receipt is the product's own: core, outbox, publisher, client, keys, the
version held on disk. Only the delta is drawn at random, for a real training takes seconds of processor. Whatever the
product's process would end by ends this one, too: somebody starts it again. SIGUSR1: begin no more training.
"""

import logging
import math
import os
import random
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from base_model.reference import ResolvedModel, resolve
from broker.bundle import load_node_bundle
from broker.events import Connected, Disconnected, Message
from broker.settings import BrokerSettings
from chaos.witness import Witness
from edge_node import effects, events, service, state
from edge_node.node import Equipment, Item, Node
from edge_node.outbox import Outbox
from edge_node.settings import EdgeSettings
from schemas.adapter import Adapter
from schemas.messages import InvalidMessage
from schemas.reading import message_on
from schemas.topics import GlobalHead, parse

log = logging.getLogger("chaos.load_nodes")

DELTA = 0.001  # size of a step; adapters stay finite over any number of versions
EXAMPLE = '{"prompt": "lamp", "completion": "on"}\n'


class LoadSettings(BaseModel):
    """One process of nodes: their names, where everything is, and how long a training takes on average."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    federation: str
    model: Path
    cache: Path
    port: int
    keys: Path
    folder: Path
    witness: Path
    names: tuple[str, ...]
    training_s: float


class WitnessedNode(Node):
    """The product's node; what it sees and keeps goes to the witness as well.

    A receipt is witnessed before it has its effect and an update after it was kept, so that a kill between the two
    leaves evidence that is true.
    """

    def __init__(self, identity: state.Identity, equipment: Equipment, witness: Witness) -> None:
        super().__init__(identity, equipment, time.monotonic())
        self._name, self._federation, self._witness = identity.settings.node, identity.federation, witness

    def take(self, item: Item, at: float, wall_ns: int) -> effects.Effects:
        """See Node."""
        if isinstance(item, Connected | Disconnected):
            self._witness.say(self._name, "connected" if isinstance(item, Connected) else "lost")
        elif isinstance(item, Message) and isinstance(head := parse(self._federation, item.topic), GlobalHead):
            self._heard(head, item.payload)
        return super().take(item, at, wall_ns)

    def _heard(self, head: GlobalHead, payload: bytes) -> None:
        try:
            pointer = message_on(head, payload)
        except InvalidMessage:  # the node itself says so
            return
        self._witness.say(self._name, "heard", epoch=pointer.epoch, version=pointer.version, digest=pointer.digest)

    def _write(self, effect: effects.Effect) -> None:
        match effect:
            case effects.SettleUpdate(update):
                self._witness.say(self._name, "receipted", update)
            case effects.DropUpdate(update):
                self._witness.say(self._name, "dropped", update)
        super()._write(effect)
        match effect:
            case effects.StoreUpdate(stored):
                self._witness.say(self._name, "stored", stored.update_id)
            case effects.KeepVersion(pointer):
                self._witness.say(
                    self._name, "held", epoch=pointer.epoch, version=pointer.version, digest=pointer.digest
                )


class LoadNode(service.Service):
    """The product's service of one node, with another training."""

    def __init__(
        self,
        settings: LoadSettings,
        node: EdgeSettings,
        resolved: ResolvedModel,
        outbox: Outbox,
        resting: threading.Event,
    ) -> None:
        bundle = load_node_bundle(settings.keys / "nodes" / node.node, settings.federation, node.node)
        broker = BrokerSettings(port=settings.port)
        super().__init__(settings.federation, resolved, settings.cache, broker, node, outbox, bundle)
        self._settings, self._resting = settings, resting
        self._pace = random.Random()
        self._job: tuple[float, state.TrainingJob] | None = None  # when it is done
        witness = Witness(settings.witness / f"{node.node}.jsonl")
        self._node = WitnessedNode(self._identity, replace(self._equipment, trainer=self), witness)
        witness.say(node.node, "boot")

    def train(self, job: state.TrainingJob) -> None:
        """Begin a job, which is done after a while."""
        self._job = (time.monotonic() + self._pace.expovariate(1 / self._settings.training_s), job)

    def measure(self, job: state.TrainingJob) -> None:
        """Nothing is measured here."""
        self._inbox.put(events.MeasuringEnded(time.monotonic(), job.sequence))

    def abort(self) -> None:
        """End it."""
        self._job = None

    def work(self) -> None:
        """Take part until the process ends."""
        ended = threading.Event()
        forwarder = threading.Thread(target=service._forward, args=(self._client, self._inbox.put, ended), daemon=True)
        self._client.start()
        forwarder.start()
        self._loop()

    def _next(self, deadline: float | None) -> Any:
        if self._job is None or self._resting.is_set():
            return super()._next(deadline)
        at, job = self._job
        if time.monotonic() >= at:
            self._job = None
            return self._trained(job)
        return super()._next(min(at, math.inf if deadline is None else deadline))

    def _trained(self, job: state.TrainingJob) -> events.TrainingFinished:
        start = job.start.adapter
        steps = np.random.default_rng(job.seed).normal(0, DELTA, start.values.size).astype(np.float32)
        return events.TrainingFinished(
            time.monotonic(), job.sequence, Adapter(start.layout, start.values + steps), 1, 1, 1.0, 0.0
        )


def main(settings: LoadSettings) -> None:
    """Run the nodes until the process is killed; a fault of any of them ends it with code 1."""
    resolved = resolve(str(settings.model), settings.cache)
    resting = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: resting.set())
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    for name in settings.names:
        threading.Thread(target=_work, args=(settings, name, resolved, resting), name=name, daemon=True).start()
    while True:
        signal.pause()


def _work(settings: LoadSettings, name: str, resolved: ResolvedModel, resting: threading.Event) -> None:
    """One node in its thread. Where its own process would end, all of them do: somebody starts this one again."""
    try:
        folder, examples = settings.folder / name, settings.witness / f"{name}.examples"
        examples.write_text(EXAMPLE)
        chosen = {"node": name, "data": examples, "data_dir": folder, "codec": "fp32", "resend_after_s": 2}
        node = EdgeSettings.model_validate(chosen)
        with service._alone_in(folder), Outbox(folder / "outbox.db") as outbox:
            LoadNode(settings, node, resolved, outbox, resting).work()
    except BaseException:
        log.exception("%s ends its process", name)
    os._exit(1)


if __name__ == "__main__":
    logging.basicConfig(level="WARNING", format="%(asctime)s %(threadName)s %(message)s")
    main(LoadSettings.model_validate_json(Path(sys.argv[1]).read_bytes()))
