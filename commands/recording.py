"""`alignfed recording`: look into recordings and journals, cut them, and exchange them with other programs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from commands.console import FAILURE, USAGE, Json, ending, fail, note, print_table
from commands.figures import to_the_millisecond, to_the_second

if TYPE_CHECKING:
    from broker.recording import Row
    from coordinator.replay.recorded import Volume
    from schemas.reading import Reading

Recording = Annotated[Path, typer.Argument(metavar="FILE", help="A recording, or a coordinator's journal.")]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="New file to write.")]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="Such as 2026-05-01T12:00, in local time.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="The same, for the end.")]
Nodes = Annotated[
    list[str] | None, typer.Option("--node", metavar="NAME", help="Of or for this node; may be repeated.")
]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look into recordings, cut and convert them.")


@app.command(epilog=ending("alignfed recording info incident.rec", FAILURE))
def info(
    file: Recording,
    topics: Annotated[bool, typer.Option("--topics", help="One line for each topic.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a recording holds.

    How many messages of each type there are, their bytes, when the first and the last of them came, and how many are
    not what their topic says.
    """
    from coordinator.replay.recorded import is_journal, version_rows, volumes

    by_type, by_topic = volumes(file)
    versions = version_rows(file)
    journal = is_journal(file)
    if as_json:
        listed = {name: {key: vars(v) for key, v in each.items()} for name, each in _tables(by_type, by_topic)}
        print(json.dumps({"file": str(file), "journal": journal, "versions": sorted(versions), **listed}, indent=2))
        return
    span = f", versions {min(versions)} to {max(versions)}" if versions else ""
    print(f"{file}: {'a journal' if journal else 'a recording'}, {file.stat().st_size:,} bytes{span}")
    rows = [
        [name, f"{v.messages:,}", f"{v.payload_bytes:,}", *_span(v.first_ns, v.last_ns), str(v.faults or "")]
        for name, v in (by_topic if topics else by_type).items()
    ]
    header = ["topic" if topics else "type", "messages", "bytes", "first", "last", "faulty"]
    columns = len(header) - (not any(row[-1] for row in rows))
    print_table(header[:columns], [row[:columns] for row in rows])


@app.command("ls", epilog=ending("alignfed recording ls incident.rec --node kitchen --type update", FAILURE))
def list_messages(
    file: Recording,
    node: Nodes = None,
    kind: Annotated[
        list[str] | None, typer.Option("--type", metavar="TYPE", help="As in info, or its beginning, such as update.")
    ] = None,
    version: Annotated[int | None, typer.Option(min=0, help="About this version, or started from it.")] = None,
    since: Since = None,
    until: Until = None,
    as_json: Json = False,
) -> None:
    """List messages, one line each.

    The number in front is what `show` takes.
    """
    from coordinator.replay.recorded import Selection, select

    wanted = Selection(tuple(node or ()), tuple(kind or ()), version, _ns(since), _ns(until))
    for row, said in select(file, wanted):
        print(json.dumps(_line_as_json(row, said), ensure_ascii=False) if as_json else _line(row, said))


@app.command(epilog=ending("alignfed recording show incident.rec 42", "1  there is no such message"))
def show(
    file: Recording,
    number: Annotated[int, typer.Argument(metavar="NUMBER", min=1, help="As `ls` lists it.")],
    raw: Annotated[bool, typer.Option("--raw", help="Write the payload itself to standard output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, which is the default.")] = False,
) -> None:
    """Show one message, decoded, as JSON.

    Manifests, receipts and states as they are; of chunks and bodies their size and hash.
    """
    import sys

    from coordinator.replay.recorded import read_row, row_at

    if raw and as_json:
        fail("--raw and --json exclude each other", USAGE)
    row = row_at(file, number)
    if raw:
        sys.stdout.buffer.write(row.payload)
        return
    said = read_row(row)
    print(json.dumps({**_line_as_json(row, said), "content": said.content}, indent=2, ensure_ascii=False))


@app.command(
    epilog=ending("alignfed recording cut incident.rec --from-version 40 --to-version 41 --out small.rec", FAILURE)
)
def cut(
    file: Recording,
    out: Out,
    node: Nodes = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="NAME", help="Less this node; may be repeated.")
    ] = None,
    from_version: Annotated[int | None, typer.Option(min=0, help="From what led to this version.")] = None,
    to_version: Annotated[int | None, typer.Option(min=0, help="Up to when this version was the head.")] = None,
    since: Since = None,
    until: Until = None,
    as_json: Json = False,
) -> None:
    """Cut a piece out of a recording.

    By time, versions or nodes. What is of no node stays. A journal that is cut only at its end still replays.
    """
    from coordinator.replay.recorded import Cut
    from coordinator.replay.recorded import cut as cut_recording

    wanted = Cut(_ns(since), _ns(until), from_version, to_version, tuple(node or ()), tuple(without or ()))
    _report(out, cut_recording(file, out, wanted), as_json)


