"""Targets for files that may be anybody's: recordings and their importers, keys, models, what a node holds."""

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from base_model.gguf_file import open_gguf
from base_model.wheel import BaseModelError
from broker.bundle import Membership, load_ring, read_certificate_of_key, read_membership
from broker.exchange import ExchangeError, read_json_lines, read_mosquitto_sub, read_mqtt_recorder
from broker.key_files import KeyFileError, read_signing_key
from broker.mcap_file import read_mcap
from broker.recording import (
    SCHEMA,
    RecordingError,
    Row,
    append,
    properties_from_json,
    properties_to_json,
    read_rows,
    reading,
)
from coordinator.journal import event_of_row
from coordinator.replay.recorded import read_row
from edge_node.held_adapter import DamagedFile, recall, recall_earlier, recall_terms
from fuzz.bodies import layout
from fuzz.messages import FEDERATION, key
from fuzz.mutators import in_json, in_lines
from fuzz.target import Target, folder, hold, sayable, written

MOST_ROWS = 1000


def check_recording(data: bytes) -> None:
    """A file is refused in words, or is a recording whose rows are all as they were written."""
    path = written(data, "recording.db")
    try:
        with reading(path):
            for row in read_rows(path):
                read_row(row)
    except RecordingError as refusal:
        hold(bool(str(refusal)), "refused without a word")


def check_properties(data: bytes) -> None:
    """MQTT properties from a file are refused, or read as what is written again as the same."""
    try:
        properties = properties_from_json(data.decode("utf-8", "surrogateescape"))
    except ValueError as refusal:
        sayable(refusal)
        return
    hold(properties_from_json(properties_to_json(properties)) == properties, "they are read again as others")


def check_row(data: bytes) -> None:
    """A row, its topic and payload divided by a line break, is described whatever it is, and is an event or is not."""
    topic, _, payload = data.partition(b"\n")
    row = Row(1, topic.decode("utf-8", "surrogateescape"), payload, seq=1)
    hold(isinstance(read_row(row).content, dict), "a description that has no fields")
    try:
        event_of_row(row)
    except ValueError as refusal:
        sayable(refusal)


def importer(read: Callable[[Path], Iterator[Row]], name: str) -> Callable[[bytes], None]:
    """A file is refused in words, or all of its rows can be put into a recording."""

    def check(data: bytes) -> None:
        path = written(data, name)
        try:
            for row in read(path):
                _record(row)
        except ExchangeError as refusal:
            hold(bool(str(refusal)), "refused without a word")

    return check


@cache
def _empty_recording(_process: int) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(SCHEMA)
    return connection


def _record(row: Row) -> None:
    """Put a row into a recording that forgets it."""
    connection = _empty_recording(os.getpid())
    connection.execute("BEGIN")
    try:
        append(connection, row)
    finally:
        connection.execute("ROLLBACK")


def read_lines_with_payloads(path: Path) -> Iterator[Row]:
    """JSON lines beside the payloads that the kept corpus names."""
    payloads = path.with_name(path.name + ".payloads")
    if not payloads.exists():
        payloads.mkdir()
        for name, payload in PAYLOADS.items():
            (payloads / name).write_bytes(payload)
    return read_json_lines(path)


PAYLOADS = {
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855": b"",
    "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb": b"a",
}


def read_csv_base64(path: Path) -> Iterator[Row]:
    """mqtt-recorder's file with payloads in base64."""
    return read_mqtt_recorder(path, payloads_in_base64=True)


def read_csv_text(path: Path) -> Iterator[Row]:
    """mqtt-recorder's file with payloads as text."""
    return read_mqtt_recorder(path, payloads_in_base64=False)


def check_signing_key(data: bytes) -> None:
    """A file is refused in words, or holds a key."""
    try:
        hold(len(read_signing_key(written(data, "signing.key")).public) == 64, "a key of another length")
    except KeyFileError as refusal:
        sayable(refusal)


def check_bundle(data: bytes) -> None:
    """The files of a bundle are refused in words: whose it is, the key ring, and a certificate of the root."""
    path = folder(os.getpid())
    for name in ("federation.json", "keyring.json"):
        written(data, name, stat.S_IRUSR | stat.S_IWUSR)
    member = Membership(federation=FEDERATION, name="coordinator", root=key("root").public)
    for read in (lambda: read_membership(path), lambda: load_ring(path), lambda: read_certificate_of_key(data, member)):
        try:
            read()
        except KeyFileError as refusal:
            sayable(refusal)


def check_gguf(data: bytes) -> None:
    """A file is refused in words, or every tensor that is found lies within it."""
    try:
        found = open_gguf(written(data, "model.gguf"))
    except BaseModelError as refusal:
        sayable(refusal)
        return
    for tensor in found.tensors.values():
        hold(0 < tensor.rows.size <= len(data), "a tensor that is not in the file")


def check_held(data: bytes) -> None:
    """What a node holds on disk is refused in words, or is what the pointer names."""
    path = folder(os.getpid())
    written(data, "pointer.json")
    written(data, "terms.json")
    for read in (lambda: recall(path, layout()), lambda: recall_earlier(path), lambda: recall_terms(path)):
        try:
            read()
        except DamagedFile as refusal:
            sayable(refusal)


TARGETS = (
    Target("recording", check_recording, 4, largest=16384),
    Target("properties", check_properties, 30, in_json, largest=1000),
    Target("journal-row", check_row, 15, in_lines, largest=3000),
    Target("import-json-lines", importer(read_lines_with_payloads, "lines.jsonl"), 5, in_lines, largest=3000),
    Target("import-csv-base64", importer(read_csv_base64, "base64.csv"), 5, largest=2000),
    Target("import-csv-text", importer(read_csv_text, "text.csv"), 5, largest=2000),
    Target("import-mosquitto-sub", importer(read_mosquitto_sub, "printed.txt"), 5, in_lines, largest=2000),
    Target("import-mcap", importer(read_mcap, "recording.mcap"), 8, largest=4096),
    Target("signing-key", check_signing_key, 10, largest=500),
    Target("bundle", check_bundle, 4, in_json, largest=2000),
    Target("gguf", check_gguf, 15, largest=2000),
    Target("held-version", check_held, 4, in_lines, largest=2000),
)
