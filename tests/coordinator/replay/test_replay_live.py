"""A recording of a running federation: what it replays to, and what a fresh coordinator makes of it."""

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from broker.embedded import EmbeddedBroker
from broker.recorder import RotatingRecording, capture
from broker.recording import Row, read_rows
from broker.replayer import ReplayerError, replay_through
from broker.settings import BrokerSettings
from coordinator.journal import read_versions
from coordinator.registry import Registry
from coordinator.replay.inside import replay_journal
from coordinator.replay.outside import replay_topics
from coordinator.replay.recorded import is_of_a_node, sender_of
from coordinator.replay.source import open_source
from coordinator.replay.what_if import Change, what_if


@pytest.fixture
def recorded(broker: EmbeddedBroker, start_coordinator: Any, base_model: Path, node_of: Any, tmp_path: Path) -> Any:
    """A federation of three versions, its coordinator killed and started in between, recorded from beside it."""
    path, stopping = tmp_path / "topics.rec", threading.Event()
    counted: list[int] = []

    def record() -> None:
        with closing(RotatingRecording(path, 1 << 30, 0)) as files:
            for progress in capture(broker.settings, ("alignfed/#",), files, stopping.is_set):
                counted.append(progress.messages)

    recorder = threading.Thread(target=record)
    recorder.start()
    coordinator, node = start_coordinator(base_model), node_of(base_model)
    try:
        node.until_version(0)
        for version in range(3):
            head = node.head
            node.send("a", version, head, 0.1 * (version + 1))
            if version == 1:
                coordinator.kill()
                coordinator.start()
                node.until(lambda head=head: node.head.epoch > head.epoch)
            node.send("b", version, head, -0.3)
            node.until_version(version + 1)
        last = "global/head"
        while sum(last in row.topic and b'"version":3' in row.payload for row in read_rows(path)) == 0:
            node.until(lambda: True)
        coordinator.process.terminate()
        assert coordinator.process.wait(30) == 0
    finally:
        stopping.set()
        recorder.join()
    return path, coordinator


def test_a_recording_of_the_topics_replays_to_the_digests_of_the_registry(recorded: Any) -> None:
    path, coordinator = recorded
    journal = coordinator.data_dir / "journal.db"
    assert replay_journal(journal).agrees
    kept = [manifest.digest for manifest in Registry(coordinator.data_dir / "adapters").versions()]
    replayed = replay_topics(path, journal)
    assert [version.replayed for version in replayed.versions] == kept
    assert {version.reason for version in replayed.versions} == {"made again, bit for bit"}
    alone = replay_topics(path)
    assert alone.agrees
    assert [version.verdict for version in alone.versions] == ["agrees"] * 4
    assert [version.digest for version in what_if(open_source(path, journal), Change()).versions] == kept


def test_in_lockstep_through_a_broker_a_fresh_coordinator_makes_the_same_versions(
    recorded: Any, broker: EmbeddedBroker, start_coordinator: Any, base_model: Path, node_of: Any, tmp_path: Path
) -> None:
    path, first = recorded
    before = read_versions(first.data_dir / "journal.db")
    first.data_dir.rename(tmp_path / "before")
    broker.kill()
    broker.restart()
    fresh, node = start_coordinator(base_model), node_of(base_model)
    node.messages.clear()
    node.until_version(0)
    *_, sent = replay_through(broker.settings, filter(is_of_a_node, read_rows(path)), sender_of, None)
    node.until_version(3)
    fresh.process.terminate()
    assert fresh.process.wait(30) == 0
    made = read_versions(fresh.data_dir / "journal.db")
    assert [manifest.digest for manifest in made] == [manifest.digest for manifest in before]
    assert (sent.senders, sent.unheard) == (2, 0)


def test_a_broker_that_is_not_there_is_said() -> None:
    with EmbeddedBroker("auto") as gone:
        settings = BrokerSettings(port=gone.settings.port)
    with pytest.raises(ReplayerError, match=settings.address):
        list(replay_through(settings, [Row(1, "a", b"")], sender_of, None))
