"""`alignfed record`: capture topics of a broker into a recording."""

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.console import (
    FAILED,
    USAGE,
    Broker,
    Config,
    Federation,
    Json,
    configuration,
    ending,
    fail,
    note,
    with_certificate,
)

if TYPE_CHECKING:
    import threading

    from broker.recorder import Progress

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}

app = typer.Typer()


@app.command(
    epilog=ending(
        "alignfed record --broker gateway.local:1883 --out incident.rec",
        "1  no message came, the file is full, the broker refuses, or another recorder writes the file",
    )
)
def record(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Recording to write, or to continue.")],
    topics: Annotated[
        list[str] | None,
        typer.Option("--topic", metavar="FILTER", help="What to record; may be repeated.  [default: the federation's]"),
    ] = None,
    max_size: Annotated[str, typer.Option(metavar="SIZE", help="Of one file, such as 500MB.")] = "1GB",
    rotate: Annotated[
        int, typer.Option(min=0, metavar="N", help="Earlier files to keep, as FILE.1 (the newest) to FILE.N.")
    ] = 4,
    alive: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Touch it while nothing is missed, for health checks.")
    ] = None,
    config: Config = None,
    broker: Broker = None,
    federation: Federation = None,
    as_json: Json = False,
) -> None:
    """Record topics of a broker.

    Takes down every message as it comes: payload, properties, order, time, duplicates. Runs until Ctrl-C or SIGTERM,
    and waits for a broker that is away. Killed and started again, it continues the file. `alignfed recording` looks
    into it.
    """
    import json

    settings = with_certificate(configuration(config, federation, broker))
    from broker.events import check_filter
    from broker.recorder import SMALLEST_MAX_SIZE, RotatingRecording, capture
    from schemas.topics import ROOT

    filters = tuple(topics or [f"{ROOT}/{settings.federation}/#"])
    size = _bytes(max_size)
    if size < SMALLEST_MAX_SIZE:
        fail(f"--max-size {max_size}: at least {SMALLEST_MAX_SIZE} bytes", USAGE)
    try:
        for topic_filter in filters:
            check_filter(topic_filter)
    except ValueError as error:
        fail(f"--topic: {error}", USAGE)
    stop = _stop_event()
    recording = RotatingRecording(out, size, rotate)
    shown = _Counter(out)
    try:
        for progress in capture(settings.broker, filters, recording, stop.is_set):
            shown.show(progress)
            if alive is not None and progress.connected:
                alive.touch()
    finally:
        recording.close()
        shown.end()
    if as_json:
        last = {
            name: value for name, value in vars(shown.last).items() if name not in ("connected", "trouble", "standing")
        }
        print(json.dumps({"file": str(out), **last}, indent=2))
    if shown.last.messages == 0:
        fail(f"no message came on {', '.join(filters)}", FAILED)


class _Counter:
    """One line that counts, on a terminal; elsewhere only what is worth a line of a log."""

    def __init__(self, out: Path) -> None:
        from broker.recorder import Progress

        self.last: Progress = Progress()
        self._out, self._live = out, sys.stderr.isatty()
        self._begun = time.monotonic()

    def show(self, progress: "Progress") -> None:
        if progress.trouble or progress.connected != self.last.connected:
            self._clear()
            if progress.trouble:
                note(f"alignfed: {progress.trouble}")
            elif progress.connected:
                note(f"recording into {self._out}")
        self.last = progress
        if self._live:
            print(f"\r\033[K{self._line()}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        self._clear()
        note(self._line())

    def _clear(self) -> None:
        if self._live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def _line(self) -> str:
        p = self.last
        parts = [f"{p.messages:,} messages", f"{p.payload_bytes / 1e6:,.1f} MB"]
        parts += [f"{p.messages / max(1e-9, time.monotonic() - self._begun):,.0f}/s"]
        parts += [f"{p.duplicates:,} duplicates"] if p.duplicates else []
        parts += [f"{p.rotations} rotations"] if p.rotations else []
        parts += [f"{p.dropped:,} of QoS 0 dropped: they came too fast"] if p.dropped else []
        return "  ".join(parts)


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]?I?B?)", text.upper())
    if found is None or found[2] not in _UNITS:
        fail(f"--max-size {text}: give a size such as 500MB or 1GB", USAGE)
    return int(float(found[1]) * _UNITS[found[2]])


def _stop_event() -> "threading.Event":
    import signal
    import threading

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
