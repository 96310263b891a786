"""Recordings as MCAP files, for the tools of robotics, and back.

A message's data is the raw payload. What MCAP has no place for (QoS, retain flag, duplicates, MQTT 5 properties) is in
the metadata of its channel; messages of one topic that differ in it are in different channels.
"""

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import zstandard
from mcap.exceptions import McapError
from mcap.reader import NonSeekingReader
from mcap.records import Channel, Message
from mcap.writer import Writer

from broker.exchange import ExchangeError
from broker.recording import Row, properties_from_json, properties_to_json

MAX_CHANNELS = 65_535  # their ids have two bytes, and 0 is not used
_LIBRARY = "alignfed"

Kind = tuple[str, str, int, bool, bool, str]  # all that a channel says


def write_mcap(rows: Iterable[Row], path: Path) -> int:
    """Write the rows to a new file in their order and return how many. Raises ExchangeError."""
    if path.exists():
        raise ExchangeError(f"{path} is there already: name another file, or remove it")
    with path.open("xb") as file:
        writer = Writer(file)
        writer.start(profile="", library=_LIBRARY)
        object_schema = writer.register_schema("mqtt.json", "jsonschema", b'{"type":"object"}')
        channels: dict[Kind, int] = {}
        count = 0
        for row in rows:
            kind = _kind(row)
            if kind not in channels:
                if len(channels) == MAX_CHANNELS:
                    raise ExchangeError(f"over {MAX_CHANNELS} topics do not fit into one MCAP file: cut the recording")
                channels[kind] = _register(writer, kind, object_schema)
            count += 1
            writer.add_message(channels[kind], row.received_at_ns, row.payload, row.received_at_ns, count & 0xFFFFFFFF)
        writer.finish()  # type: ignore[no-untyped-call]
    return count


def read_mcap(path: Path) -> Iterator[Row]:
    """The messages in the order of the file; those of another program count as QoS 1. Raises ExchangeError."""
    try:
        with path.open("rb") as file:
            for channel, message in _messages(file):
                yield _row(channel, message)
    except (McapError, struct.error, zstandard.ZstdError, ValueError, KeyError) as error:
        raise ExchangeError(f"{path} is no MCAP file that can be read: {error or type(error).__name__}") from None


def _messages(file: IO[bytes]) -> Iterator[tuple[Channel, Message]]:
    # from beginning to end: what the index at the end repeats has no checksum of its own
    for _, channel, message in NonSeekingReader(file, validate_crcs=True).iter_messages(log_time_order=False):
        yield channel, message


def _kind(row: Row) -> Kind:
    encoding = "json" if _is_json_object(row.payload) else "application/octet-stream"
    return row.topic, encoding, row.qos, row.retain, row.duplicate, properties_to_json(row.properties)


def _register(writer: Writer, kind: Kind, object_schema: int) -> int:
    topic, encoding, qos, retain, duplicate, properties = kind
    metadata = {
        "mqtt.qos": str(qos),
        "mqtt.retain": str(retain).lower(),
        "mqtt.duplicate": str(duplicate).lower(),
        "mqtt.properties": properties,
    }
    return writer.register_channel(topic, encoding, object_schema if encoding == "json" else 0, metadata)


def _row(channel: Channel, message: Message) -> Row:
    said = channel.metadata
    return Row(
        received_at_ns=message.log_time,
        topic=channel.topic,
        payload=message.data,
        qos=int(said.get("mqtt.qos", "1")),
        retain=said.get("mqtt.retain") == "true",
        duplicate=said.get("mqtt.duplicate") == "true",
        properties=properties_from_json(said.get("mqtt.properties", "{}")),
    )


def _is_json_object(payload: bytes) -> bool:
    if not payload.startswith(b"{") or not payload.endswith(b"}"):
        return False
    try:
        value: Any = json.loads(payload)
    except ValueError:
        return False
    return isinstance(value, dict)
