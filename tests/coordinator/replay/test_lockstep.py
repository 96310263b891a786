"""A federation whose strategy asks a real model, made again: through a broker in lock-step, and from topics alone."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from base_model.examples import Example, save_examples
from broker.client import Client
from broker.embedded import EmbeddedBroker
from broker.events import Publication, Published
from broker.recorder import RotatingRecording, capture
from broker.recording import RecordingError, read_rows
from broker.settings import BrokerSettings
from coordinator.journal import ANSWER
from coordinator.registry import Registry
from coordinator.replay.lockstep import OutOfStep, replay_in_step
from coordinator.replay.outside import replay_topics
from coordinator.replay.source import open_source
from tests.patience import PATIENCE_S

DEMO = Path(__file__).parents[2] / "golden" / "demo.rec"
ROOMS = ("kitchen", "office", "hall", "garage", "attic", "cellar", "garden", "bath")
EXAMPLES = tuple(Example(prompt=f"turn on the lamp in the {room}", completion=f'{{"area":"{room}"}}') for room in ROOMS)
TERMS = """
strategy = {name = "alignfed", buffer_size = 2}
[coordinator.calibration]
data = "%s"
anchor_examples = 4
gate_examples = 4
training = {steps = 2, batch_size = 4, learning_rate = 1e-3}
"""


@contextmanager
def recorder(broker: EmbeddedBroker, path: Path) -> Iterator[None]:
    """Records everything on the broker from beside."""
    stopping = threading.Event()

    def record() -> None:
        with closing(RotatingRecording(path, 1 << 30, 0)) as files:
            for _ in capture(broker.settings, ("alignfed/#",), files, stopping.is_set):
                pass

    thread = threading.Thread(target=record)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


@pytest.fixture
def recorded(
    broker: EmbeddedBroker,
    start_coordinator: Callable[..., Any],
    node_of: Callable[[Path], Any],
    tiny_model_dir: Path,
    tmp_path: Path,
) -> Any:
    """Three versions with their anchors and judgements, and a restart between them, recorded from beside."""
    save_examples(EXAMPLES, tmp_path / "calibration.jsonl")
    with recorder(broker, tmp_path / "topics.rec"):
        running = start_coordinator(tiny_model_dir, TERMS % (tmp_path / "calibration.jsonl"))
        node = node_of(tiny_model_dir)
        for version in range(3):
            node.until_version(version)
            # what had been asked is answered, so that both kinds of answers are in
            node.until(lambda version=version: node.release is not None and node.release.judged == version)
            node.send("a", version, node.head, 0.001)
            node.send("b", version, node.head, -0.002)
            if version == 0:
                node.until_version(1)
                epoch = node.head.epoch
                running.kill()
                running.start()
                node.until(lambda epoch=epoch: node.head.epoch > epoch)
        node.until_version(3)
        node.until(lambda: node.release.judged == 3)
        running.process.terminate()
        assert running.ends()[0] == 0
    return running


def digests(folder: Path) -> list[str]:
    """Of every version in a coordinator's registry."""
    return [manifest.digest for manifest in Registry(folder / "adapters").versions()]


def test_versions_that_a_model_had_a_part_in_come_out_the_same_through_a_broker_and_from_topics_alone(
    recorded: Any, tmp_path: Path
) -> None:
    journal, folder, topics = recorded.data_dir / "journal.db", tmp_path / "again", tmp_path / "topics.rec"
    kept = digests(recorded.data_dir)
    assert sum(row.topic.startswith(ANSWER) for row in read_rows(journal)) >= 6
    with EmbeddedBroker("auto") as other:
        replayed = replay_in_step(open_source(journal), other.settings, folder)
    assert replayed.agrees and [version.version for version in replayed.versions] == [0, 1, 2, 3]
    assert digests(folder) == kept
    said = [(row.received_at_ns, row.topic, row.payload) for row in read_rows(journal)]
    assert [(row.received_at_ns, row.topic, row.payload) for row in read_rows(folder / "journal.db")] == said

    without = replay_topics(topics)
    assert without.not_folded is not None and "--recompute" in without.not_folded
    command = [sys.executable, "-m", "alignfed", "replay", str(topics), "--recompute", "--json"]
    ran = subprocess.run([*command, "--config", str(recorded.config)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    versions = json.loads(ran.stdout)
    assert [version["replayed"] for version in versions] == kept
    assert {version["reason"] for version in versions} == {"made again, bit for bit"}


def test_the_command_stops_where_it_is_told_to_and_takes_no_folder_that_is_used(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "alignfed", "replay", str(DEMO), "--lockstep", "--json"]
    with EmbeddedBroker("auto") as other:
        through = ["--through", other.settings.address, "--coordinator", str(tmp_path / "again"), "--until", "2"]
        ran = subprocess.run([*command, *through], capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert [version["agrees"] for version in json.loads(ran.stdout)] == [True] * 3
        again = subprocess.run([*command, *through], capture_output=True, text=True, check=False)
    assert again.returncode == 1 and "is not empty" in again.stderr
    alone = subprocess.run([*command, "--coordinator", "x"], capture_output=True, text=True, check=False)
    assert alone.returncode == 2


def test_a_recording_of_topics_has_no_order_to_keep_step_with(tmp_path: Path) -> None:
    topics = replace(open_source(DEMO), is_journal=False)
    with pytest.raises(RecordingError, match="only a journal"):
        replay_in_step(topics, BrokerSettings(), tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_broker_on_which_somebody_else_publishes_is_out_of_step(tmp_path: Path) -> None:
    source = open_source(DEMO)
    first = next(row for row in source.rows() if not row.topic.startswith("$"))
    with EmbeddedBroker("auto") as other, Client(other.settings, "somebody", clean_start=True) as somebody:
        token = somebody.publish(Publication(first.topic, b"something else", retain=True))
        while not (isinstance(event := somebody.next_event(PATIENCE_S), Published) and event.token == token):
            assert event is not None
        with pytest.raises(OutOfStep, match="to which nobody else publishes"):
            replay_in_step(source, other.settings, tmp_path / "again")
