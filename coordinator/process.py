"""The coordinator as a process: from settings and what is on disk to the service, and an end that says why.

It opens the journal, waits for the right to decide, restores the federation, and starts what runs beside: the base
model's process and the pages for who looks on. It decides nothing.
"""

import logging
import secrets
import signal
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock

from base_model.examples import InvalidExamples
from base_model.layout import initial_adapter, layout_of
from base_model.reference import ResolvedModel, resolve
from base_model.settings import BaseModelSettings
from base_model.wheel import BaseModelError
from broker.client import Client
from broker.connection import Connect, Connection
from broker.events import (
    NetworkThreadDied,
    PayloadTooLarge,
    Publication,
)
from broker.key_files import KeyFileError
from broker.recording import RecordingError
from broker.security import WITHOUT_KEYS, OpenBroker, SecuritySettings, refuse_open_broker
from broker.settings import BrokerSettings
from coordinator.calibration import CalibrationSet
from coordinator.journal import open_journal
from coordinator.lease import Lease, LeaseLost
from coordinator.model_process import ModelJob, ModelProcess, ModelProcessDied
from coordinator.privacy.accounting import AccountantMissing, epsilon
from coordinator.privacy.noise import KEY_BYTES
from coordinator.privacy.terms import fitted
from coordinator.publisher import PublishRefused
from coordinator.recovery import FederationDiffers, restore_with_history
from coordinator.registry import Registry, RegistryError
from coordinator.service import Service, StopFlag
from coordinator.settings import CalibrationSettings, CoordinatorSettings
from coordinator.state import (
    CalibrationTerms,
    FederationConfig,
)
from coordinator.trust.voice import CoordinatorKeys
from coordinator.watch.board import Board
from schemas.adapter import Adapter

log = logging.getLogger("coordinator")

EXPECTED = (
    AccountantMissing,
    BaseModelError,
    FederationDiffers,
    InvalidExamples,
    KeyFileError,
    LeaseLost,
    ModelProcessDied,
    NetworkThreadDied,
    OpenBroker,
    PayloadTooLarge,
    PublishRefused,
    RecordingError,
    RegistryError,
    OSError,
)


def run(
    federation: str,
    base_model: BaseModelSettings,
    broker: BrokerSettings,
    settings: CoordinatorSettings,
    security: SecuritySettings = WITHOUT_KEYS,
) -> int:
    """Coordinate until SIGTERM or SIGINT. Returns 0 after a clean stop, 1 after an error that was logged."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the loop runs, either signal is an exception
    try:
        refuse_open_broker(security, broker)
        keys = CoordinatorKeys(security.keys, federation) if security.keys is not None else None
        with closing(_open(settings.data_dir)) as journal:
            log.info("finding base model %s", base_model.name)
            resolved = resolve(base_model.name, base_model.cache)
            calibration = _calibration_set(settings.calibration)
            if settings.privacy is not None:
                # nobody should learn after weeks that nothing says what is promised
                epsilon(1.0, settings.privacy.delta)
            config, adapter = terms(federation, base_model.name, resolved, settings, calibration)
            config = config.model_copy(update={"root": keys.root if keys else None})
            registry = Registry(settings.data_dir / "adapters")
            with _leased(journal, settings.data_dir) as lease:
                ring = keys.reread_ring() if keys else None
                now, noise_key = time.time_ns(), secrets.token_bytes(KEY_BYTES) if config.privacy else None
                restored = restore_with_history(journal, registry, config, adapter, now, ring, noise_key)
                board = Board()
                with (
                    _stop_signals() as stopping,
                    _model(resolved, calibration, config, settings) as model,
                    _watching(settings, federation, board),
                ):
                    connect = connecting_to(keys.reaches(broker) if keys else broker, federation)
                    service = Service(restored, connect, settings, journal, lease, registry, model, board, keys)
                    service.run_until(stopping, restored.questions)
    except KeyboardInterrupt:
        return 0
    except EXPECTED as error:
        log.error("%s", error)
        return 1
    return 0


def terms(
    federation: str,
    base_model_name: str,
    resolved: ResolvedModel,
    settings: CoordinatorSettings,
    calibration: CalibrationSet | None,
) -> tuple[FederationConfig, Adapter]:
    """The federation's terms and its first adapter, from the base model's files and the settings."""
    layout = layout_of(resolved, settings.lora)
    config = FederationConfig(
        federation=federation,
        base_model=resolved.digest,
        base_model_name=base_model_name,
        layout=layout,
        strategy=fitted(settings.strategy) if settings.privacy else settings.strategy,
        privacy=settings.privacy,
        limits=settings.limits,
        final_version=settings.final_version,
        node_ranks=settings.node_ranks,
        codecs=settings.codecs,
        calibration=_calibration_terms(calibration, settings),
    )
    return config, initial_adapter(layout, settings.seed)


def _calibration_set(settings: CalibrationSettings | None) -> CalibrationSet | None:
    if settings is None:
        return None
    return CalibrationSet.load(settings.data, settings.anchor_examples, settings.gate_examples)


def _calibration_terms(calibration: CalibrationSet | None, settings: CoordinatorSettings) -> CalibrationTerms | None:
    if calibration is None or settings.calibration is None:
        return None
    # the anchor moves what nodes move
    factors = {"trained_factors": settings.strategy.trained_factors}
    training = settings.calibration.training.model_copy(update=factors)
    return CalibrationTerms(digest=calibration.digest, folds=calibration.folds, training=training)


@contextmanager
def _model(
    resolved: ResolvedModel,
    calibration: CalibrationSet | None,
    config: FederationConfig,
    settings: CoordinatorSettings,
) -> Iterator[ModelProcess | None]:
    """The process that answers questions to the base model; none where there is no calibration set."""
    if calibration is None or config.calibration is None or settings.calibration is None:
        yield None
        return
    to_the_terms = settings.calibration.model_copy(update={"training": config.calibration.training})
    model = ModelProcess(ModelJob(resolved, calibration, to_the_terms))
    try:
        yield model
    finally:
        model.stop()


def connecting_to(broker: BrokerSettings, federation: str) -> Connect:
    """How a coordinator connects to this broker."""

    def connect(will: Publication, filters: Sequence[str]) -> Connection:
        # receipts have to go out under any load, and nodes keep their updates until they have one
        name = f"{federation}:coordinator"
        return Client(broker, name, will=will, subscriptions=filters, drops_when_behind=True)

    return connect


def _watching(settings: CoordinatorSettings, federation: str, board: Board) -> AbstractContextManager[None]:
    """Whoever may look while this lasts, if the operator wants that."""
    if settings.http is None:
        return nullcontext()
    from coordinator.watch.http import watching  # nobody else needs its memory
    from coordinator.watch.ordering import Guard
    from coordinator.watch.token_file import read_or_make_token

    token = None if settings.http_token is None else read_or_make_token(settings.http_token)
    return watching(settings.http, settings.data_dir, federation, board, Guard(token, settings.http_names))


def _open(folder: Path) -> sqlite3.Connection:
    """The folder's journal, made where there is none; two processes that start at once do not make two."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "opening.lock"):
        return open_journal(folder / "journal.db")


@contextmanager
def _leased(journal: sqlite3.Connection, folder: Path) -> Iterator[Lease]:
    """The right to decide, waited for as a standby if another coordinator has it."""
    lease = Lease(journal, folder)
    lease.take()
    try:
        yield lease
    finally:
        lease.let_go()


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
