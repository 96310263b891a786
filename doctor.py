"""Preflight: whether this machine and this broker can run what is configured, and what to do where they cannot.

The packages find out facts; here they are judged. Checks come one by one, cheap and likely causes first.
"""

import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

from base_model.examples import InvalidExamples
from base_model.reference import resolve
from base_model.wheel import BaseModelError
from broker.preflight import BrokerAbilities, BrokerUnreachable, look, probe
from broker.recording import RecordingError, reading
from broker.settings import BrokerSettings
from configuration import Configuration
from coordinator.calibration import CalibrationSet
from coordinator.settings import CalibrationSettings
from edge_node.data.local_data import LocalData
from edge_node.settings import EdgeSettings
from schemas.messages import MAX_CHUNK_SIZE, InvalidMessage
from schemas.reading import message_on
from schemas.topics import CoordinatorStateOf, NodeMetricsOf, NodeStateOf, ReceiptFor, route, topic_filter

MIB, GIB = 1 << 20, 1 << 30
SMALLEST_PACKET = MAX_CHUNK_SIZE + 8 * 1024  # a chunk or an inline body, with manifest and headers
LITTLE_DISK, NO_DISK = GIB, 100 * MIB
LITTLE_MEMORY = 2 * GIB  # a node that trains the default base model, with room to spare
LATEST_YEAR = 2100
REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "fuse.rclone", "fuse.glusterfs", "9p", "afs", "ceph"}
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class Check(NamedTuple):
    """One answer. `advice` says what to do about it, None where nothing is to be done."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str | None = None


def examine(configuration: Configuration) -> Iterator[Check]:
    """Every check of what this configuration needs, as soon as it is made. The base model is fetched if need be."""
    topic = route(configuration.federation, _own_address(configuration)).topic
    broker_checks = list(check_broker(configuration.broker, topic))
    yield from broker_checks
    if broker_checks[0].status == "ok":
        yield from check_federation(configuration)
    yield check_clock(time.time())
    for folder in data_folders(configuration):
        yield check_disk(folder)
        yield check_file_system(folder)
    for name, http in addresses(configuration).items():
        yield check_port(name, http)
    for path in secrets(configuration):
        yield check_secret(path)
    yield from check_journal(configuration.coordinator.data_dir / "journal.db")
    yield check_memory(psutil.virtual_memory().available)
    if configuration.edge is not None:
        yield check_examples(configuration.edge)
    if (calibration := configuration.coordinator.calibration) is not None:
        yield check_calibration(calibration)
    yield check_base_model(configuration.base_model.name, configuration.base_model.cache)
    yield check_torch()
    yield check_onnxruntime()


def _own_address(configuration: Configuration) -> NodeMetricsOf | ReceiptFor:
    """Where this process may publish on a broker with access rules, and nobody takes notice."""
    if configuration.edge is not None:
        return NodeMetricsOf(configuration.edge.node)
    return NodeMetricsOf("doctor") if configuration.security.keys is None else ReceiptFor("doctor")


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


def check_federation(configuration: Configuration) -> Iterator[Check]:
    """Whether a coordinator is there on our terms, and nobody goes by our node's name."""
    federation, edge = configuration.federation, configuration.edge
    filters = [topic_filter(federation, CoordinatorStateOf)]
    if edge is not None:
        filters += [topic_filter(federation, kind, node=edge.node) for kind in (NodeStateOf, ReceiptFor)]
    try:
        retained, refused = look(configuration.broker, filters)
    except BrokerUnreachable as fault:
        yield Check("coordinator", "fail", str(fault), "look at the broker's log: it let this client in a moment ago")
        return
    for topic, why in refused.items():
        advice = "the broker's access rules must let this client read there"
        yield Check("access", "fail", f"the broker refused the subscription to {topic}: {why}", advice)
    yield check_coordinator(retained.get(filters[0]), federation)
    if edge is not None:
        yield check_node_name(retained.get(filters[1]), edge.node)


