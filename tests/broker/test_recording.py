"""The recording file: what is written is read back, and a file that is not whole is refused in words."""

import sqlite3
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.events import Message, MessageProperties
from broker.recording import (
    APPLICATION_ID,
    RecordingError,
    Row,
    append,
    open_recording,
    properties_from_json,
    read_rows,
    reading,
    row_of,
    transaction,
)


def record(path: Path, *rows: Row) -> None:
    with closing(open_recording(path)) as connection, transaction(connection):
        for row in rows:
            append(connection, row)


def row(number: int, payload: bytes = b"") -> Row:
    return Row(received_at_ns=number, topic=f"t/{number}", payload=payload)


@contextmanager
def refused(what: str) -> Iterator[None]:
    with pytest.raises(RecordingError, match=what):
        yield


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
properties = st.builds(
    MessageProperties,
    user=st.lists(st.tuples(text, text)).map(tuple),
    content_type=st.none() | text,
    response_topic=st.none() | text,
    correlation_data=st.none() | st.binary(),
    expiry_s=st.none() | st.integers(0, 2**32 - 1),
    payload_format=st.sampled_from((None, 0, 1)),
)
messages = st.builds(
    Message,
    topic=text,
    payload=st.binary(),
    qos=st.sampled_from((0, 1)),
    retain=st.booleans(),
    duplicate=st.booleans(),
    properties=properties,
    received_at_ns=st.integers(0, 2**63 - 1),
    generation=st.just(1),
    mid=st.just(1),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages)
def test_a_message_is_read_back_as_it_was(tmp_path: Path, message: Message) -> None:
    path = tmp_path / "recording"
    record(path, row_of(message))
    [*_, last] = read_rows(path)
    assert row_of(message) == Row(**{**vars(last), "seq": 0})


def test_a_row_of_before_a_property_was_kept_is_read_as_one_without_it(tmp_path: Path) -> None:
    path = tmp_path / "r"
    record(path, Row(1, "t", b"", properties=MessageProperties(content_type="x", payload_format=1)))
    with closing(sqlite3.connect(path)) as connection:
        [(kept,)] = connection.execute("SELECT properties FROM messages")
    assert kept == '{"content_type":"x","payload_format":1}'
    assert properties_from_json('{"content_type":"x"}') == MessageProperties(content_type="x")


def test_rows_are_numbered_in_the_order_of_arrival_across_openings(tmp_path: Path) -> None:
    record(tmp_path / "r", row(10), row(20))
    record(tmp_path / "r", row(30))
    assert [(r.seq, r.received_at_ns) for r in read_rows(tmp_path / "r")] == [(1, 10), (2, 20), (3, 30)]
    assert [r.seq for r in read_rows(tmp_path / "r", after_seq=2)] == [3]


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with closing(open_recording(tmp_path / "r")) as connection:
        connection.execute("CREATE TABLE ledger (id TEXT PRIMARY KEY) STRICT")
        with transaction(connection):
            append(connection, row(1))
            connection.execute("INSERT INTO ledger VALUES ('once')")
        with pytest.raises(sqlite3.IntegrityError), transaction(connection):
            append(connection, row(2))
            connection.execute("INSERT INTO ledger VALUES ('once')")
    assert [r.received_at_ns for r in read_rows(tmp_path / "r")] == [1]


def test_a_row_outside_a_transaction_is_refused(tmp_path: Path) -> None:
    with closing(open_recording(tmp_path / "r")) as connection, pytest.raises(ValueError, match="transaction"):
        append(connection, row(1))


def test_a_recording_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    with closing(open_recording(tmp_path / "r")) as connection:
        with transaction(connection):
            append(connection, row(1))
        with transaction(connection):
            append(connection, row(2))
            assert [r.received_at_ns for r in read_rows(tmp_path / "r")] == [1]
        assert [r.received_at_ns for r in read_rows(tmp_path / "r")] == [1, 2]


def test_reading_leaves_no_trace(tmp_path: Path) -> None:
    record(tmp_path / "r", row(1))
    before = (tmp_path / "r").read_bytes()
    assert len(list(read_rows(tmp_path / "r"))) == 1
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("r", before)]


def test_every_commit_is_on_disk_before_it_returns(tmp_path: Path) -> None:
    with closing(open_recording(tmp_path / "r")) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_two_writers_do_not_wait_for_each_other_for_ever(tmp_path: Path) -> None:
    with closing(open_recording(tmp_path / "r")) as first, closing(open_recording(tmp_path / "r")) as second:
        second.execute("PRAGMA busy_timeout = 10")
        with transaction(first), refused("another program is writing"), transaction(second):
            pass


def test_a_full_disk_is_said_and_keeps_what_was_committed(tmp_path: Path) -> None:
    with closing(open_recording(tmp_path / "r")) as connection:
        with transaction(connection):
            append(connection, row(1))
        connection.execute("PRAGMA max_page_count = 20")
        with refused("disk is full"), transaction(connection):
            append(connection, row(2, bytes(1_000_000)))
    assert [r.received_at_ns for r in read_rows(tmp_path / "r")] == [1]


