"""Private examples from the gateway's own broker: a second connection that listens on one filter and says nothing.

A message is acknowledged once its examples are on disk. It knows no federation topic, and has no means to publish.
"""

import logging
import socket
import sqlite3
import threading
from collections.abc import Callable

from broker.client import Client
from broker.events import Disconnected, Message, NetworkThreadDied, Subscribed
from broker.settings import BrokerSettings
from edge_node.data.local_data import LocalData
from edge_node.data.settings import LocalBrokerSettings

log = logging.getLogger(__name__)

SOURCE = "mqtt"
RETRY_S = 30.0  # after a disk that took nothing
STOP_S = 2.0


class SharedBroker(ValueError):
    """The local broker is the federation's, and the owner did not say so."""


def refuse_federation_broker(local: LocalBrokerSettings, federation: BrokerSettings) -> None:
    """Raise SharedBroker when both are one broker, as far as names and addresses tell, and that is not meant."""
    if not local.is_federation_broker and local.port == federation.port and _hosts(local) & _hosts(federation):
        raise SharedBroker(
            f"edge.local_broker is the federation's broker {federation.address}: private examples would be published "
            "where the whole federation meets. Name the gateway's own broker, or set "
            "edge.local_broker.is_federation_broker = true if you mean it"
        )


def _hosts(broker: BrokerSettings) -> set[str]:
    """The name and every address that it stands for here."""
    try:
        found = socket.getaddrinfo(broker.host, broker.port, type=socket.SOCK_STREAM)
    except OSError:
        return {broker.host.lower()}
    addresses = {str(address[0]) for *_, address in found}
    return {broker.host.lower(), *("127.0.0.1" if address == "::1" else address for address in addresses)}


class LocalFeed:
    """One listener and its thread; `emit` is given the error that the thread died of."""

    def __init__(
        self, settings: LocalBrokerSettings, client_id: str, data: LocalData, emit: Callable[[Exception], None]
    ) -> None:
        # the session is kept: what devices say while the node restarts waits for it
        self._client = Client(settings, client_id, subscriptions=(settings.topic,))
        self._settings, self._data, self._emit = settings, data, emit
        self._refused = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="examples", daemon=True)

    def start(self) -> None:
        """Begin to listen; a broker that is away is waited for."""
        self._client.start()
        self._thread.start()

    def stop(self) -> None:
        """End; what is not acknowledged comes again."""
        self._ended.set()
        self._client.stop(STOP_S)
        self._thread.join(STOP_S)

    def _work(self) -> None:
        try:
            while not self._ended.is_set():
                self._turn()
        except NetworkThreadDied as fault:
            if not self._ended.is_set():
                self._emit(fault)
        except Exception as error:  # carried to the main loop, which stops loudly
            self._emit(error)

    def _turn(self) -> None:
        match self._client.next_event(1.0):
            case Message() as message:
                self._take(message)
            case Disconnected(reason):
                log.warning("local broker: %s", reason)
            case Subscribed(topic_filter, None):
                log.info("listening to %s on the local broker %s", topic_filter, self._settings.address)
            case Subscribed(topic_filter, reason):
                log.warning("the local broker refused the subscription to %s: %s", topic_filter, reason)

    def _take(self, message: Message) -> None:
        while not self._ended.is_set():
            try:
                refused = self._data.add_lines(SOURCE, message.payload)
            except sqlite3.OperationalError as fault:
                log.warning("an example could not be kept: %s; next try in %.0f s", fault, RETRY_S)
                self._ended.wait(RETRY_S)
                continue
            self._client.ack(message)
            self._complain(refused)
            return

    def _complain(self, refused: int) -> None:
        """Warn of the 1st, 2nd, 4th, 8th ...: a flood of garbage must not become a flood of lines."""
        before, self._refused = self._refused, self._refused + refused
        if self._refused.bit_length() > before.bit_length():
            log.warning("%d lines from the local broker are no examples; `alignfed edge data` says why", self._refused)
