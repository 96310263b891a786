"""Preflight: whether this machine and this broker can run what is configured, and what to do where they cannot.

The packages find out facts; here they are judged. Checks come one by one, cheap and likely causes first.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

from base_model.examples import InvalidExamples
from base_model.reference import resolve
from base_model.wheel import BaseModelError
from broker.preflight import BrokerAbilities, BrokerUnreachable, probe
from broker.settings import BrokerSettings
from configuration import Configuration
from edge_node.local_data import LocalData
from edge_node.settings import EdgeSettings
from schemas.messages import MAX_CHUNK_SIZE
from schemas.topics import NodeMetricsOf, route

MIB, GIB = 1 << 20, 1 << 30
SMALLEST_PACKET = MAX_CHUNK_SIZE + 8 * 1024  # a chunk or an inline body, with manifest and headers
LITTLE_DISK, NO_DISK = GIB, 100 * MIB
LITTLE_MEMORY = 2 * GIB  # a node that trains the default base model, with room to spare
LATEST_YEAR = 2100


class Check(NamedTuple):
    """One answer. `advice` says what to do about it, None where nothing is to be done."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str | None = None


def examine(configuration: Configuration) -> Iterator[Check]:
    """Every check of what this configuration needs, as soon as it is made. The base model is fetched if need be."""
    # below its own name is where a node may publish on a broker with access rules
    node = configuration.edge.node if configuration.edge else "doctor"
    yield from check_broker(configuration.broker, route(configuration.federation, NodeMetricsOf(node)).topic)
    yield check_clock(time.time())
    for folder in data_folders(configuration):
        yield check_disk(folder)
    yield check_memory(psutil.virtual_memory().available)
    if configuration.edge is not None:
        yield check_examples(configuration.edge)
    yield check_base_model(configuration.base_model.name, configuration.base_model.cache)
    yield check_torch()
    yield check_onnxruntime()


def check_broker(settings: BrokerSettings, topic: str) -> Iterator[Check]:
    """Whether the broker answers, takes our packets, and keeps what it must keep."""
    try:
        abilities = probe(settings, topic)
    except (BrokerUnreachable, OSError, ValueError) as error:
        yield Check("broker", "fail", str(error), "start one with `alignfed broker`, or name yours: --broker HOST:PORT")
        return
    yield Check("broker", "ok", f"{settings.address} speaks MQTT 5 and answered in {abilities.connect_s * 1000:.0f} ms")
    yield check_packet_limit(abilities)
    yield _ability("retained messages", abilities.retained_fault, "nodes that come late would get no adapter")
    yield _ability("sessions", abilities.session_fault, "receipts would be lost while a node is away")


def check_packet_limit(abilities: BrokerAbilities) -> Check:
    """Whether a full chunk fits into one packet of this broker."""
    limit = abilities.max_packet_size
    if limit is None:
        return Check("packet limit", "ok", "the broker announces none")
    if limit >= SMALLEST_PACKET:
        return Check("packet limit", "ok", f"{limit} bytes; {SMALLEST_PACKET} are needed")
    advice = f"raise the broker's packet limit to at least {SMALLEST_PACKET} bytes (mosquitto: max_packet_size)"
    return Check("packet limit", "fail", f"{limit} bytes are too few for one chunk", advice)


def check_clock(now: float) -> Check:
    """Whether the clock can be right: not before this program was installed, nor absurdly late. MQTT tells no time."""
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if Path(__file__).stat().st_mtime <= now and time.gmtime(now).tm_year < LATEST_YEAR:
        return Check("clock", "ok", shown)
    advice = "set it, and keep it right by NTP: TLS certificates and message expiry depend on it"
    return Check("clock", "fail", f"it says {shown}, which cannot be", advice)


def data_folders(configuration: Configuration) -> list[Path]:
    """Where this configuration writes."""
    folders = [configuration.base_model.cache, configuration.coordinator.data_dir]
    return folders + ([configuration.edge.data_dir] if configuration.edge else [])


def check_disk(folder: Path) -> Check:
    """Whether the folder, or what is there of its path, can be written to and has room."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    name = f"disk for {folder}"
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Check(name, "fail", f"{existing} cannot be written to", "change its owner, or set another folder")
    free = shutil.disk_usage(existing).free
    if free >= LITTLE_DISK:
        return Check(name, "ok", f"{_size(free)} free")
    return Check(name, "fail" if free < NO_DISK else "warn", f"only {_size(free)} free", "make room on this disk")


def check_memory(available: int) -> Check:
    """Whether a node can train here."""
    if available >= LITTLE_MEMORY:
        return Check("memory", "ok", f"{_size(available)} available")
    advice = "a node that trains may be killed for want of memory; a coordinator needs far less"
    return Check("memory", "warn", f"only {_size(available)} available", advice)


def check_examples(settings: EdgeSettings) -> Check:
    """Whether the node's private examples can be read, without changing what it keeps."""
    try:
        data = LocalData.look(settings.data, settings.data_dir, settings.local_data)
        data.refresh()
    except InvalidExamples as error:
        return Check("examples", "fail", str(error), "mend the file, or name another: --data or [edge] data")
    summary = data.summary()
    found, refused = f"{summary.examples} private examples", sum(tally.lines for tally in summary.refused)
    if refused:
        return Check("examples", "warn", f"{found}; {refused} lines are none", "alignfed edge data says which, and why")
    if not summary.examples:
        return Check("examples", "warn", "no private examples yet", "the node trains as soon as it has some")
    return Check("examples", "ok", found)


def check_base_model(name: str, cache: Path) -> Check:
    """Whether the base model can be had; from now on it is here."""
    try:
        model = resolve(name, cache)
    except (BaseModelError, OSError) as error:
        return Check("base model", "fail", str(error), "set name in [base_model]")
    return Check("base model", "ok", f"{name} is in {model.path}, digest {model.digest[:16]}")


def check_torch() -> Check:
    """Whether training is possible, and on how many processors."""
    import torch  # seconds, so it comes late

    processors = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    threads = torch.get_num_threads()
    found = f"torch {torch.__version__}, {threads} threads on {processors} processors"
    if threads <= processors:
        return Check("training", "ok", found)
    return Check(
        "training", "warn", found, f"set OMP_NUM_THREADS={processors}: more threads only get in each other's way"
    )


def check_onnxruntime() -> Check:
    """Whether this machine could serve adapters."""
    import onnxruntime

    if hasattr(onnxruntime, "LoraAdapter"):
        return Check("serving", "ok", f"onnxruntime {onnxruntime.__version__} can swap adapters (LoraAdapter)")
    return Check(
        "serving", "warn", f"onnxruntime {onnxruntime.__version__} has no LoraAdapter", "install 1.20 or newer"
    )


def _ability(name: str, fault: str | None, consequence: str) -> Check:
    if fault is None:
        return Check(name, "ok", "they work")
    return Check(name, "fail", fault, f"{consequence}: check the broker's configuration and access rules")


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size // MIB} MiB"
