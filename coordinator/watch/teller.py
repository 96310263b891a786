"""Tells Home Assistant of the nodes, and then of what has changed; `home_assistant.py` says what there is to tell."""

import logging
import time
from collections.abc import Callable

from broker.connection import Connection
from broker.events import Published, QueueFull
from coordinator.settings import HomeAssistantSettings
from coordinator.trust.voice import Voice
from coordinator.watch.home_assistant import publications
from coordinator.watch.status import Status

log = logging.getLogger("coordinator")

MOST_WAITING = 500  # publications, before these are held back: others need the broker more


class Teller:
    """Publishes what is not yet known there, every so often; without settings it says nothing."""

    def __init__(self, settings: HomeAssistantSettings | None, connection: Connection, voice: Voice) -> None:
        self._settings, self._connection, self._voice = settings, connection, voice
        self._told: dict[str, bytes] = {}
        self._unacknowledged: dict[int, str] = {}
        self._due = 0.0

    def tell(self, status: Callable[[], Status | None]) -> None:
        """Publish what has changed since it was last published, if it is time to."""
        now = time.monotonic()
        if self._settings is None or now < self._due or (known := status()) is None:
            return
        self._due = now + self._settings.every_s
        for publication in publications(known, self._settings.prefix):
            if self._connection.traffic.waiting > MOST_WAITING:
                return  # the rest when the broker has taken these
            if self._told.get(publication.topic) != publication.payload:
                try:
                    self._unacknowledged[self._voice.publish(publication)] = publication.topic
                except QueueFull:
                    return
                self._told[publication.topic] = publication.payload

    def on_published(self, event: Published) -> None:
        """Say so where the broker refuses it; an acknowledgement of somebody else's publication is ignored."""
        topic = self._unacknowledged.pop(event.token, None)
        if topic is not None and event.reason is not None:
            advice = "with keys, `alignfed keys home-assistant` makes the access rules"
            log.warning("the broker refused %s: %s; Home Assistant is not told: %s", topic, event.reason, advice)

    def start_over(self) -> None:
        """Tell all of it again: the broker may have lost any."""
        self._told.clear()
        self._unacknowledged.clear()
