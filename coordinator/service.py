"""The shell around the core: MQTT -> journal -> step -> carry out the effects. It decides nothing.

Order matters: a message is in the journal, on disk, before its receipt is sent, and its receipt is queued before the
broker is told that the message is dealt with. Whatever a crash interrupts is done again from the journal.
"""

import logging
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from broker.connection import Connect
from broker.events import (
    Connected,
    Disconnected,
    Message,
    Published,
    Subscribed,
)
from broker.events import (
    Event as ClientEvent,
)
from broker.recording import Row, path_of, row_of
from coordinator.announcer import Announcer, own_state
from coordinator.checkpoint import Keeper
from coordinator.core import next_deadline, step
from coordinator.intake import NS_PER_S
from coordinator.journal import record, record_nodes, row_of_event
from coordinator.lease import Lease
from coordinator.model_process import ModelProcess
from coordinator.operations import order_file
from coordinator.operations.obeying import answer_to, event_of_order
from coordinator.poison import PoisonGuard
from coordinator.publisher import PublishRefused
from coordinator.recovery import Restored
from coordinator.registry import Registry
from coordinator.settings import CoordinatorSettings
from coordinator.state import (
    Answered,
    AskModel,
    Drop,
    Effect,
    KeysChanged,
    Ordered,
    OwnEvent,
    Poisoned,
    PublishRelease,
    PublishVersion,
    RaiseAlarm,
    Received,
    RolledBack,
    SendReceipt,
    Ticked,
)
from coordinator.trust.seals import Seals
from coordinator.trust.voice import CoordinatorKeys, Voice
from coordinator.watch.board import Board
from coordinator.watch.fleet import Fleet, hear, is_of_nodes
from coordinator.watch.history import observe
from coordinator.watch.status import Facts, ProcessStatus
from coordinator.watch.teller import Teller
from schemas.messages import GlobalManifest, ReleaseReport
from schemas.topics import (
    Address,
    NodeMetricsOf,
    NodeStateOf,
    UpdateChunk,
    UpdateManifestOf,
    parse,
    topic_filter,
)

log = logging.getLogger("coordinator")

UPDATES = (UpdateManifestOf, UpdateChunk)
BATCH = 64  # messages committed together; a commit waits for the disk
SMALLEST_PACKET_LIMIT = 128 * 1024  # a chunk of 120 KiB with its headers fits
WAKE_S = 0.5  # the longest wait, so that a signal to stop is noticed
ANSWER_S = 0.02  # the same while the base model is asked