def check_coordinator(said: bytes | None, federation: str) -> Check:
    """Whether the federation has a coordinator that is online."""
    advice = f"start one with `alignfed coordinator --federation {federation}`, or check the name of the federation"
    if not said:
        return Check("coordinator", "warn", f"none was ever on this broker for the federation {federation}", advice)
    try:
        state = message_on(CoordinatorStateOf(), said)
    except InvalidMessage as fault:
        advice = "another release, or another program, publishes there: run the same release everywhere"
        return Check("coordinator", "fail", f"what it says of itself cannot be read: {fault}", advice)
    if not state.online:
        return Check("coordinator", "warn", "it is offline; nodes work on, and their updates wait", advice)
    return Check("coordinator", "ok", f"online, {state.strategy} on {state.base_model_name}, epoch {state.epoch}")


def check_node_name(said: bytes | None, node: str) -> Check:
    """Whether another process goes by this node's name: they would push each other off the broker."""
    try:
        is_online = bool(said) and message_on(NodeStateOf(node), said or b"").online
    except InvalidMessage:
        is_online = False
    if not is_online:
        return Check("node name", "ok", f"nobody else is online as {node}")
    advice = "if that is not this very node, already running, give one of them another name: --node"
    return Check("node name", "warn", f"{node} is online already", advice)


def check_file_system(folder: Path) -> Check:
    """Whether the folder is on a local disk: over a network, SQLite's locks and flushes cannot be trusted."""
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    kind = next((mounts[path] for path in (folder.absolute(), *folder.absolute().parents) if path in mounts), "")
    name = f"file system of {folder}"
    if kind not in REMOTE:
        return Check(name, "ok", kind or "local")
    advice = "set a folder on a local disk: a crash may lose what was acknowledged"
    return Check(name, "fail", f"{kind} is a network file system", advice)


def addresses(configuration: Configuration) -> dict[str, str]:
    """Where processes of this configuration would listen, by whose it is."""
    edge = configuration.edge
    found = {
        "coordinator's page": configuration.coordinator.http,
        "node's answers": edge.serving.http if edge else None,
        "node's figures": edge.metrics_http if edge else None,
    }
    return {name: http for name, http in found.items() if http is not None}


def check_port(name: str, http: str) -> Check:
    """Whether this address can be listened on."""
    host, _, port = http.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        socket.create_server((host.strip("[]"), int(port)), family=family).close()
    except OSError as fault:
        advice = "it may be running already; else set another port, above 1023 for an ordinary user"
        return Check(name, "warn", f"{http} cannot be listened on: {fault.strerror or fault}", advice)
    if host.strip("[]") in LOOPBACK:
        return Check(name, "ok", f"{http} is free, and reached from this machine only")
    return Check(name, "ok", f"{http} is free; it asks for no password, so mind who can reach it")


def secrets(configuration: Configuration) -> list[Path]:
    """Files that nobody else should be able to read."""
    broker, token = configuration.broker, configuration.coordinator.http_token
    made = token if token is not None and token.exists() else None  # the coordinator makes it
    return [path for path in (broker.password_file, broker.key_file, made) if path is not None]


def check_secret(path: Path) -> Check:
    """Whether a secret can be read by us, and by nobody else."""
    name = f"secret {path}"
    if not os.access(path, os.R_OK):
        return Check(name, "fail", "it cannot be read", "check that it is there and who owns it")
    if path.stat().st_mode & 0o077:
        return Check(name, "warn", "others on this machine can read or write it", f"chmod 600 {path}")
    return Check(name, "ok", "only its owner can read it")


def check_journal(path: Path) -> Iterator[Check]:
    """Whether the journal, if there is one, is whole."""
    if not path.exists():
        return
    try:
        with reading(path) as journal:
            [(rows,)] = journal.execute("SELECT count(*) FROM messages").fetchall()
    except RecordingError as fault:
        yield Check("journal", "fail", str(fault), "restore it from a copy; nodes send again what has no receipt yet")
        return
    yield Check("journal", "ok", f"{rows} rows in {path}, {_size(path.stat().st_size)}")


def check_calibration(settings: CalibrationSettings) -> Check:
    """Whether the coordinator's own examples can be read and are enough."""
    try:
        found = CalibrationSet.load(settings.data, settings.anchor_examples, settings.gate_examples)
    except (InvalidExamples, OSError) as fault:
        return Check("calibration set", "fail", str(fault), "mend the file, or lower anchor_examples or gate_examples")
    parts = ", ".join(f"{count} for the {fold}" for fold, count in found.folds.items())
    return Check("calibration set", "ok", f"{parts} in {settings.data}")


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
