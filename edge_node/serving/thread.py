"""Serving as a thread of the node: it loads the model, answers, and takes up each adapter that it is given.

It does not know which adapter is to be served.
"""

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from base_model.chat_tokens import ChatRefused, ChatTokens
from base_model.examples import Example
from base_model.reference import ResolvedModel
from base_model.wheel import BaseModelError
from edge_node.events import AdapterTried, ServedMeasured
from edge_node.health import Look, Told
from edge_node.memory import give_back_memory
from edge_node.metrics import Metrics
from edge_node.serving.answering import Answering
from edge_node.serving.export import ServedModel, export, prepack, usual_precision
from edge_node.serving.inference import AdapterRefused, AdapterSlot, Inference, ServedVersion
from edge_node.serving.mqtt import MqttServer
from edge_node.serving.probe import Probe
from edge_node.serving.session import ONNX_FAULTS, Session
from edge_node.settings import ServingSettings
from schemas.adapter import Adapter
from schemas.messages import GlobalPointer

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 12.0


class Serving:
    """Serves from `start` to `stop`, the base model first.

    `emit` is given what came of each adapter, how well it does on `measured` held-out examples, or the error that its
    thread died of.

    `mqtt` takes requests from the broker, None where the owner does not want that.
    """

    def __init__(
        self,
        resolved: ResolvedModel,
        chat: ChatTokens,
        cache: Path,
        settings: ServingSettings,
        mqtt: MqttServer | None,
        emit: Callable[[AdapterTried | ServedMeasured | Exception], None],
        examples: Callable[[int], Sequence[Example]],
        routes: Sequence["BaseRoute"] = (),
        measured: int = 0,
        metrics: Metrics | None = None,
        looks: Sequence[Look] = (),
    ) -> None:
        self._resolved, self._chat, self._cache = resolved, chat, cache
        self._settings, self._emit = settings, emit
        self._mqtt = mqtt
        self._examples, self._to_measure = examples, measured  # at most so many that are held out
        self._routes, self._looks = routes, looks  # of others, beside those of answering
        self._metrics = metrics or Metrics()
        self._answering: Answering | None = None  # once the model is loaded
        self._adapters: queue.SimpleQueue[tuple[GlobalPointer, Adapter] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="serving", daemon=True)

    def start(self) -> None:
        """Begin to load the model; returns at once."""
        self._thread.start()

    def serve(self, pointer: GlobalPointer, adapter: Adapter) -> None:
        """Answer with this verified adapter as soon as it is loaded; returns at once."""
        self._adapters.put((pointer, adapter))

    def look(self) -> Told:
        """Whether questions are answered; while the model is loading nobody can say."""
        parts = [part.look() for part in (self._mqtt, self._answering) if part is not None]
        about = {name: value for part in parts for name, value in part.about.items()}
        return Told(tuple(fault for part in parts for fault in part.faults), about)

    def stop(self) -> None:
        """Tell who waits for an answer, and end."""
        self._adapters.put(None)
        self._thread.join(STOP_TIMEOUT_S)

    def _work(self) -> None:
        try:
            self._serve()
        except Exception as error:  # carried to the main loop, which stops loudly
            self._emit(error)

    def _serve(self) -> None:
        begun = time.monotonic()
        with ExitStack() as running:
            if self._mqtt is not None:  # before the model is there: who asks is told to wait
                self._mqtt.start()
                running.callback(self._mqtt.stop)
            settings, chat = self._settings, self._chat
            inference = Inference(Session(self._model(), settings.threads))
            give_back_memory()
            answering = Answering(
                inference, chat, settings.parallel, settings.waiting, settings.timeout_s, self._metrics
            )
            self._answering = answering
            if settings.http is not None:
                running.enter_context(self._answering_http(settings.http, inference, answering))
                log.info("answering on http://%s after %.1f s", settings.http, time.monotonic() - begun)
            if self._mqtt is not None:
                self._mqtt.serve(inference, answering, settings.max_tokens)
                log.info("answering over MQTT after %.1f s", time.monotonic() - begun)
            running.callback(answering.stop)  # before the two faces stop: they pass on what it tells those who wait
            probe = Probe(inference.session, chat, self._examples, settings.probe)
            while self._take_up_next(inference, probe):
                give_back_memory()  # what was served before, and what loading took

    def _take_up_next(self, inference: Inference, probe: Probe) -> bool:
        """Wait for a version and serve it; its values are not held while the next one is waited for."""
        given = self._adapters.get()
        while given is not None and not self._adapters.empty():
            given = self._adapters.get()  # a newer one came while the last was tried
        if given is None:
            return False
        pointer, adapter = given
        fault = _take_up(inference, probe, self._metrics, pointer, adapter)
        self._emit(AdapterTried(time.monotonic(), pointer, adapter, fault))
        del given, adapter  # megabytes, and measuring takes its time
        if fault is None and inference.current is not None:
            self._measure(probe, inference.current, pointer)
        return True

    def _measure(self, probe: Probe, slot: AdapterSlot, pointer: GlobalPointer) -> None:
        """Say how well what is served does on this node's own examples, unless there is something newer to serve."""
        try:
            quality = probe.quality(slot, self._to_measure, self._adapters.empty)
        except (*ONNX_FAULTS, ChatRefused, sqlite3.Error) as fault:
            log.warning("version %d could not be measured on this node's examples: %s", pointer.version, fault)
            return
        if quality is not None:
            self._emit(ServedMeasured(time.monotonic(), pointer, quality.examples, quality.loss))

    def _answering_http(self, address: str, inference: Inference, answering: Answering) -> AbstractContextManager[None]:
        from edge_node.serving.http import application  # not needed to answer over MQTT
        from edge_node.watching import served_on

        looks = (*self._looks, self._mqtt.look) if self._mqtt is not None else self._looks
        app = application(inference, answering, self._resolved, self._settings.max_tokens, self._routes, looks)
        return served_on(address, app, "--http")

    def _model(self) -> ServedModel:
        precision = self._settings.precision or usual_precision(self._resolved)
        portable = export(self._resolved, self._cache, precision, _log_stage)
        try:
            return prepack(portable, self._cache, _log_stage)
        except BaseModelError as fault:
            log.warning("%s; serving the portable graph, which needs more memory", fault)
            return portable


def _take_up(
    inference: Inference, probe: Probe, metrics: Metrics, pointer: GlobalPointer, adapter: Adapter
) -> str | None:
    """Serve a verified adapter, and go back if this node's own examples say so; why it is not served, or None."""
    begun = time.monotonic()
    try:
        slot = inference.prepare(adapter, ServedVersion(pointer.epoch, pointer.version), pointer.digest)
        inference.swap(slot)
    except AdapterRefused as fault:
        return str(fault)
    took_s = time.monotonic() - begun
    metrics.swap_seconds.observe(took_s)
    text, about = "serving the %s of version %d, ready in %.0f ms", {"version": pointer.version}
    log.info(text, pointer.variant, pointer.version, 1e3 * took_s, extra=about)
    try:
        complaint = probe.complaint(slot)
    except (*ONNX_FAULTS, ChatRefused, sqlite3.Error) as fault:
        log.warning("version %d could not be tried on this node's examples: %s", pointer.version, fault)
        complaint = None
    if complaint is not None:
        inference.rollback()
    else:
        inference.stay()
    return complaint


def _log_stage(stage: str, _done: int, _total: int | None) -> None:
    log.info("serving: %s", stage)