def test_files_that_are_no_recording_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, though long enough to look at " * 10)
    (tmp_path / "empty").touch()
    with closing(sqlite3.connect(tmp_path / "other")) as other:
        other.execute("CREATE TABLE t (x)")
    record(tmp_path / "newer")
    with closing(sqlite3.connect(tmp_path / "newer")) as newer:
        newer.execute("PRAGMA user_version = 99")
    for name, reason in {
        "text": "not a recording",
        "empty": "is empty",
        "other": "of another program",
        "newer": "use a newer one",
    }.items():
        with refused(reason):
            list(read_rows(tmp_path / name))
        with refused(reason):
            open_recording(tmp_path / name)


def test_a_file_that_does_not_exist_is_not_read(tmp_path: Path) -> None:
    with refused("does not exist"):
        list(read_rows(tmp_path / "missing"))
    assert not (tmp_path / "missing").exists()


def test_a_leftover_log_of_a_deleted_recording_does_not_come_back(tmp_path: Path) -> None:
    with closing(open_recording(tmp_path / "r")) as connection:
        with transaction(connection):
            append(connection, row(1))
        log = (tmp_path / "r-wal").read_bytes()
    (tmp_path / "r").unlink()
    (tmp_path / "r-wal").write_bytes(log)
    open_recording(tmp_path / "r").close()
    assert list(read_rows(tmp_path / "r")) == []


def test_a_recording_cut_short_anywhere_is_refused_or_reads_as_it_was(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    record(whole, *(row(i, bytes([i]) * 3000) for i in range(20)))
    content, rows = whole.read_bytes(), list(read_rows(whole))
    offsets = [*range(0, 200, 7), *range(4000, 4200, 9), *range(0, len(content), 509), len(content) - 1]
    for offset in offsets:
        cut.write_bytes(content[:offset])
        with pytest.raises(RecordingError):
            list(read_rows(cut))
        with pytest.raises(RecordingError):
            open_recording(cut)
    cut.write_bytes(content)
    assert list(read_rows(cut)) == rows


def test_a_changed_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    whole, flipped = tmp_path / "whole", tmp_path / "flipped"
    record(whole, *(row(i, bytes([i]) * 3000) for i in range(5)))
    content, rows = whole.read_bytes(), list(read_rows(whole))
    refusals = 0
    for offset in range(0, len(content), 97):
        flipped.write_bytes(content[:offset] + bytes([content[offset] ^ 0x10]) + content[offset + 1 :])
        try:
            read = list(read_rows(flipped))
        except RecordingError:
            refusals += 1
        else:
            assert read == rows
    assert refusals >= 5 * 3000 // 97  # no change in a payload goes unnoticed


def test_damaged_text_in_the_file_s_own_tables_is_refused(tmp_path: Path) -> None:
    record(tmp_path / "r", row(1))
    content = (tmp_path / "r").read_bytes()
    assert content.count(b"tablemessages") == 1
    (tmp_path / "r").write_bytes(content.replace(b"tablemessages", b"table\x8eessages"))
    with refused("r: "), reading(tmp_path / "r"):
        pass
    with refused("r: "):
        open_recording(tmp_path / "r")


COLUMNS = "seq INTEGER PRIMARY KEY, received_at_ns, topic, qos, retain, dup, properties, payload, crc32"


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [
        ("topic", b"a", "row 1 is damaged, its checksum"),
        ("received_at_ns", "soon", "row 1 is damaged, its checksum"),
        ("payload", "text", "row 1 is damaged, its checksum"),
        ("properties", "[]", "row 1 is damaged: MQTT properties are an object, not a list"),
        ("properties", "[" * 1100, "row 1 is damaged: MQTT properties are no nested lists"),
        ("properties", '{"user":[["a"]]}', "row 1 is damaged: a user property in MQTT is two texts"),
        ("properties", '{"expiry_s":"1"}', "row 1 is damaged: the MQTT property expiry_s is no int"),
        ("properties", "no JSON", "row 1 is damaged: Expecting value"),
    ],
)
def test_a_row_with_a_true_checksum_of_what_no_recorder_writes_is_refused(
    tmp_path: Path, column: str, value: object, what: str
) -> None:
    values = {"received_at_ns": 1, "topic": "t", "qos": 1, "retain": 0, "dup": 0, "properties": "{}", "payload": b""}
    *fields, payload = (values | {column: value}).values()
    content = payload if isinstance(payload, bytes) else str(payload).encode()
    checksum = zlib.crc32(content, zlib.crc32(repr(fields).encode()))
    with closing(sqlite3.connect(tmp_path / "r", isolation_level=None)) as anybody_s:
        anybody_s.executescript(f"PRAGMA application_id = {APPLICATION_ID}; CREATE TABLE messages ({COLUMNS})")
        anybody_s.execute("INSERT INTO messages VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?)", (*fields, payload, checksum))
    with refused(what):
        list(read_rows(tmp_path / "r"))


def test_a_reader_that_stopped_half_way_is_closed_on_any_thread(tmp_path: Path) -> None:
    path = tmp_path / "one.rec"
    record(path, row(1), row(2))
    rows = read_rows(path)
    next(rows)
    with ThreadPoolExecutor(1) as elsewhere:
        elsewhere.submit(rows.close).result()
    with pytest.raises(StopIteration):
        next(rows)
