"""The shell around the core: MQTT -> journal -> step -> carry out the effects. It decides nothing.

Order matters: a message is in the journal, on disk, before its receipt is sent, and its receipt is queued before the
broker is told that the message is dealt with. Whatever a crash interrupts is done again from the journal.
"""

import logging
import secrets
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from base_model.layout import initial_adapter, layout_of
from base_model.reference import resolve
from base_model.settings import BaseModelSettings
from base_model.wheel import BaseModelError
from broker.client import Client
from broker.events import Connected, Disconnected, Message, NetworkThreadDied, PayloadTooLarge, Published, Subscribed
from broker.recording import RecordingError, row_of, transaction
from broker.settings import BrokerSettings
from coordinator import publisher
from coordinator.core import next_deadline, step
from coordinator.journal import open_journal, record, row_of_event
from coordinator.publisher import PhasedPublisher, PublishRefused
from coordinator.recovery import FederationDiffers, restore
from coordinator.registry import Registry, RegistryError
from coordinator.settings import CoordinatorSettings
from coordinator.state import (
    Drop,
    Effect,
    FederationConfig,
    FederationState,
    PublishVersion,
    Received,
    SendReceipt,
    Ticked,
)
from schemas.adapter import Adapter
from schemas.codec import UPDATE_CODECS
from schemas.messages import CoordinatorState, GlobalManifest
from schemas.topics import CoordinatorStateOf, ReceiptFor, UpdateChunk, UpdateManifestOf, topic_filter

log = logging.getLogger("coordinator")

BATCH = 64  # messages committed together; a commit waits for the disk
SMALLEST_PACKET_LIMIT = 128 * 1024  # a chunk of 120 KiB with its headers fits
WAKE_S = 0.5  # the longest wait, so that a signal to stop is noticed
EXPECTED = (
    BaseModelError,
    FederationDiffers,
    NetworkThreadDied,
    PayloadTooLarge,
    PublishRefused,
    RecordingError,
    RegistryError,
    OSError,
)


