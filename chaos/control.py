"""The control: nodes of their own that believe the broker, and forget an update when it has acknowledged it.

    python -m chaos.control SETTINGS.json

That is what a client without an outbox and signed receipts would do. It has to lose updates under the faults of a run:
if it does not, the run has not been hard enough to show anything. SIGUSR1: make no more updates.
"""

import logging
import os
import signal
import sys
import threading
import time
import uuid
from pathlib import Path

import numpy as np

from base_model.layout import layout_of
from base_model.reference import ResolvedModel, resolve
from broker.bundle import Bundle, load_node_bundle
from broker.client import Client
from broker.events import Event, Message, Publication, Published, QueueFull
from broker.settings import BrokerSettings
from chaos.load_nodes import LoadSettings
from chaos.witness import Witness
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.chunks import describe
from schemas.codec import encode
from schemas.messages import GlobalPointer, UpdateManifest, join_body, update_id
from schemas.reading import message_on
from schemas.topics import CoordinatorStateOf, GlobalHead, UpdateManifestOf, parse, route, topic_filter

DELTA = 0.001


class TrustsBroker:
    """One such node: what it made is in memory until the broker has acknowledged it."""

    def __init__(self, settings: LoadSettings, name: str, resolved: ResolvedModel) -> None:
        self._bundle: Bundle = load_node_bundle(settings.keys / "nodes" / name, settings.federation, name)
        self._settings, self._name, self._resolved = settings, name, resolved
        self._witness = Witness(settings.witness / f"{name}.jsonl")
        self._boot, self._made = uuid.uuid4().hex, 0
        self._unacknowledged: dict[int, str] = {}  # update by token
        self._head: GlobalPointer | None = None
        self._layout: Layout | None = None
        self.is_resting = False
        filters = [topic_filter(settings.federation, kind) for kind in (GlobalHead, CoordinatorStateOf)]
        broker = self._bundle.reaches(BrokerSettings(port=settings.port))
        self._client = Client(broker, f"{settings.federation}:node:{name}", subscriptions=filters, clean_start=True)

    def work(self) -> None:
        """Publish an update every so often until the process ends."""
        self._witness.say(self._name, "boot")
        due = time.monotonic()
        with self._client:
            while True:
                self._take(self._client.next_event(max(0.0, min(1.0, due - time.monotonic()))))
                if time.monotonic() >= due:
                    due += self._settings.training_s
                    self._publish()

    def _take(self, event: Event | None) -> None:
        match event:
            case Message(topic=topic, payload=payload):
                self._hear(topic, payload)
                self._client.ack(event)
            case Published(token, None, heard=True) if token in self._unacknowledged:
                # the acknowledgement says success, and that somebody subscribes: the update is forgotten
                self._witness.say(self._name, "puback", self._unacknowledged.pop(token))

    def _hear(self, topic: str, payload: bytes) -> None:
        match parse(self._settings.federation, topic):
            case GlobalHead() as address:
                self._head = message_on(address, payload)
            case CoordinatorStateOf() as address:
                self._layout = self._layout_of(message_on(address, payload).lora)

    def _layout_of(self, lora: LoraConfig) -> Layout:
        known = self._layout
        return known if known is not None and known.lora == lora else layout_of(self._resolved, lora)

    def _publish(self) -> None:
        if self.is_resting or self._head is None or self._layout is None:
            return
        publication, id_ = self._update(self._head, self._layout)
        try:
            self._unacknowledged[self._client.publish(self._bundle.signed(publication))] = id_
        except QueueFull:  # the broker is away for long: it makes no more
            return

    def _update(self, base: GlobalPointer, layout: Layout) -> tuple[Publication, str]:
        steps = np.random.default_rng().normal(0, DELTA, layout.size).astype(np.float32)
        body = encode(Adapter(layout, steps), "int8")
        manifest = UpdateManifest(
            node=self._name,
            boot_id=self._boot,
            sequence=self._made,
            base_version=base.version,
            base_digest=base.digest,
            base_model=self._resolved.digest,
            layout=layout.digest,
            examples=1,
            steps=1,
            participation=0,
            loss=1.0,
            seconds=0.0,
            body=describe(body, "int8"),
        ).to_bytes()
        self._made += 1
        id_ = update_id(manifest)
        to = route(self._settings.federation, UpdateManifestOf(self._name, id_))
        return Publication(payload=join_body(manifest, body), **to._asdict()), id_


def main(settings: LoadSettings) -> None:
    """Run the control's nodes until the process is killed."""
    resolved = resolve(str(settings.model), settings.cache)
    nodes = [TrustsBroker(settings, name, resolved) for name in settings.names]

    def rest(*_: object) -> None:
        for node in nodes:
            node.is_resting = True

    signal.signal(signal.SIGUSR1, rest)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    for node in nodes:
        threading.Thread(target=node.work, daemon=True).start()
    while True:
        signal.pause()


if __name__ == "__main__":
    logging.basicConfig(level="WARNING")
    main(LoadSettings.model_validate_json(Path(sys.argv[1]).read_bytes()))
