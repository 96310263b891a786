"""What a node says, as publications: its state, its progress, and its updates whole or in chunks.

The broker's refusals end in the log; what matters is sent again until its receipt comes.
"""

import logging

from broker.client import Client
from broker.events import PayloadTooLarge, Publication, Published, QueueFull
from edge_node.outbox import Outbox
from edge_node.state import Update
from schemas.chunks import split
from schemas.messages import NodeMetrics, NodeState, UpdateManifest, join_body
from schemas.topics import Address, NodeMetricsOf, NodeStateOf, UpdateChunk, UpdateManifestOf, route

log = logging.getLogger(__name__)


def publication(federation: str, address: Address, payload: bytes) -> Publication:
    """A message for this address, with the flags that the address asks for."""
    return Publication(payload=payload, **route(federation, address)._asdict())


class Publisher:
    """The node's voice."""

    def __init__(self, client: Client, federation: str, node: str, outbox: Outbox) -> None:
        self._client, self._federation, self._node, self._outbox = client, federation, node, outbox
        self._topics: dict[int, str] = {}  # of what the broker has not answered for, by token

    def state(self, state: NodeState) -> None:
        """Birth, a new version held, or farewell."""
        self._publish(NodeStateOf(self._node), state.to_bytes())

    def metrics(self, metrics: NodeMetrics) -> None:
        """Progress; lost if the broker is away."""
        self._publish(NodeMetricsOf(self._node), metrics.to_bytes())

    def update(self, update_id: str) -> None:
        """An update of the outbox: its chunks if it has any, then its manifest."""
        update = self._outbox.load(update_id)
        for index, chunk in enumerate(_chunks(update)):
            if not self._publish(UpdateChunk(self._node, update_id, index), chunk):
                return
        self._publish(UpdateManifestOf(self._node, update_id), _manifest_payload(update))

    def chunks(self, update_id: str, wanted: tuple[int, ...]) -> None:
        """Some chunks of an update again."""
        chunks = _chunks(self._outbox.load(update_id))
        for index in wanted:
            if index < len(chunks) and not self._publish(UpdateChunk(self._node, update_id, index), chunks[index]):
                return

    def answered(self, answer: Published) -> None:
        """Say in the log what the broker refused."""
        topic = self._topics.pop(answer.token, "an unknown topic")
        if answer.reason is not None:
            log.warning("the broker refused a message on %s: %s", topic, answer.reason)

    def _publish(self, address: Address, payload: bytes) -> bool:
        """Whether the client took it."""
        message = publication(self._federation, address, payload)
        try:
            token = self._client.publish(message)
        except (PayloadTooLarge, QueueFull) as fault:
            log.warning("not sent for now: %s", fault)
            return False
        if message.qos > 0:
            self._topics[token] = message.topic
        return True


def _chunks(update: Update) -> tuple[bytes, ...]:
    in_chunks = UpdateManifest.from_bytes(update.manifest).body.chunks
    return split(update.body, update.chunk_size) if in_chunks else ()


def _manifest_payload(update: Update) -> bytes:
    """The manifest's own bytes, for they decide the id, with the body behind them if it is inline."""
    inline = not UpdateManifest.from_bytes(update.manifest).body.chunks
    return join_body(update.manifest, update.body) if inline else update.manifest
