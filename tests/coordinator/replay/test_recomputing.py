"""Asking the base model again what a journal's was asked, on real journals of a real process."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from base_model.examples import Example, save_examples
from base_model.reference import resolve
from broker.recording import append, open_recording, read_rows, transaction
from coordinator.calibration import CalibrationSet
from coordinator.journal import ANSWER
from coordinator.questions import MeasuredLosses, answer_from_bytes, answer_to_bytes
from coordinator.replay.recomputing import AskedOtherwise, recompute
from coordinator.settings import CalibrationSettings
from schemas.adapter import Layout

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


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.jsonl"
    save_examples(EXAMPLES, path)
    return path


@pytest.fixture
def coordinator(
    start_coordinator: Callable[..., Any], node_of: Callable[[Path], Any], tiny_model_dir: Path, examples: Path
) -> Any:
    """One that has trained two anchors and judged a version, and has ended."""
    running, node = start_coordinator(tiny_model_dir, TERMS % examples), node_of(tiny_model_dir)
    for version in (0, 1):
        node.until_version(version)
        for name in ("a", "b"):
            node.send(name, version, node.head, 0.001)
    node.until_version(2)
    node.until(lambda: node.release is not None and node.release.judged)
    running.process.terminate()
    assert running.ends()[0] == 0
    return running


def asked_again(coordinator: Any, tiny_model_dir: Path, examples: Path, **changes: int) -> list[Any]:
    settings = CalibrationSettings.model_validate(
        {"data": examples, "anchor_examples": 4, "gate_examples": 4, **changes}
    )
    calibration = CalibrationSet.load(examples, settings.anchor_examples, settings.gate_examples)
    resolved = resolve(str(tiny_model_dir), coordinator.data_dir.parent / "cache")
    return list(recompute(coordinator.data_dir / "journal.db", resolved, calibration, settings))


def with_losses_raised(journal: Path, altered: Path, layout: Layout, by: float) -> None:
    """A copy of the journal in which each recorded loss of the gate is another."""
    target = open_recording(altered)
    with transaction(target):
        for row in read_rows(journal):
            payload = row.payload
            if row.topic.startswith(ANSWER) and isinstance(
                answer := answer_from_bytes(layout, payload), MeasuredLosses
            ):
                payload = answer_to_bytes(MeasuredLosses(tuple(loss + by for loss in answer.losses), answer.seconds))
            append(target, replace(row, payload=payload, seq=0))
    target.close()


def test_the_same_model_answers_as_it_did_and_another_answer_is_noticed(
    coordinator: Any, tiny_model_dir: Path, examples: Path, tmp_path: Path
) -> None:
    answers = asked_again(coordinator, tiny_model_dir, examples)
    assert {answer.question for answer in answers} == {"TrainAnchor", "MeasureLosses"}
    for answer in answers:
        assert answer.largest_difference < 1e-4
        assert answer.relative_error is None or answer.relative_error < 0.02
    journal = coordinator.data_dir / "journal.db"
    config = json.loads(next(read_rows(journal)).payload)
    layout = Layout.model_validate(config["layout"])
    coordinator.data_dir.joinpath("journal.db").rename(tmp_path / "true.db")
    # candidate and served are raised alike, so that the decision, and with it every later question, stays
    with_losses_raised(tmp_path / "true.db", journal, layout, 0.5)
    raised = [answer for answer in asked_again(coordinator, tiny_model_dir, examples) if answer.relative_error is None]
    assert [answer.largest_difference for answer in raised] == pytest.approx([0.5] * len(raised), abs=1e-3)


def test_the_command_says_of_every_answer_how_far_it_is_and_asks_no_other_model(
    coordinator: Any, tiny_model_dir: Path, examples: Path
) -> None:
    with pytest.raises(AskedOtherwise, match="the same examples, anchor_examples and gate_examples"):
        asked_again(coordinator, tiny_model_dir, examples, gate_examples=3)
    command = [sys.executable, "-m", "alignfed", "replay", str(coordinator.data_dir / "journal.db"), "--recompute"]
    with_settings = [*command, "--config", str(coordinator.config)]
    said = subprocess.run(with_settings, capture_output=True, text=True, check=True).stdout.splitlines()
    asked = json.loads(subprocess.run([*with_settings, "--json"], capture_output=True, text=True, check=True).stdout)
    assert len(said) == len(asked) >= 3
    assert "TrainAnchor  loss differs by 0" in said[0]
    refused = subprocess.run([*command, "--fuzz", "1"], capture_output=True, text=True, check=False)
    assert (refused.returncode, "exclude each other" in refused.stderr) == (2, True)
