"""`alignfed status` and `alignfed trace`: what goes on in a federation, in the terminal or as JSON."""

import http.client
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.console import FAILED, USAGE, Config, DataDir, Json, configuration, ending, fail, note
from commands.figures import to_the_millisecond
from commands.picture import live_picture, picture

if TYPE_CHECKING:
    from rich.console import Console

    from coordinator.watch.status import Facts, Status
    from coordinator.watch.trace import Trace

PATIENCE_S, PATIENCE_WATCHING_S = 20.0, 5.0  # for an answer; who watches sees in the meantime what is no longer so
EVERY_S = 1.0
NO_ANSWER = "1  there is no coordinator to ask, and no data of one"

Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="Ask the coordinator that shows itself there, its --http address."),
]

app = typer.Typer()


class NoAnswer(ConnectionError):
    """There is no status to be had just now; the text says where it was looked for, and why there is none."""


@dataclass(frozen=True)
class Source:
    """Where a status comes from: `ask` for the one of now, the folder where nobody answers. Both raise NoAnswer."""

    ask: "Callable[[], Status]"
    folder: "Folder | None" = None
    remark: str | None = None  # what this way does not show, and which one does
    advice: str | None = None  # where nobody has answered yet


@dataclass(frozen=True)
class Look:
    """What was seen last, and why it is not the status of now, if it is not."""

    status: "Status | None"
    trouble: str | None


