"""A federation with keys, three honest nodes, and somebody who is enrolled and has a client of another make."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from broker.bundle import Bundle, read_bundle
from broker.client import Client
from broker.embedded import EmbeddedBroker, find_mosquitto
from broker.federation_keys import enrol, init
from broker.settings import BrokerSettings
from coordinator.strategies import AlignFed
from schemas.adapter import Adapter
from schemas.chunks import describe
from schemas.codec import encode
from schemas.messages import UpdateManifest, join_body, update_id
from schemas.signing import sign, unsigned
from schemas.topics import UpdateManifestOf, route
from tests.coordinator.conftest import Coordinator, Node, base_model, node_of, start_coordinator
from tests.coordinator.test_service_with_keys import FEDERATION, SigningClient

__all__ = ["base_model", "node_of", "start_coordinator"]

HONEST, LIAR = ("h0", "h1", "h2"), "mallory"
STEP = 0.01  # of every parameter, in an honest delta
STRATEGY = AlignFed(buffer_size=4, largest_share=0.3)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """The keys of everybody."""
    folder = tmp_path / "keys"
    init(folder, FEDERATION, ("127.0.0.1",), days=100)
    for node in (*HONEST, LIAR):
        enrol(folder, node, days=100)
    return folder


@pytest.fixture
def broker(keys: Path) -> Iterator[EmbeddedBroker]:
    """Mosquitto with TLS and the federation's access rules."""
    if find_mosquitto() is None:
        pytest.skip("MOSQUITTO IS NOT INSTALLED")
    with EmbeddedBroker("mosquitto", keys=keys) as running:
        yield running


class Stranger:
    """An enrolled node that keeps to nothing: paho, a certificate, a signing key, and what the protocol page says."""

    def __init__(self, bundle: Bundle, broker: BrokerSettings) -> None:
        self.bundle = bundle
        self.told: dict[str, list[str]] = {}
        self._heard = threading.Condition()
        client = self._client = PahoClient(CallbackAPIVersion.VERSION2, LIAR, protocol=MQTTProtocolVersion.MQTTv5)
        tls = ssl.create_default_context(cafile=str(broker.ca_file))
        tls.load_cert_chain(str(broker.cert_file), str(broker.key_file))
        client.tls_set_context(tls)
        client.on_message = self._hear
        client.connect(broker.host, broker.port)
        client.subscribe(f"alignfed/v1/{FEDERATION}/receipt/{LIAR}", 1)
        client.loop_start()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Any bytes on any topic."""
        self._client.publish(topic, payload, qos=1, retain=retain)

    def send(self, manifest: UpdateManifest, body: bytes, *, under: str = LIAR) -> str:
        """An update as nodes send it, signed with the own key, under whatever name; its id."""
        text = manifest.to_bytes()
        id_ = update_id(text)
        topic = route(FEDERATION, UpdateManifestOf(under, id_)).topic
        assert self.bundle.key is not None
        self.publish(topic, sign(self.bundle.key, topic, join_body(text, body)))
        return id_

    def statuses(self, id_: str) -> list[str]:
        return self.told.get(id_, [])

    def waits_for(self, id_: str, status: str) -> None:
        """Until the coordinator has said that of an update."""
        with self._heard:
            assert self._heard.wait_for(lambda: status in self.statuses(id_), 60), f"{id_} was told {self.told}"

    def _hear(self, client: PahoClient, data: object, message: MQTTMessage) -> None:
        receipt = json.loads(unsigned(bytes(message.payload)))
        with self._heard:
            self.told.setdefault(receipt["update_id"], []).append(receipt["status"])
            self._heard.notify_all()


@dataclass
class Scene:
    """The federation, its honest nodes, who sends an update each in a round, and the liar."""

    coordinator: Coordinator
    honest: dict[str, Any]
    liar: Stranger
    keys: Path
    newcomer: Callable[[], Any]  # one of the honest again, who has seen nothing yet
    sent: int = 0
    ids: list[str] = field(default_factory=list)

    @property
    def node(self) -> Any:
        """One of the honest, who sees what all see."""
        return self.honest[HONEST[0]]

    def delta(self, value: float = STEP, seed: int | None = None) -> Adapter:
        """One number everywhere, with a little noise."""
        noise = np.random.default_rng(self.sent if seed is None else seed).normal(0, STEP / 10, self.node.layout.size)
        return Adapter(self.node.layout, (value + noise).astype(np.float32))

    def manifest(self, body: bytes, /, **claims: object) -> UpdateManifest:
        """What the liar says of a body: the truth, but for the claims."""
        self.sent += 1
        true = {
            "node": LIAR,
            "boot_id": "0" * 32,
            "sequence": self.sent,
            "base_version": self.node.head.version,
            "base_digest": self.node.head.digest,
            "base_model": self.node.base_model,
            "layout": self.node.layout.digest,
            "examples": 4,
            "steps": 8,
            "participation": 0,
            "loss": 1.0,
            "seconds": 1.0,
            "body": describe(body, "fp32"),
        }
        return UpdateManifest.model_validate(true | claims)

    def lie(self, delta: Adapter, **claims: object) -> str:
        """Send a delta as the liar's."""
        body = encode(delta, "fp32")
        return self.liar.send(self.manifest(body, **claims), body)

    def round(self, *senders: str) -> None:
        """These, or all the honest, send an update each; four updates, those of the liar among them, are a version."""
        version = self.node.head.version
        for node in senders or HONEST:
            hand = self.honest[node]
            hand.until_version(version)
            self.sent += 1
            self.ids.append(hand.send(node, self.sent, hand.head, self.delta()))
        self.node.until_version(version + 1)


@pytest.fixture
def scene(
    node_of: Any,
    start_coordinator: Any,
    broker: EmbeddedBroker,
    keys: Path,
    base_model: Path,
) -> Iterator[Scene]:
    """A running federation at version 0."""
    settings = broker.settings.model_copy(update={"ca_file": None})
    with ExitStack() as stack:

        def by_hand(name: str, client_id: str | None = None) -> Node:
            bundle = read_bundle(keys / "nodes" / name)
            topics = ("global/keys", "global/#", f"receipt/{name}")
            filters = [f"alignfed/v1/{FEDERATION}/{topic}" for topic in topics]
            client = stack.enter_context(
                Client(bundle.reaches(settings), client_id or f"hand-{name}", subscriptions=filters, clean_start=True)
            )
            node: Node = node_of(base_model)
            node.client = SigningClient(client, bundle)  # type: ignore[assignment]
            return node

        honest = {name: by_hand(name) for name in HONEST}
        strategy = f'{{name = "alignfed", buffer_size = 4, largest_share = {STRATEGY.largest_share}}}'
        running = start_coordinator(base_model, f'strategy = {strategy}\n[security]\nkeys = "{keys}/coordinator"\n')
        bundle = read_bundle(keys / "nodes" / LIAR)
        liar = Stranger(bundle, bundle.reaches(settings))
        stack.callback(liar.close)
        for node in honest.values():
            node.until_version(0)
        yield Scene(running, honest, liar, keys, lambda: by_hand(HONEST[0], "newcomer"))
