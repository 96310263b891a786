"""What a node says, as publications: its state, its progress, and its updates whole or in chunks.

The broker's refusals end in the log; what matters is sent again until its receipt comes. Updates go out piece by piece,
the next one when the broker has the one before: a link that is cut costs what was in the midst of it.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from broker.bundle import Bundle
from broker.connection import Connection
from broker.events import PayloadTooLarge, Publication, Published, QueueFull
from edge_node.outbox import Outbox
from edge_node.state import Update
from schemas.messages import NodeMetrics, NodeState, UpdateManifest, join_body
from schemas.topics import Address, NodeMetricsOf, NodeStateOf, UpdateChunk, UpdateManifestOf, route

log = logging.getLogger(__name__)


def publication(federation: str, address: Address, payload: bytes) -> Publication:
    """A message for this address, with the flags that the address asks for."""
    return Publication(payload=payload, **route(federation, address)._asdict())


class Publisher:
    """The node's voice; `handed_over` is told of an update that the broker has all that was to be sent of it."""

    def __init__(
        self,
        client: Connection,
        federation: str,
        node: str,
        outbox: Outbox,
        handed_over: Callable[[str], None],
        bundle: Bundle | None,
    ) -> None:
        self._client, self._federation, self._node, self._outbox = client, federation, node, outbox
        self._handed_over, self._bundle = handed_over, bundle
        self._topics: dict[int, str] = {}  # of what the broker has not answered for, by token
        self._pieces: deque[_Piece] = deque()  # of updates, in the order of sending
        self._in_flight: tuple[int, _Piece] | None = None  # the one that the broker has not answered for, by its token
        self._at_hand: Update | None = None  # the one that is being sent: no other's body is in memory

    def state(self, state: NodeState) -> None:
        """Birth, a new version held, or farewell."""
        self._publish(NodeStateOf(self._node), state.to_bytes())

    def metrics(self, metrics: NodeMetrics) -> None:
        """Progress; lost if the broker is away."""
        self._publish(NodeMetricsOf(self._node), metrics.to_bytes())

    def update(self, update_id: str) -> None:
        """An update of the outbox: its chunks if it has any, then its manifest."""
        chunks = range(_number_of_chunks(self._outbox.manifest(update_id)))
        self._add(*(_Piece(update_id, index) for index in chunks), _Piece(update_id, None))

    def offer(self, update_id: str) -> None:
        """The manifest of an update alone, so that the coordinator asks for what it misses."""
        self._add(_Piece(update_id, None))

    def chunks(self, update_id: str, wanted: tuple[int, ...]) -> None:
        """Some chunks of an update again."""
        there = _number_of_chunks(self._outbox.manifest(update_id))
        self._add(*(_Piece(update_id, index) for index in wanted if index < there))
        self._tell_if_done(update_id)

    def forget(self, update_id: str) -> None:
        """Send no more of an update that has left the outbox."""
        self._pieces = deque(piece for piece in self._pieces if piece.update_id != update_id)
        self._put_away(update_id)

    def answered(self, answer: Published) -> None:
        """Say in the log what the broker refused, and go on with the next piece."""
        topic = self._topics.pop(answer.token, "an unknown topic")
        if answer.reason is not None:
            log.warning("the broker refused a message on %s: %s", topic, answer.reason)
        if self._in_flight is not None and self._in_flight[0] == answer.token:
            update_id, self._in_flight = self._in_flight[1].update_id, None
            if answer.reason is not None:
                self.forget(update_id)
            self._tell_if_done(update_id)
            self._send_next()

    def _add(self, *pieces: "_Piece") -> None:
        self._pieces.extend(pieces)
        self._send_next()

    def _send_next(self) -> None:
        """One piece at a time: whatever a lost link takes along is less than two."""
        while self._pieces and self._in_flight is None:
            piece = self._pieces.popleft()
            token = self._publish(piece.address(self._node), self._payload(piece))
            if token is not None:
                self._in_flight = (token, piece)
                return
            self.forget(piece.update_id)
            self._tell_if_done(piece.update_id)

    def _tell_if_done(self, update_id: str) -> None:
        in_flight = [] if self._in_flight is None else [self._in_flight[1]]
        if all(piece.update_id != update_id for piece in (*in_flight, *self._pieces)):
            self._put_away(update_id)
            self._handed_over(update_id)

    def _payload(self, piece: "_Piece") -> bytes:
        """A chunk; or the manifest's own bytes, for they decide the id, with the body behind them if it is inline."""
        if piece.chunk is not None:
            update = self._taken_out(piece.update_id)
            start = piece.chunk * update.chunk_size
            return update.body[start : start + update.chunk_size]
        manifest = self._outbox.manifest(piece.update_id)
        if _number_of_chunks(manifest):
            return manifest
        return join_body(manifest, self._taken_out(piece.update_id).body)

    def _taken_out(self, update_id: str) -> Update:
        """The update with its body, read once for all pieces that go out in a row."""
        if self._at_hand is None or self._at_hand.update_id != update_id:
            self._at_hand = None  # before the other is read
            self._at_hand = self._outbox.load(update_id)
        return self._at_hand

    def _put_away(self, update_id: str) -> None:
        if self._at_hand is not None and self._at_hand.update_id == update_id:
            self._at_hand = None

    def _publish(self, address: Address, payload: bytes) -> int | None:
        """The client's token; None when it would not take the message."""
        message = publication(self._federation, address, payload)
        message = message if self._bundle is None else self._bundle.signed(message)
        try:
            token = self._client.publish(message)
        except (PayloadTooLarge, QueueFull) as fault:
            log.warning("not sent for now: %s", fault)
            return None
        if message.qos > 0:
            self._topics[token] = message.topic
        return token


class _Piece(NamedTuple):
    """A chunk of an update by its number, or, without one, its manifest."""

    update_id: str
    chunk: int | None

    def address(self, node: str) -> Address:
        if self.chunk is None:
            return UpdateManifestOf(node, self.update_id)
        return UpdateChunk(node, self.update_id, self.chunk)


def _number_of_chunks(manifest: bytes) -> int:
    return len(UpdateManifest.from_bytes(manifest).body.chunks)