@app.command(epilog=ending("alignfed status --url http://127.0.0.1:9100", NO_ANSWER, "130  interrupted"))
def status(
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Draw it again every second; a coordinator that is away is waited for.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what goes on in a federation.

    The coordinator is asked over HTTP, at --url or where the settings say that it shows itself. If it shows itself
    nowhere, or is off, its data folder is read: then nobody can say which nodes are online. With --watch and --json
    every line is a status.
    """
    from rich.console import Console

    console = Console()
    source = _source(url, config, data_dir, PATIENCE_WATCHING_S if watch else PATIENCE_S)
    if watch and console.is_terminal and not as_json:
        _draw(source, console)
        return
    if source.remark is not None:
        note(source.remark)
    for told in _new_ones(source) if watch else [_once(source)]:
        if as_json:
            print(told.model_dump_json(indent=None if watch else 2), flush=True)
        else:
            console.print(picture(told, None))


@app.command(epilog=ending("alignfed trace 3f9a21c0", "1  no update, or more than one, has this id"))
def trace(
    update_id: Annotated[str, typer.Argument(metavar="UPDATE_ID", help="The id, or its first six digits or more.")],
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Follow one update from node to version.

    It says when the update's parts arrived, what was decided and why, and which version it went into at what weight.
    Ids are in the log, in receipts and in `alignfed status`.
    """
    from coordinator.watch.trace import NoSuchUpdate
    from coordinator.watch.trace import trace as follow

    settings = configuration(config)
    try:
        found = follow(data_dir or settings.coordinator.data_dir, settings.federation, update_id)
    except NoSuchUpdate as fault:
        fail(str(fault), FAILED)
    if as_json:
        print(found.model_dump_json(indent=2))
        return
    print(f"update {found.update_id} of {found.node}")
    for line in _steps(found):
        print(f"  {line}")


# --- once, or again and again ---


def _once(source: Source) -> "Status":
    """The status; where there is none the process ends."""
    try:
        return source.ask()
    except NoAnswer as fault:
        if source.folder is None:
            fail(f"{fault}. {source.advice}" if source.advice else str(fault), FAILED)
        note(f"{fault}; reading {source.folder.path}")
    try:
        return source.folder()
    except NoAnswer as fault:
        fail(str(fault), FAILED)


def _draw(source: Source, console: "Console") -> None:
    """Draw the status on the terminal, until Ctrl-C."""
    import signal

    from rich.live import Live

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the terminal is left as it was found
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for look in _looks(source):
            remark = source.advice if look.status is None else source.remark
            shown = live_picture(look.status, look.trouble, remark, console.size.height)
            live.update(shown, refresh=True)


def _new_ones(source: Source) -> "Iterator[Status]":
    """Every second the status of now, for ever; why there is none is said once on standard error."""
    said = None
    for look in _looks(source):
        if look.status is not None and look.trouble is None:
            yield look.status
        elif look.trouble != said:
            note(f"{look.trouble}; asking again every second")
        said = look.trouble


def _looks(source: Source) -> Iterator[Look]:
    """What there is to be seen, every second, for ever: while nobody answers, what was seen last."""
    last: Status | None = None
    while True:
        try:
            last, trouble = source.ask(), None
        except NoAnswer as fault:
            trouble = str(fault)
            last = last or _on_disk(source)
        yield Look(last, trouble)
        time.sleep(EVERY_S)


def _on_disk(source: Source) -> "Status | None":
    try:
        return None if source.folder is None else source.folder()
    except NoAnswer:
        return None


# --- where it comes from ---


def _source(url: str | None, config: Path | None, data_dir: Path | None, patience_s: float) -> Source:
    if url is not None:
        address = _address(url)
        advice = "Was the coordinator started with --http?"
        return Source(lambda: _asked(*address, patience_s), advice=advice)
    settings = configuration(config).coordinator
    if data_dir is not None:
        return Source(Folder(data_dir))
    if settings.http is None:
        return Source(
            Folder(settings.data_dir),
            remark="To see who is online, start the coordinator with --http HOST:PORT and ask it by --url, or set "
            "coordinator.http.",
        )
    http = settings.http
    return Source(lambda: shown_at(http, patience_s), Folder(settings.data_dir))


def shown_at(http: str, patience_s: float = PATIENCE_S) -> "Status":
    """What a coordinator shows at HOST:PORT. Raises NoAnswer."""
    host, _, port = http.rpartition(":")
    return _asked(host.strip("[]"), int(port), patience_s)


def _asked(host: str, port: int, patience_s: float) -> "Status":
    from pydantic import ValidationError

    from coordinator.watch.status import Status

    connection = http.client.HTTPConnection(host, port, timeout=patience_s)
    try:
        connection.request("GET", "/api/status")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as fault:
        raise NoAnswer(f"nobody answers at {host}:{port}: {fault}") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise NoAnswer(f"what answers at {host}:{port} says {answer.status} {answer.reason}")
    try:
        return Status.model_validate_json(body)
    except ValidationError:
        raise NoAnswer(f"what answers at {host}:{port} is no coordinator, or one of another release") from None


class Folder:
    """Reads a coordinator's data folder, and its journal again only when something came into it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._facts: Facts | None = None
        self._written: list[tuple[int, int] | None] = []

    def __call__(self) -> "Status":
        """The status of now. Raises NoAnswer."""
        from coordinator.watch.alarms import with_alarms
        from coordinator.watch.status import status_of

        written = [_written(self.path / name) for name in ("journal.db", "journal.db-wal")]
        if self._facts is None or written != self._written:
            self._facts, self._written = _facts(self.path), written
        return with_alarms(status_of(self._facts, time.time_ns()))


def _written(file: Path) -> tuple[int, int] | None:
    """When a file was written, and how far; None for one that is not there."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size


def _facts(data_dir: Path) -> "Facts":
    from broker.recording import RecordingError
    from coordinator.journal import fold_history
    from coordinator.watch.status import Facts

    journal = data_dir / "journal.db"
    if not journal.exists():
        raise NoAnswer(
            f"there is no coordinator's data in {data_dir}: name its folder by --data-dir, or ask it by --url"
        )
    last = None
    try:
        for state, history, _ in fold_history(journal):
            last = Facts(state, history)
    except RecordingError as fault:
        raise NoAnswer(str(fault)) from None
    if last is None:
        raise NoAnswer(f"{journal} is empty: the coordinator has not begun yet")
    return last


def _address(url: str) -> tuple[str, int]:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        if parts.scheme == "http" and parts.hostname and parts.port and parts.path in ("", "/"):
            return parts.hostname, parts.port
    except ValueError:  # a port that is no number
        pass
    fail(f"{url} is not a coordinator's address: give http://HOST:PORT", USAGE)


def _steps(found: "Trace") -> Iterator[str]:
    """What happened, a line for each step."""
    if found.base_version is not None:
        how = (
            "" if found.steps is None else f": {found.steps} steps on {found.examples} examples, loss {found.loss:.3f}"
        )
        yield f"trained from version {found.base_version}{how}"
    if found.arrivals:
        first, last = found.arrivals[0], found.arrivals[-1]
        size = sum(arrival.size for arrival in found.arrivals)
        took = f"within {(last.at_ns - first.at_ns) / 1e9:.2f} s"
        yield f"{to_the_millisecond(first.at_ns)}  {len(found.arrivals)} messages arrived, {size} bytes, {took}"
    if found.decided_at_ns is None:
        yield "parts of it are still missing"
    else:
        said = f"{found.status}: {found.reason}" if found.reason else "accepted"
        yield f"{to_the_millisecond(found.decided_at_ns)}  {said}"
    if (into := found.went_into) is not None:
        share = f"weight {into.weight:.4g}, {into.weight_share:.1%} of that version"
        yield f"{to_the_millisecond(into.at_ns)}  went into version {into.version}, one of {into.updates}, {share}"
        loss = "" if into.gate_after is None else f", calibration loss {into.gate_after:.3f}"
        yield f"version {into.version}: {into.verdict.replace('_', ' ')}{loss}"
    elif found.status == "accepted":
        yield "waits for the next version"