class Service:
    """One coordinator process: a journal, the state folded from it, and a connection to the broker."""

    def __init__(
        self,
        restored: Restored,
        connect: Connect,
        settings: CoordinatorSettings,
        journal: sqlite3.Connection,
        lease: Lease,
        registry: Registry,
        model: ModelProcess | None,
        board: Board,
        keys: CoordinatorKeys | None,
        now_ns: Callable[[], int] = time.time_ns,
        boot_id: str | None = None,
    ) -> None:
        self.now_ns = now_ns
        state = self.state = restored.state
        self.history = restored.history
        self.fleet: Fleet = {}
        self.board = board
        self.started_at_ns = self.seen_ns = self.now_ns()
        self.is_connected = False
        self.keys = keys
        self.federation = state.config.federation
        self.data_dir = settings.data_dir
        self.journal, self.journal_file = journal, path_of(journal)
        self.lease = lease
        self.keeper = Keeper(journal, lease, registry, restored.folding_s)
        self.poison = PoisonGuard(settings.data_dir)
        self.registry, self.seals = registry, Seals(registry, keys, self.federation)
        self.model = model
        self.boot_id = boot_id or secrets.token_hex(16)
        self.drops = Counter[str]()
        self.unread = 0  # messages that the client has dropped
        self.looked_at_ns = 0  # for orders
        order_file.begin(self.data_dir, state.orders)
        will = own_state(state, self.boot_id, online=False)
        heard = (*UPDATES, *((NodeStateOf, NodeMetricsOf) if settings.listens_to_nodes else ()))
        filters = [topic_filter(self.federation, kind) for kind in heard]
        self.client = connect(keys.signed(will) if keys is not None else will, filters)
        voice = Voice(self.client, keys, lease)
        self.announcer = Announcer(
            self.client, voice, registry, keys, settings, state, self.boot_id, now_ns, self._log_drop
        )
        self.teller = Teller(settings.home_assistant, self.client, voice)

    def run_until(self, stopping: "StopFlag", questions: Iterable[Effect]) -> None:
        """Serve until asked to stop, beginning with these questions; the farewell marks this coordinator as away."""
        self.begin(questions)
        with self.client:
            try:
                while not stopping.is_set:
                    self._show()
                    self.turn()
                    if self.is_connected:
                        self.teller.tell(self.board.status)
            finally:
                log.info("stopping at version %d", self.state.head.version)
                if self.lease.is_lost:  # another one is there: what waits here must not go out any more
                    self.client.stop(0)
                else:
                    self.announcer.farewell(self.state)

    def begin(self, questions: Iterable[Effect]) -> None:
        """Do what a crash has left undone, and ask the base model what is open."""
        self.seals.seal_what_is_open(self.state)
        self._carry_out(questions)

    def turn(self) -> None:
        """Wait for one event or the next deadline, and deal with it."""
        self.lease.confirm()
        event = self.client.next_event(self._patience_s())
        batch = []
        while isinstance(event, Message):
            batch.append(self._not_of_later(event))
            event = self.client.next_event(0) if len(batch) < BATCH else None
        if batch:
            self._take(batch)
        self._listen_to_model()
        self._look_at_keys()
        self._listen_to_operator()
        self._look_at_clock()
        self._hear_of_broker(event)
        if self.keeper.is_due:
            self.keeper.keep(self.state, self.history)

    def _look_at_clock(self) -> None:
        """Tick when time is due, or the clock was set back: what waits for a time must not wait for it anew."""
        now_ns, deadline = self.now_ns(), next_deadline(self.state)
        fell_ns, self.seen_ns = self.seen_ns - now_ns, now_ns
        if fell_ns > NS_PER_S:
            log.warning("the clock of this machine was set back by %.0f s", fell_ns / NS_PER_S)
            self.announcer.on_clock_set_back()
        if fell_ns > NS_PER_S or (deadline is not None and now_ns >= deadline):
            self._happen(Ticked(now_ns))

    def _hear_of_broker(self, event: ClientEvent | None) -> None:
        """Deal with what is no message: the connection, the subscriptions, the publications."""
        match event:
            case Connected(max_packet_size=limit) if limit is not None and limit < SMALLEST_PACKET_LIMIT:
                raise PublishRefused(
                    f"the broker takes packets of {limit} bytes and the coordinator publishes chunks in packets of "
                    f"{SMALLEST_PACKET_LIMIT}: raise the broker's limit, in mosquitto.conf by max_packet_size"
                )
            case Connected():
                self.is_connected = True
                log.info("connected to the broker; publishing version %d", self.state.head.version)
                self._say_everything()
            case Disconnected(reason):
                self.is_connected = False
                self.announcer.pause()
                log.warning("%s", reason)
            case Subscribed(refused, reason) if reason is not None:
                log.error("the broker refused the subscription to %s: %s; check the access rights", refused, reason)
            case Published():
                self.announcer.on_published(event)
                self.teller.on_published(event)

    def _take(self, messages: list[Message]) -> None:
        """Journal and decide on a batch in one transaction, then act, then acknowledge."""
        state, history, effects = self.state, self.history, list[Effect]()
        with self.keeper.deciding(), self.lease.transaction():
            for message in messages:
                address = parse(self.federation, message.topic)
                if address is None:  # it could pass for an event of our own, once it is in the journal
                    self._log_drop("unexpected topic", repr(message.topic[:100]))
                    continue
                event, row = self._event_of(message)
                with self.poison.taking(message.topic):
                    if self._listens_to_node(address, event):
                        continue
                    state, more = step(state, event)
                record(self.journal, row, more)
                history = observe(history, event, more, event.at_ns)
                effects += more
            record_nodes(self.journal, self.state, state)
        self.state, self.history = state, history
        self._carry_out(effects)
        for message in messages:
            self.client.ack(message)

    def _not_of_later(self, message: Message) -> Message:
        """The message; one that came before the clock was set back, as of now."""
        now_ns = self.now_ns()
        return message if message.received_at_ns <= now_ns else replace(message, received_at_ns=now_ns)

    def _event_of(self, message: Message) -> tuple[Received | Poisoned, Row]:
        """What a message is to the core, and its row: as it came, or set aside because the process dies of it."""
        about = message.received_at_ns, message.topic, message.payload
        if self.poison.is_poison(message.topic):
            return (poisoned := Poisoned(*about)), row_of_event(poisoned)
        return Received(*about), row_of(message)

    def _listens_to_node(self, address: Address, event: Received | Poisoned) -> bool:
        """Whether a message is what a node says of itself, which is shown and never journalled."""
        if isinstance(event, Received):
            self.fleet = hear(self.fleet, address, event.payload, event.at_ns, self.state.config.limits.nodes)
        return is_of_nodes(address)

    def _look_at_keys(self) -> None:
        """Take up what the operator has changed of the keys, and renew pointers before they expire."""
        if self.keys is None:
            return
        ring, rotated = self.keys.reload()
        if ring is not None:
            log.info("key ring %d: %d nodes are enrolled", ring.number, len(ring.enrolled))
            self._happen(KeysChanged(self.now_ns(), ring))
        if rotated is not None:
            log.info("signing with a new key from now on: certificate %d", rotated.certificate.number)
            self._say_everything()
        else:
            self.announcer.renew(self.state)

    def _listen_to_model(self) -> None:
        """Take in the base model's answer, if there is one."""
        if self.model is not None and (answer := self.model.answer()) is not None:
            self._happen(Answered(self.now_ns(), *answer))

    def _listen_to_operator(self) -> None:
        """Take in the orders that were given since the last look, and say what came of each."""
        if 0 <= self.now_ns() - self.looked_at_ns < WAKE_S * NS_PER_S:
            return
        self.looked_at_ns = self.now_ns()
        for given in order_file.waiting(self.data_dir, self.state.orders):
            event = event_of_order(given, self.state.orders, self.registry, self.journal, self.now_ns())
            if isinstance(event, Ordered | RolledBack):
                log.warning("order %d: %s", given.number, given.payload.decode(errors="replace"))
                self._happen(event)
            order_file.answer(self.data_dir, given.number, answer_to(event, self.state))

    def _happen(self, event: OwnEvent) -> None:
        """Journal and decide on something that is not a message, then act."""
        with self.keeper.deciding():
            state, effects = step(self.state, event)
            with self.lease.transaction():
                record(self.journal, row_of_event(event), effects)
                record_nodes(self.journal, self.state, state)
            self.state, self.history = state, observe(self.history, event, effects, event.at_ns)
        self._carry_out(effects)

    def _show(self) -> None:
        """Let others see what is known by now."""
        traffic = self.client.traffic
        if traffic.dropped.bit_length() > self.unread.bit_length():
            text = (
                "%d messages were dropped unread: more come than can be taken in; nodes send again what has no answer"
            )
            log.warning(text, traffic.dropped)
        self.unread = traffic.dropped
        process = ProcessStatus(
            boot_id=self.boot_id,
            started_at_ns=self.started_at_ns,
            connected=self.is_connected,
            messages_in=traffic.messages_in,
            bytes_in=traffic.bytes_in,
            messages_out=traffic.messages_out,
            bytes_out=traffic.bytes_out,
            publications_waiting=traffic.waiting,
            questions_waiting=self.model.waiting if self.model is not None else 0,
            journal_bytes=self.journal_file.stat().st_size,
        )
        self.board.show(Facts(self.state, self.history, self.fleet, process, self.now_ns()))

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendReceipt(node, receipt):
                    self.announcer.answer(node, receipt)
                    level = logging.WARNING if receipt.reason else logging.DEBUG
                    about: dict[str, str | int] = {"node": node, "update": receipt.update_id}
                    about |= {} if receipt.version is None else {"version": receipt.version}
                    text = "%s %s of %s: %s"
                    log.log(level, text, receipt.status, receipt.update_id[:8], node, receipt.reason, extra=about)
                case PublishVersion(manifest, adapter):
                    self.registry.add(manifest, adapter)
                    self.seals.seal(manifest)
                    _log_version(manifest, self.state.config.final_version)
                    self.announcer.version(self.state, manifest)
                case PublishRelease(report, adapter):
                    self.registry.set_release(report, adapter)
                    self.seals.seal_decision(report)
                    _log_release(report)
                    self.announcer.release(self.state, report)
                case AskModel(question_id, question):
                    assert self.model is not None  # strategies ask only where the terms have a calibration set
                    self.model.ask(question_id, question)
                case Drop(reason, detail):
                    self._log_drop(reason, detail)
                case RaiseAlarm(node, ledger):
                    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(ledger.refusals.items()))
                    log.warning("alarm: %.0f %% of the updates of %s are refused (%s), last because %s",
                                100 * ledger.refused_share, node, counts, ledger.last_refusal)  # fmt: skip

    def _log_drop(self, reason: str, detail: str) -> None:
        """Warn of the 1st, 2nd, 4th, 8th ... of a kind: a flood of messages must not become a flood of lines."""
        self.drops[reason] += 1
        count = self.drops[reason]
        level = logging.WARNING if count & (count - 1) == 0 else logging.DEBUG
        log.log(level, "dropped: %s, %d so far (%s)", reason, count, detail)

    def _say_everything(self) -> None:
        self.teller.start_over()
        self.announcer.everything(self.state)

    @property
    def deadline(self) -> int | None:
        """When time alone gives it something to do, in ns since 1970; None while nothing waits for time."""
        due = (next_deadline(self.state), self.announcer.renewal_ns)
        return min((at_ns for at_ns in due if at_ns is not None), default=None)

    def _patience_s(self) -> float:
        longest = ANSWER_S if self.state.open_questions else WAKE_S
        deadline = self.deadline
        return longest if deadline is None else min(longest, max(0.0, (deadline - self.now_ns()) / 1e9))


def _log_version(manifest: GlobalManifest, last: int | None) -> None:
    text, about = "version %d (%s) from %d updates", {"version": manifest.version}
    log.info(text, manifest.version, manifest.digest[:12], len(manifest.inputs), extra=about)
    if manifest.version == last:
        log.info("version %d is the last one", last)


def _log_release(report: ReleaseReport) -> None:
    taken = "" if report.is_taken else f"; version {report.judged} was turned down"
    if report.is_overruled:
        taken = "; the gate finds it worse, and most nodes better: is the calibration set unlike the fleet?"
    about = {"version": report.version}
    log.info("nodes serve the %s of version %d%s", report.variant, report.version, taken, extra=about)


class StopFlag:
    """Set by SIGTERM or SIGINT."""

    is_set = False
