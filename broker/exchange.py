"""Recordings in other formats: JSON lines with payload files, mqtt-recorder's CSV, mosquitto_sub's text.

JSON lines hold all that a recording holds. The other two lack MQTT 5 properties and say nothing of duplicates.
"""

import base64
import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from broker.recording import Row, properties_from_json, properties_to_json

MOSQUITTO_FORMAT = "%U %t %q %r %x"
_MOSQUITTO_LINE = re.compile(r"(\d+)\.(\d{9}) (.*) ([012]) ([01]) ((?:[0-9a-fA-F]{2})*)")
LATEST_NS = (1 << 63) - 1
_CSV_FIELDS = ("topic", "payload", "qos", "retain", "time", "delta")


class ExchangeError(ValueError):
    """A file that is not of the format it should be; says where and what is wrong."""


def payload_folder(path: Path) -> Path:
    """Where the payloads of a file of JSON lines are, each named by its SHA-256."""
    return path.with_name(path.name + ".payloads")


def write_json_lines(rows: Iterable[Row], path: Path) -> int:
    """One message a line in `path`, payloads beside it; equal ones are one file. Returns how many messages."""
    folder = payload_folder(path)
    if path.exists() or folder.exists():
        raise ExchangeError(f"{path} or {folder} is there already: name another file, or remove both")
    folder.mkdir(parents=True)
    count = 0
    with path.open("x", encoding="utf-8") as lines:
        for row in rows:
            name = hashlib.sha256(row.payload).hexdigest()
            if not (folder / name).exists():
                (folder / name).write_bytes(row.payload)
            lines.write(json.dumps(_as_json(row, name), ensure_ascii=False, separators=(",", ":")) + "\n")
            count += 1
    return count


def read_json_lines(path: Path) -> Iterator[Row]:
    """What `write_json_lines` wrote; every payload is checked against its name. Raises ExchangeError."""
    folder = payload_folder(path)
    for number, line in enumerate(_lines(path), start=1):
        try:
            message = json.loads(line)
            name = message["payload"]
            if not re.fullmatch("[0-9a-f]{64}", name):
                raise ValueError(f"payload is {name!r} and should be a SHA-256")
            payload = (folder / name).read_bytes()
            if hashlib.sha256(payload).hexdigest() != name:
                raise ValueError(f"the file {name} is not the payload of that name")
            yield recordable(_from_json(message, payload))
        except RecursionError:
            raise ExchangeError(f"{path}, line {number}: lists within lists, too deep to be a message") from None
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ExchangeError(f"{path}, line {number}: {_reason(error)}") from None


def read_mqtt_recorder(path: Path, *, payloads_in_base64: bool) -> Iterator[Row]:
    """What mqtt-recorder wrote: topic, payload, qos, retain, seconds since 1970, seconds since the one before.

    Raises ExchangeError.
    """
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        try:
            for fields in reader:
                yield recordable(_from_fields(fields, payloads_in_base64))
        except UnicodeDecodeError as error:
            raise ExchangeError(f"{path} is not text: {error.reason} at byte {error.start}") from None
        except (ValueError, OverflowError, csv.Error) as error:
            raise ExchangeError(f"{path}, line {reader.line_num}: {_reason(error)}") from None


def _from_fields(fields: list[str], payload_in_base64: bool) -> Row:
    if len(fields) != len(_CSV_FIELDS):
        raise ValueError(f"{len(fields)} fields; mqtt-recorder writes {', '.join(_CSV_FIELDS)}")
    topic, payload, qos, retain, seconds, _ = fields
    return Row(
        received_at_ns=int(float(seconds) * 1e9),
        topic=topic,
        payload=base64.b64decode(payload, validate=True) if payload_in_base64 else payload.encode(),
        qos=_qos(int(qos)),
        retain=retain not in ("False", "0"),
    )


def read_mosquitto_sub(path: Path) -> Iterator[Row]:
    """What `mosquitto_sub -F '%U %t %q %r %x'` printed: payloads are hexadecimal, topics may hold blanks.

    Raises ExchangeError.
    """
    for number, line in enumerate(_lines(path), start=1):
        found = _MOSQUITTO_LINE.fullmatch(line.rstrip("\n"))
        if found is None:
            raise ExchangeError(f"{path}, line {number}: not what mosquitto_sub -F '{MOSQUITTO_FORMAT}' prints")
        seconds, fraction, topic, qos, retain, payload = found.groups()
        try:
            yield recordable(Row(int(seconds + fraction), topic, bytes.fromhex(payload), int(qos), retain == "1"))
        except ValueError as error:
            raise ExchangeError(f"{path}, line {number}: {_reason(error)}") from None


def recordable(row: Row) -> Row:
    """The row itself, if a recording can hold it; ValueError for a time or a topic that it cannot."""
    if not 0 <= row.received_at_ns <= LATEST_NS:
        raise ValueError(f"the time {str(row.received_at_ns)[:30]} is not one between 1970 and 2262")
    (row.topic + properties_to_json(row.properties)).encode()  # a lone half of a surrogate pair is no text
    return row


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            yield from lines
    except UnicodeDecodeError as error:
        raise ExchangeError(f"{path} is not text: {error.reason} at byte {error.start}") from None


def _as_json(row: Row, payload: str) -> dict[str, Any]:
    return {
        "received_at_ns": row.received_at_ns,
        "topic": row.topic,
        "qos": row.qos,
        "retain": row.retain,
        "duplicate": row.duplicate,
        "properties": json.loads(properties_to_json(row.properties)),
        "size": len(row.payload),
        "payload": payload,
    }


def _from_json(message: dict[str, Any], payload: bytes) -> Row:
    return Row(
        received_at_ns=_typed(message, "received_at_ns", int),
        topic=_typed(message, "topic", str),
        payload=payload,
        qos=_qos(_typed(message, "qos", int)),
        retain=_typed(message, "retain", bool),
        duplicate=_typed(message, "duplicate", bool),
        properties=properties_from_json(json.dumps(message.get("properties", {}))),
    )


def _typed(message: dict[str, Any], name: str, kind: type) -> Any:
    value = message[name]
    if type(value) is not kind:
        raise ValueError(f"{name} is {value!r}")
    return value


def _qos(value: int) -> int:
    if value not in (0, 1, 2):
        raise ValueError(f"qos is {value}")
    return value


def _reason(error: Exception) -> str:
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
