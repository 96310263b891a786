"""Recordings as MCAP files, for the tools of robotics, and back.

A message's data is the raw payload. What MCAP has no place for (QoS, retain flag, duplicates, MQTT 5 properties) is in
the metadata of its channel; messages of one topic that differ in it are in different channels.
"""

import json
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import zstandard
from mcap.exceptions import McapError
from mcap.records import Channel, Chunk, McapRecord, Message
from mcap.stream_reader import StreamReader, breakup_chunk
from mcap.writer import Writer

from broker.exchange import ExchangeError, recordable
from broker.recording import Row, properties_from_json, properties_to_json

MAX_CHANNELS = 65_535  # their ids have two bytes, and 0 is not used
LARGEST_CHUNK = 1 << 29  # bytes when decompressed; the largest message of MQTT fits
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
                yield recordable(_row(channel, message))
    except (McapError, struct.error, zstandard.ZstdError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        # RuntimeError is how lz4 says that it cannot read something, OverflowError what a size of 64 bits makes
        raise ExchangeError(f"{path} is no MCAP file that can be read: {error or type(error).__name__}") from None


def _messages(file: IO[bytes]) -> Iterator[tuple[Channel, Message]]:
    # from beginning to end: what the index at the end repeats has no checksum of its own
    channels: dict[int, Channel] = {}
    for record in _records(file):
        if isinstance(record, Channel):
            channels[record.id] = record
        elif isinstance(record, Message):
            yield channels[record.channel_id], record


def _records(file: IO[bytes]) -> Iterator[McapRecord]:
    """Every record, those in chunks too; nothing is believed of a size before memory is taken for it."""
    whole = cast(IO[bytes], _Whole(file))
    for record in StreamReader(whole, emit_chunks=True, validate_crcs=True).records:
        if isinstance(record, Chunk):
            _check_size(record)
            yield from breakup_chunk(record, validate_crc=True)
        else:
            yield record


def _check_size(chunk: Chunk) -> None:
    """The library allocates what a chunk, and zstd what its frame, claims to hold."""
    claimed = zstandard.frame_content_size(chunk.data) if chunk.compression == "zstd" else 0
    if (most := max(claimed, chunk.uncompressed_size)) > LARGEST_CHUNK:
        raise ValueError(f"a chunk of {most} bytes; at most {LARGEST_CHUNK} are read")


class _Whole:
    """A file of which no more is asked for than there is: Python takes the memory first."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left = file, os.fstat(file.fileno()).st_size

    def read(self, count: int) -> bytes:
        """The next `count` bytes; ValueError where there are not so many."""
        if not 0 <= count <= self._left:
            raise ValueError("it ends within a record")
        self._left -= count
        return self._file.read(count)


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
