"""Whether this machine can do the work: its clock, memory, addresses and libraries."""

import os
import socket
import sys
import time
from pathlib import Path

from configuration import Configuration
from doctor.check import GIB, Check, size

LITTLE_MEMORY = 2 * GIB  # a node that trains the default base model, with room to spare
LATEST_YEAR = 2100
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def check_clock(now: float) -> Check:
    """Whether the clock can be right: not before this program was installed, nor absurdly late. MQTT tells no time."""
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if Path(__file__).stat().st_mtime <= now and time.gmtime(now).tm_year < LATEST_YEAR:
        return Check("clock", "ok", shown)
    advice = "set it, and keep it right by NTP: TLS certificates and message expiry depend on it"
    return Check("clock", "fail", f"it says {shown}, which cannot be", advice)


def check_memory(available: int) -> Check:
    """Whether a node can train here."""
    if available >= LITTLE_MEMORY:
        return Check("memory", "ok", f"{size(available)} available")
    advice = "a node that trains may be killed for want of memory; a coordinator needs far less"
    return Check("memory", "warn", f"only {size(available)} available", advice)


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
