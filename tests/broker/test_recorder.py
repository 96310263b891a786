"""Recording what a real broker delivers: nothing left out, in files of a bounded size, through lost connections."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.client import Client
from broker.embedded import EmbeddedBroker
from broker.events import Message, MessageProperties, Publication, Published
from broker.recorder import Progress, RecorderError, RotatingRecording, capture, numbered
from broker.recording import Row, open_recording, read_rows
from broker.settings import BrokerSettings
from tests.patience import PATIENCE_S

LARGE = 1 << 30


class Recording:
    """A recorder in a thread of its own, until it is stopped."""

    def __init__(self, broker: BrokerSettings, path: Path, topic_filter: str, size: int = LARGE, keep: int = 3) -> None:
        self.path, self.size, self.keep = path, size, keep
        self.broker, self.filter = broker, topic_filter
        self.seen: list[Progress] = []
        self.failure: Exception | None = None
        self.moved = threading.Condition()
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            with closing(RotatingRecording(self.path, self.size, self.keep)) as files:
                for progress in capture(self.broker, (self.filter,), files, self.stopping.is_set):
                    with self.moved:
                        self.seen.append(progress)
                        self.moved.notify_all()
        except Exception as failure:
            with self.moved:
                self.failure = failure
                self.moved.notify_all()

    def until(self, condition: Callable[[Progress], bool]) -> Progress:
        with self.moved:
            assert self.moved.wait_for(
                lambda: self.failure is not None or bool(self.seen and condition(self.seen[-1])), PATIENCE_S
            ), self.seen[-1:]
            if self.failure is not None:
                raise self.failure
            return self.seen[-1]


@contextmanager
def recording(*arguments: Any, **options: Any) -> Iterator[Recording]:
    running = Recording(*arguments, **options)
    running.thread.start()
    try:
        running.until(lambda progress: progress.connected)
        yield running
    finally:
        running.stopping.set()
        running.thread.join()


def say(client: Client, expect: Callable[..., Any], *publications: Publication) -> None:
    """Publish, and wait until the broker has all of QoS 1."""
    tokens = {client.publish(publication) for publication in publications if publication.qos}
    for publication in publications:
        if publication.qos == 0:
            client.publish(publication)
    while tokens:
        tokens.discard(expect(client, Published).token)


def payloads(path: Path) -> list[bytes]:
    return [row.payload for row in read_rows(path)]


def test_a_message_is_recorded_with_all_that_it_came_with(
    broker: EmbeddedBroker, topic: str, connect: Callable[..., Client], expect: Any, tmp_path: Path
) -> None:
    publication = Publication(
        topic=f"{topic}/a",
        payload=bytes(range(256)),
        retain=True,
        expiry_s=1000,
        user=(("key", "one"), ("key", "two")),
        response_topic="answers",
        correlation_data=b"\0\xff",
        content_type="application/x",
        payload_format=0,
    )
    with recording(broker.settings, tmp_path / "r", f"{topic}/#") as running:
        say(connect(broker.settings), expect, publication)
        running.until(lambda progress: progress.messages == 1)
    [row] = read_rows(tmp_path / "r")
    properties = MessageProperties((("key", "one"), ("key", "two")), "application/x", "answers", b"\0\xff", 1000, 0)
    retain = broker.kind == "mosquitto"  # iotcore does not say of a live message whether it is to be retained
    assert row == Row(row.received_at_ns, f"{topic}/a", bytes(range(256)), 1, retain, False, properties, seq=1)


def test_what_was_retained_before_is_recorded_first(
    broker: EmbeddedBroker, topic: str, connect: Callable[..., Client], expect: Any, tmp_path: Path
) -> None:
    client = connect(broker.settings)
    say(client, expect, Publication(f"{topic}/kept", b"old", retain=True))
    with recording(broker.settings, tmp_path / "r", f"{topic}/#") as running:
        running.until(lambda progress: progress.messages == 1)
        say(client, expect, Publication(f"{topic}/live", b"new"))
        running.until(lambda progress: progress.messages == 2)
    assert [(row.payload, row.retain) for row in read_rows(tmp_path / "r")] == [(b"old", True), (b"new", False)]


def test_messages_are_recorded_in_order_and_a_recording_is_continued(
    broker: EmbeddedBroker, topic: str, connect: Callable[..., Client], expect: Any, tmp_path: Path
) -> None:
    client = connect(broker.settings)
    for start in (0, 500):
        with recording(broker.settings, tmp_path / "r", topic) as running:
            say(client, expect, *(Publication(topic, b"%d" % (start + n)) for n in range(500)))
            running.until(lambda progress: progress.messages == 500)
    assert payloads(tmp_path / "r") == [b"%d" % n for n in range(1000)]


def test_a_full_file_is_rotated_and_the_oldest_is_let_go(
    broker: EmbeddedBroker, topic: str, connect: Callable[..., Client], expect: Any, tmp_path: Path
) -> None:
    path, size = tmp_path / "r", 200_000
    with recording(broker.settings, path, topic, size=size, keep=2) as running:
        client = connect(broker.settings)
        for n in range(60):
            say(client, expect, Publication(topic, bytes([n]) * 20_000))
        running.until(lambda progress: progress.messages == 60)
    files = [numbered(path, 2), numbered(path, 1), path]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["r", "r.1", "r.2"]
    assert all(file.stat().st_size <= size for file in files)
    kept = [payload[0] for file in files for payload in payloads(file)]
    assert kept == list(range(kept[0], 60))
    assert running.seen[-1].rotations > 2


def test_without_rotation_a_full_file_is_the_end_and_keeps_what_it_has(
    broker: EmbeddedBroker, topic: str, connect: Callable[..., Client], expect: Any, tmp_path: Path
) -> None:
    with recording(broker.settings, tmp_path / "r", topic, size=100_000, keep=0) as running:
        say(connect(broker.settings), expect, *(Publication(topic, bytes(20_000)) for _ in range(10)))
        with pytest.raises(RecorderError, match="is full with 100000 bytes: raise --max-size"):
            running.until(lambda progress: progress.messages == 10)
    assert 0 < len(payloads(tmp_path / "r")) < 10


def test_one_message_larger_than_a_file_is_recorded_all_the_same(tmp_path: Path) -> None:
    with closing(RotatingRecording(tmp_path / "r", 100_000, keep=1)) as files:
        for n in range(3):
            files.write([Message("t", bytes([n]) * 300_000, 1, False, False, MessageProperties(), n, 1, n)])
    assert [payload[0] for payload in payloads(numbered(tmp_path / "r", 1)) + payloads(tmp_path / "r")] == [1, 2]


def test_a_cut_connection_loses_nothing(
    broker: EmbeddedBroker, relay: Any, topic: str, connect: Callable[..., Client], expect: Any, tmp_path: Path
) -> None:
    client = connect(broker.settings)
    with recording(relay.settings, tmp_path / "r", topic) as running:
        for start in range(0, 300, 100):
            say(client, expect, *(Publication(topic, b"%d" % n) for n in range(start, start + 100)))
            relay.cut()
        running.until(lambda _: {*payloads(tmp_path / "r")} == {b"%d" % n for n in range(300)})
    assert any(progress.trouble for progress in running.seen)


def test_a_file_that_is_more_than_a_recording_is_not_written_to(tmp_path: Path) -> None:
    with closing(open_recording(tmp_path / "journal")) as connection:
        connection.execute("CREATE TABLE versions (version INTEGER) STRICT")
    with pytest.raises(RecorderError, match="more than a recording"):
        RotatingRecording(tmp_path / "journal", LARGE, keep=1)


def test_two_recorders_do_not_write_one_file(broker: EmbeddedBroker, topic: str, tmp_path: Path) -> None:
    with (
        recording(broker.settings, tmp_path / "r", topic),
        closing(RotatingRecording(tmp_path / "r", LARGE, 1)) as two,
        pytest.raises(RecorderError, match="another recorder writes"),
    ):
        next(capture(broker.settings, (topic,), two, lambda: False))
