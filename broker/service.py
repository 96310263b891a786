"""The broker as a foreground process: started, watched and stopped. What a broker can do is embedded.py's knowledge."""

import errno
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Literal

from broker.embedded import BrokerFailed, EmbeddedBroker, Kind

_LOOK_EVERY_S = 1.0


def run(kind: Kind | Literal["auto"], data_dir: Path, port: int, keys: Path | None = None) -> int:
    """Run a broker for this machine until SIGTERM or SIGINT; call it from the main thread.

    With `keys` it asks for certificates, and reads its access rules again when they change. Returns 0 after a clean
    stop and 1 when the broker ended by itself. Raises BrokerFailed when none can be started.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    _check_free(port)
    rules = keys / "broker" / "acl" if keys is not None else None
    seen = _changed_at(rules)  # before the broker reads them: a change while it starts is noticed too
    with EmbeddedBroker(kind, data_dir, port, keys) as broker:
        _say(f"{broker.kind} listens on {broker.settings.address}; stop it with Ctrl-C.")
        for limit in broker.limits:
            _say(limit)
        while not stop.wait(_LOOK_EVERY_S):
            if not _is_alive(broker.pid):
                _say(f"{broker.kind} ended by itself")
                return 1
            if (changed_at := _changed_at(rules)) != seen:
                seen = changed_at
                _say("the access rules have changed")
                broker.read_access_rules_again()
    return 0


def _changed_at(file: Path | None) -> int:
    return 0 if file is None else file.stat().st_mtime_ns


def _check_free(port: int) -> None:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that is only being let go of is free
        try:
            trial.bind(("127.0.0.1", port))
        except OSError as error:
            reason = "is taken, perhaps by another broker" if error.errno == errno.EADDRINUSE else error.strerror
            raise BrokerFailed(f"port {port} {reason}; choose another by --port") from None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