def run(federation: str, base_model: BaseModelSettings, broker: BrokerSettings, settings: CoordinatorSettings) -> int:
    """Coordinate until SIGTERM or SIGINT. Returns 0 after a clean stop, 1 after an error that was logged."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the loop runs, either signal is an exception
    try:
        with _alone_in(settings.data_dir), closing(open_journal(settings.data_dir / "journal.db")) as journal:
            log.info("finding base model %s", base_model.name)
            config, adapter = terms(federation, base_model, settings)
            registry = Registry(settings.data_dir / "adapters")
            state = restore(journal, registry, config, adapter, time.time_ns())
            with _stop_signals() as stopping:
                Service(state, broker, settings, journal, registry).run_until(stopping)
    except KeyboardInterrupt:
        return 0
    except EXPECTED as error:
        log.error("%s", error)
        return 1
    return 0


def terms(
    federation: str, base_model: BaseModelSettings, settings: CoordinatorSettings
) -> tuple[FederationConfig, Adapter]:
    """The federation's terms and its first adapter, from the base model's files and the settings."""
    resolved = resolve(base_model.name, base_model.cache)
    layout = layout_of(resolved, settings.lora)
    config = FederationConfig(
        federation=federation,
        base_model=resolved.digest,
        base_model_name=base_model.name,
        layout=layout,
        strategy=settings.strategy,
        limits=settings.limits,
        final_version=settings.final_version,
    )
    return config, initial_adapter(layout, settings.seed)


class Service:
    """One coordinator process: a journal, the state folded from it, and a connection to the broker."""

    def __init__(
        self,
        state: FederationState,
        broker: BrokerSettings,
        settings: CoordinatorSettings,
        journal: sqlite3.Connection,
        registry: Registry,
    ) -> None:
        self.state = state
        self.federation = state.config.federation
        self.keep = settings.keep_versions
        self.journal = journal
        self.registry = registry
        self.boot_id = secrets.token_hex(16)
        self.drops = Counter[str]()
        will = publisher.publication(self.federation, CoordinatorStateOf(), self._birth(online=False))
        filters = [topic_filter(self.federation, kind) for kind in (UpdateManifestOf, UpdateChunk)]
        self.client = Client(broker, f"{self.federation}:coordinator", will=will, subscriptions=filters)
        self.publisher = PhasedPublisher(self.client)

    def run_until(self, stopping: "StopFlag") -> None:
        """Serve until asked to stop; the farewell marks this coordinator as away."""
        with self.client:
            try:
                while not stopping.is_set:
                    self._turn()
            finally:
                log.info("stopping at version %d", self.state.head.version)
                self._announce(online=False)

    def _turn(self) -> None:
        """Wait for one event or the next deadline, and deal with it."""
        event = self.client.next_event(self._patience_s())
        batch = []
        while isinstance(event, Message):
            batch.append(event)
            event = self.client.next_event(0) if len(batch) < BATCH else None
        if batch:
            self._take(batch)
        deadline = next_deadline(self.state)
        if deadline is not None and time.time_ns() >= deadline:
            self._tick()
        match event:
            case Connected(max_packet_size=limit) if limit is not None and limit < SMALLEST_PACKET_LIMIT:
                raise PublishRefused(
                    f"the broker takes packets of {limit} bytes and the coordinator publishes chunks in packets of "
                    f"{SMALLEST_PACKET_LIMIT}: raise the broker's limit, in mosquitto.conf by max_packet_size"
                )
            case Connected():
                log.info("connected to the broker; publishing version %d", self.state.head.version)
                self._reassert()
            case Disconnected(reason):
                log.warning("%s", reason)
            case Subscribed(refused, reason) if reason is not None:
                log.error("the broker refused the subscription to %s: %s; check the access rights", refused, reason)
            case Published():
                self.publisher.on_published(event)

    def _take(self, messages: list[Message]) -> None:
        """Journal and decide on a batch in one transaction, then act, then acknowledge."""
        state, effects = self.state, list[Effect]()
        with transaction(self.journal):
            for message in messages:
                event = Received(message.received_at_ns, message.topic, message.payload)
                state, more = step(state, event)
                record(self.journal, row_of(message), more)
                effects += more
        self.state = state
        self._carry_out(effects)
        for message in messages:
            self.client.ack(message)

    def _tick(self) -> None:
        event = Ticked(time.time_ns())
        state, effects = step(self.state, event)
        with transaction(self.journal):
            record(self.journal, row_of_event(event), effects)
        self.state = state
        self._carry_out(effects)

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendReceipt(node, receipt):
                    self._send(ReceiptFor(node), receipt.to_bytes())
                    level = logging.WARNING if receipt.reason else logging.DEBUG
                    log.log(level, "%s %s of %s: %s", receipt.status, receipt.update_id[:8], node, receipt.reason)
                case PublishVersion(manifest, adapter):
                    self.registry.add(manifest, adapter)
                    self._publish_version(manifest)
                case Drop(reason, detail):
                    self._log_drop(reason, detail)

    def _log_drop(self, reason: str, detail: str) -> None:
        """Warn of the 1st, 2nd, 4th, 8th ... of a kind: a flood of messages must not become a flood of lines."""
        self.drops[reason] += 1
        count = self.drops[reason]
        level = logging.WARNING if count & (count - 1) == 0 else logging.DEBUG
        log.log(level, "dropped: %s, %d so far (%s)", reason, count, detail)

    def _publish_version(self, manifest: GlobalManifest) -> None:
        log.info("version %d (%s) from %d updates", manifest.version, manifest.digest[:12], len(manifest.inputs))
        federation, keep = self.federation, self.keep
        dropped = [self.registry.manifest(manifest.version - keep)] if manifest.version >= keep else []
        self.publisher.add(
            publisher.bodies(federation, self.registry, [manifest]),
            publisher.pointers(federation, manifest, self.state.epoch),
            publisher.deletions(federation, dropped),
        )
        if manifest.version == self.state.config.final_version:
            log.info("version %d is the last one", manifest.version)
            self._announce(online=True)

    def _reassert(self) -> None:
        """Publish everything that is retained again: the broker may have lost any of it."""
        federation, head, keep = self.federation, self.state.head.version, self.keep
        kept = [self.registry.manifest(version) for version in range(max(0, head - keep + 1), head + 1)]
        # a crash may have cut deletions short: repeat those of the last few versions
        dropped = [self.registry.manifest(v) for v in range(max(0, head - 3 * keep), max(0, head - keep + 1))]
        self._announce(online=True)
        self.publisher.start_over(
            publisher.bodies(federation, self.registry, kept),
            publisher.pointers(federation, kept[-1], self.state.epoch),
            publisher.deletions(federation, dropped),
        )

    def _announce(self, *, online: bool) -> None:
        self._send(CoordinatorStateOf(), self._birth(online=online))

    def _birth(self, *, online: bool) -> bytes:
        config = self.state.config
        return CoordinatorState(
            online=online,
            boot_id=self.boot_id,
            epoch=self.state.epoch,
            base_model=config.base_model,
            base_model_name=config.base_model_name,
            lora=config.layout.lora,
            layout=config.layout.digest,
            strategy=config.strategy.name,
            one_update_per_version=config.strategy.one_update_per_version,
            codecs=UPDATE_CODECS,
            finished=self.state.finished,
        ).to_bytes()

    def _send(self, address: CoordinatorStateOf | ReceiptFor, payload: bytes) -> None:
        self.client.publish(publisher.publication(self.federation, address, payload))

    def _patience_s(self) -> float:
        deadline = next_deadline(self.state)
        return WAKE_S if deadline is None else min(WAKE_S, max(0.0, (deadline - time.time_ns()) / 1e9))


class StopFlag:
    """Set by SIGTERM or SIGINT."""

    is_set = False


class AlreadyRunning(OSError):
    """Another process works in the same data folder."""


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the operating system lets go of it when the process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise AlreadyRunning(f"another coordinator works in {folder}: stop it, or use another data_dir") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _stop_signals() -> Iterator[StopFlag]:
    flag = StopFlag()

    def stop(*_: object) -> None:
        flag.is_set = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
