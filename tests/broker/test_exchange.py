"""Recordings in other formats: what goes out comes back bit for bit, and what cannot be read is said."""

import base64
import csv
import hashlib
import struct
import subprocess
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.client import Client
from broker.embedded import EmbeddedBroker
from broker.events import MessageProperties, Publication
from broker.exchange import (
    MOSQUITTO_FORMAT,
    ExchangeError,
    payload_folder,
    read_json_lines,
    read_mosquitto_sub,
    read_mqtt_recorder,
    write_json_lines,
)
from broker.mcap_file import read_mcap, write_mcap
from broker.recording import RecordingError, Row, read_rows, write_recording

FULL = Row(
    received_at_ns=1_700_000_000_123_456_789,
    topic="a/b c/\u00e9",
    payload=bytes(range(256)),
    qos=1,
    retain=True,
    duplicate=True,
    properties=MessageProperties((("k", "1"), ("k", "\u2603")), "text/x", "answers", b"\0\xff", 77, payload_format=1),
)

text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
rows = st.builds(
    Row,
    received_at_ns=st.integers(0, 2**63 - 1),
    topic=text,
    payload=st.binary(max_size=40) | st.sampled_from((b"{}", b'{"a":1}', b"{]}", b'{"a":1} ')),
    qos=st.sampled_from((0, 1, 2)),
    retain=st.booleans(),
    duplicate=st.booleans(),
    properties=st.builds(
        MessageProperties,
        user=st.lists(st.tuples(text, text), max_size=3).map(tuple),
        content_type=st.none() | text,
        response_topic=st.none() | text,
        correlation_data=st.none() | st.binary(max_size=5),
        expiry_s=st.none() | st.integers(0, 2**32 - 1),
        payload_format=st.sampled_from((None, 0, 1)),
    ),
)

Write = Callable[[Iterable[Row], Path], int]
Read = Callable[[Path], Iterator[Row]]
LOSSLESS = pytest.mark.parametrize(("write", "read"), [(write_json_lines, read_json_lines), (write_mcap, read_mcap)])