@app.command(epilog=ending("alignfed recording export incident.rec --out incident.jsonl", FAILURE))
def export(file: Recording, out: Out, as_json: Json = False) -> None:
    """Write a recording as JSON lines or MCAP.

    By the name of the new file: .jsonl has a message in every line and the payloads, by their SHA-256, in a folder
    beside it; .mcap is for tools such as Foxglove. Both hold all that a recording holds.
    """
    from broker.exchange import write_json_lines
    from broker.mcap_file import write_mcap
    from broker.recording import read_rows

    write = {".jsonl": write_json_lines, ".mcap": write_mcap}.get(out.suffix)
    if write is None:
        fail(f"--out {out}: name a file that ends in .jsonl or .mcap", USAGE)
    _report(out, write(read_rows(file), out), as_json)


@app.command("import", epilog=ending("alignfed recording import messages.csv --out incident.rec", FAILURE))
def import_messages(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What another program has written.")],
    out: Out,
    form: Annotated[
        Literal["jsonl", "mcap", "csv", "csv-base64", "mosquitto"] | None,
        typer.Option("--format", help="Of FILE.  [default: as its name ends; .txt is mosquitto]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a recording of what another program wrote.

    jsonl and mcap: of `export`, or any MCAP file. csv: of mqtt-recorder, csv-base64 with --encode_b64. mosquitto: the
    text of mosquitto_sub -F '%U %t %q %r %x'.
    """
    from broker.recording import write_recording

    found = form or {".jsonl": "jsonl", ".mcap": "mcap", ".csv": "csv", ".txt": "mosquitto"}.get(file.suffix)
    if found is None:
        fail(f"{file}: its name does not say what it is; give --format", USAGE)
    _report(out, write_recording(out, _imported(file, found)), as_json)


def _imported(file: Path, form: str) -> "Iterator[Row]":
    from broker import exchange
    from broker.mcap_file import read_mcap

    match form:
        case "jsonl":
            return exchange.read_json_lines(file)
        case "mcap":
            return read_mcap(file)
        case "mosquitto":
            return exchange.read_mosquitto_sub(file)
        case _:
            return exchange.read_mqtt_recorder(file, payloads_in_base64=form == "csv-base64")


def _tables(by_type: "dict[str, Volume]", by_topic: "dict[str, Volume]") -> "tuple[tuple[str, dict[str, Volume]], ...]":
    return ("types", by_type), ("topics", by_topic)


def _report(out: Path, count: int, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"file": str(out), "messages": count}, indent=2))
    else:
        note(f"{count:,} messages are in {out}")


def _line_as_json(row: "Row", said: "Reading") -> dict[str, Any]:
    from broker.recording import properties_to_json

    known = {"node": said.node, "version": said.version, "update_id": said.update_id, "fault": said.fault}
    return {
        "number": row.seq,
        "received_at_ns": row.received_at_ns,
        "type": said.kind,
        "topic": row.topic,
        "qos": row.qos,
        "retain": row.retain,
        "duplicate": row.duplicate,
        "properties": json.loads(properties_to_json(row.properties)),
        "size": len(row.payload),
        **{name: value for name, value in known.items() if value is not None},
    }


def _line(row: "Row", said: "Reading") -> str:
    marks = "".join(mark for mark, is_set in (("r", row.retain), ("d", row.duplicate)) if is_set)
    where = said.kind if said.kind != "other" else row.topic
    facts = [said.node or "", f"version {said.version}" if said.version is not None else "", (said.update_id or "")[:8]]
    facts += [str(said.content[name]) for name in ("status", "reason", "index") if said.content.get(name) is not None]
    facts += [f"FAULTY: {said.fault}"] if said.fault else []
    shown = " ".join(fact for fact in facts if fact)
    came = to_the_millisecond(row.received_at_ns)
    return f"{row.seq:>7}  {came}  {row.qos}{marks:<2} {len(row.payload):>9,}  {where:<20} {shown}"


def _span(first_ns: int, last_ns: int) -> tuple[str, str]:
    """Local times, to the second; the second without its day where that is the first's."""
    (day, _), (last_day, clock) = (to_the_second(ns).split(" ") for ns in (first_ns, last_ns))
    return to_the_second(first_ns), clock if day == last_day else f"{last_day} {clock}"


def _ns(text: str | None) -> int | None:
    from datetime import datetime

    if text is None:
        return None
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1e9)
    except ValueError:
        fail(f"{text} is no time: give it as 2026-05-01T12:00:00, or with an offset, 2026-05-01T12:00:00+02:00", USAGE)