@LOSSLESS
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recorded=st.lists(rows, max_size=6))
def test_a_recording_comes_back_bit_for_bit(
    write: Write, read: Read, recorded: list[Row], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("exchange")
    write_recording(folder / "before", recorded)
    assert write(read_rows(folder / "before"), folder / "out") == len(recorded)
    write_recording(folder / "after", read(folder / "out"))
    assert list(read_rows(folder / "after")) == list(read_rows(folder / "before"))


def test_many_messages_keep_their_order_in_mcap_whatever_their_times_say(tmp_path: Path) -> None:
    recorded = [Row(5000 - n // 2, f"t/{n % 7}", bytes(1000)) for n in range(5000)]
    write_mcap(recorded, tmp_path / "r.mcap")
    assert list(read_mcap(tmp_path / "r.mcap")) == recorded


def test_equal_payloads_are_one_file(tmp_path: Path) -> None:
    write_json_lines([FULL, FULL], tmp_path / "r.jsonl")
    assert [f.read_bytes() for f in payload_folder(tmp_path / "r.jsonl").iterdir()] == [FULL.payload]


def test_nothing_is_written_over(tmp_path: Path) -> None:
    write_recording(tmp_path / "r", [FULL])
    write_json_lines([FULL], tmp_path / "r.jsonl")
    write_mcap([FULL], tmp_path / "r.mcap")
    with pytest.raises(RecordingError, match="is there already"):
        write_recording(tmp_path / "r", [])
    with pytest.raises(ExchangeError, match="is there already"):
        write_json_lines([], tmp_path / "r.jsonl")
    with pytest.raises(ExchangeError, match="is there already"):
        write_mcap([], tmp_path / "r.mcap")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda line: line.replace('"qos":1', '"qos":7'), "line 2: qos is 7"),
        (lambda line: line.replace('"qos":1', '"qos":"1"'), "line 2: qos is '1'"),
        (lambda line: line.replace('"topic"', '"subject"'), "line 2: topic is missing"),
        (lambda line: line.replace('"payload":"', '"payload":"../'), "should be a SHA-256"),
        (lambda line: line[:-9], "line 2: "),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, change: Callable[[str], str], what: str) -> None:
    path = tmp_path / "r.jsonl"
    write_json_lines([FULL, FULL], path)
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{change(second)}\n")
    with pytest.raises(ExchangeError, match=what):
        list(read_json_lines(path))


def test_a_changed_payload_is_noticed(tmp_path: Path) -> None:
    write_json_lines([FULL], tmp_path / "r.jsonl")
    [file] = payload_folder(tmp_path / "r.jsonl").iterdir()
    file.write_bytes(b"other")
    with pytest.raises(ExchangeError, match="not the payload of that name"):
        list(read_json_lines(tmp_path / "r.jsonl"))


MCAP = b"\x89MCAP0\r\n"
# a record of a size that no machine can count, in a chunk that is not compressed
COUNTLESS = struct.pack("<BQ", 0x0C, 2**64 - 1)
CHUNK = struct.pack("<QQQIIQ", 0, 0, len(COUNTLESS), 0, 0, len(COUNTLESS)) + COUNTLESS


@pytest.mark.parametrize(
    "content",
    [b"", b"no MCAP", MCAP + bytes(100), MCAP + struct.pack("<BQ", 0x06, len(CHUNK)) + CHUNK],
)
def test_what_is_no_mcap_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.mcap").write_bytes(content)
    with pytest.raises(ExchangeError, match="no MCAP file"):
        list(read_mcap(tmp_path / "r.mcap"))


def test_a_damaged_mcap_file_is_refused(tmp_path: Path) -> None:
    write_mcap([FULL], tmp_path / "r.mcap")
    content = bytearray((tmp_path / "r.mcap").read_bytes())
    content[content.index(FULL.payload[100:110])] ^= 1
    (tmp_path / "r.mcap").write_bytes(content)
    with pytest.raises(ExchangeError, match="no MCAP file"):
        list(read_mcap(tmp_path / "r.mcap"))


@pytest.mark.parametrize("in_base64", [True, False])
def test_mqtt_recorders_csv_is_read(tmp_path: Path, in_base64: bool) -> None:
    payload = 'one, "two"\nthree'
    written = base64.b64encode(payload.encode()).decode() if in_base64 else payload
    with (tmp_path / "r.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["a/b", written, 1, False, 1700000000.5, 0.1], ["c", "", 0, True, 1700000001.0, 0]])
    first, second = read_mqtt_recorder(tmp_path / "r.csv", payloads_in_base64=in_base64)
    assert first == Row(1_700_000_000_500_000_000, "a/b", payload.encode(), 1)
    assert second == Row(1_700_000_001_000_000_000, "c", b"", 0, retain=True)


def test_a_csv_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ExchangeError, match="line 1: 2 fields; mqtt-recorder writes topic"):
        list(read_mqtt_recorder(tmp_path / "r.csv", payloads_in_base64=False))


@pytest.mark.mosquitto
@pytest.mark.usefixtures("mosquitto")
def test_what_mosquitto_sub_prints_is_read(mosquitto_sub: str, connect: Callable[..., Client], tmp_path: Path) -> None:
    sent = [(f"x/{n} y", bytes([n, 0, 10, 255]) * n) for n in range(5)]
    with EmbeddedBroker("mosquitto") as broker:
        client = connect(broker.settings)
        client.publish(Publication("x/kept", b"first", retain=True))
        command = [mosquitto_sub, "-p", str(broker.settings.port), "-V", "5", "-q", "1", "-t", "x/#", "-C", "6"]
        listening = subprocess.Popen([*command, "-F", MOSQUITTO_FORMAT], stdout=subprocess.PIPE)
        assert listening.stdout is not None
        line = listening.stdout.readline()  # the retained one: it is subscribed
        for topic, payload in sent:
            client.publish(Publication(topic, payload))
        rest, _ = listening.communicate(timeout=20)
    (tmp_path / "r.txt").write_bytes(line + rest)
    first, *others = read_mosquitto_sub(tmp_path / "r.txt")
    assert (first.topic, first.payload, first.retain, first.qos) == ("x/kept", b"first", True, 1)
    assert [(row.topic, row.payload) for row in others] == sent
    assert all(a.received_at_ns <= b.received_at_ns for a, b in pairwise(others))


def test_text_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("1700000000.123456789 a 1 0 zz\n")
    with pytest.raises(ExchangeError, match="line 1: not what mosquitto_sub"):
        list(read_mosquitto_sub(tmp_path / "r.txt"))


LINE = '{"received_at_ns":1,"topic":"a","qos":0,"retain":false,"duplicate":false,"payload":"%s"}'
OF_NOTHING = hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda line: "[" * 1100, "too deep to be a message"),
        (lambda line: line.replace('"a"', '"\\ud800"'), "surrogates not allowed"),
        (lambda line: line.replace(":1,", ":9223372036854775808,"), "is not one between 1970 and 2262"),
        (lambda line: line.replace('"qos"', '"properties":{"user":[["\\ud800",""]]},"qos"'), "surrogates not allowed"),
        (lambda line: line.replace('"qos"', '"properties":[],"qos"'), "MQTT properties are an object"),
    ],
)
def test_a_line_that_no_recording_can_hold_is_refused(tmp_path: Path, change: Callable[[str], str], what: str) -> None:
    (tmp_path / "r.jsonl.payloads").mkdir()
    (tmp_path / "r.jsonl.payloads" / OF_NOTHING).touch()
    (tmp_path / "r.jsonl").write_text(LINE % OF_NOTHING + "\n")
    assert [row.topic for row in read_json_lines(tmp_path / "r.jsonl")] == ["a"]
    (tmp_path / "r.jsonl").write_text(change(LINE % OF_NOTHING) + "\n")
    with pytest.raises(ExchangeError, match=what):
        list(read_json_lines(tmp_path / "r.jsonl"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x85", "is not text"),
        (b"a,b,0,False,inf,0\n", "line 1: cannot convert float infinity"),
        (b"a,b,0,False,1e30,0\n", "line 1: the time .* is not one between"),
        (b"a,b,0,False,-1,0\n", "line 1: the time -1000000000 is not one between"),
    ],
)
def test_a_csv_that_no_recording_can_hold_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "r.csv").write_bytes(content)
    with pytest.raises(ExchangeError, match=what):
        list(read_mqtt_recorder(tmp_path / "r.csv", payloads_in_base64=False))


def test_a_printed_time_that_no_recording_can_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("9999999999999.000000000 a 1 0 00\n")
    with pytest.raises(ExchangeError, match="line 1: the time 9999999999999000000000 is not one between"):
        list(read_mosquitto_sub(tmp_path / "r.txt"))


CHUNK, HEAD = 6, 8 + 9  # the number of a record that is a chunk; the magic, and a record's number and length


def chunk(uncompressed: int, compression: bytes, data: bytes) -> bytes:
    """An MCAP file of one chunk, as an attacker writes it."""
    words = struct.pack("<QQQII", 0, 0, uncompressed, 0, len(compression)) + compression
    record = words + struct.pack("<Q", len(data)) + data
    return b"\x89MCAP0\r\n" + struct.pack("<BQ", CHUNK, len(record)) + record


@pytest.mark.parametrize(
    "content",
    [
        chunk(1 << 40, b"", b"x"),
        chunk(9, b"zstd", bytes.fromhex("28b52ffd e0 0000000000010000 010000")),  # a frame that claims 2^40 bytes
        chunk(1, b"", b"x").replace(struct.pack("<Q", 1) + b"x", struct.pack("<Q", 1 << 38) + b"x"),
        chunk(1, b"lz4", b"no frame"),
    ],
)
def test_an_mcap_file_that_claims_to_hold_more_than_it_does_takes_no_memory(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.mcap").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ExchangeError, match="no MCAP file"):
            list(read_mcap(tmp_path / "r.mcap"))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_an_mcap_file_whose_times_no_recording_can_hold_is_refused(tmp_path: Path) -> None:
    write_mcap([replace(FULL, received_at_ns=(1 << 64) - 1)], tmp_path / "r.mcap")
    with pytest.raises(ExchangeError, match="is not one between 1970 and 2262"):
        list(read_mcap(tmp_path / "r.mcap"))
