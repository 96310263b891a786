"""The coordinator as a process with a base model of its own: what it asks, what it serves, and how both of them end."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from base_model.examples import Example, save_examples
from coordinator.calibration import CalibrationSet
from coordinator.replay.inside import replay
from schemas.adapter import Adapter
from schemas.messages import CoordinatorState
from schemas.topics import CoordinatorStateOf, GlobalAverageChunk, GlobalChunk, GlobalManifestOf
from tests.patience import PATIENCE_S

ROOMS = ("kitchen", "office", "hall", "garage", "attic", "cellar", "garden", "bath")
EXAMPLES = tuple(
    Example(prompt=f"turn {state} the lamp in the {room}", completion=f'{{"intent":"Turn{state}","area":"{room}"}}')
    for room in ROOMS
    for state in ("on", "off")
)


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    """A file of sixteen labelled examples."""
    path = tmp_path / "calibration.jsonl"
    save_examples(EXAMPLES, path)
    return path


def settings(calibration: Path, strategy: str, keep: int = 2) -> str:
    """A strategy with a calibration set whose anchor hardly moves anything: what nodes send is what counts."""
    return f"""
strategy = {strategy}
keep_versions = {keep}
[coordinator.calibration]
data = "{calibration}"
anchor_examples = 4
gate_examples = 8
training = {{steps = 2, batch_size = 4, learning_rate = 1e-7}}
"""


# it moves by the mean delta, whatever that does
BOUNDLESS = "norm_limit = 1e9, trust = {fleet = 1}"
ALIGNFED = f'{{name = "alignfed", buffer_size = 2, step = 1, {BOUNDLESS}, anchor = {{votes = 1e-6}}}}'
GATED_HEADS = ALIGNFED.replace("}}", "}, release = {decay = 0, guard = {rise = 10}}}")  # the average is the head


@dataclass(frozen=True)
class Judge:
    """The same base model in this process: it finds deltas that help, and measures what the gate should see."""

    model: Any
    gate: tuple[Example, ...]

    def improvement(self, start: Adapter) -> Adapter:
        """A delta that makes the gate fold's answers likelier."""
        from base_model.settings import TrainingConfig
        from base_model.training import train

        config = TrainingConfig(steps=20, batch_size=8, learning_rate=1e-2)
        return train(self.model, start, self.gate, config, lambda step, loss: None).adapter - start

    def loss(self, adapter: Adapter) -> float:
        from base_model.evaluation import losses

        return losses(self.model, adapter, self.gate)


@pytest.fixture
def judge(tiny_model_dir: Path, calibration: Path, tmp_path: Path) -> Judge:
    from base_model.language_model import LanguageModel
    from base_model.reference import resolve

    model = LanguageModel.load(resolve(str(tiny_model_dir), tmp_path / "cache"))
    return Judge(model, CalibrationSet.load(calibration, 4, 8).gate)


@pytest.fixture
def node(node_of: Callable[[Path], Any], tiny_model_dir: Path) -> Any:
    return node_of(tiny_model_dir)


def overshoot(judge: Judge, start: Adapter) -> Adapter:
    """A delta so far along a good direction that 0.6 of it is better than none, and better than all of it."""
    good = judge.improvement(start)
    found = [
        good * factor
        for factor in (2.0**power for power in range(12))
        if judge.loss(start + good * (0.6 * factor)) < min(judge.loss(start), judge.loss(start + good * factor)) - 0.01
    ]
    return found[0]


def both_send(node: Any, sequence: int, delta: float | Adapter) -> list[str]:
    """Two nodes send the same delta from the head."""
    assert node.head is not None
    return [node.send(name, sequence, node.head, delta) for name in ("a", "b")]


def model_process(coordinator: Any) -> psutil.Process:
    """The child that runs the base model."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for child in psutil.Process(coordinator.process.pid).children():
            if any("spawn_main" in word for word in child.cmdline()):
                return child
        time.sleep(0.05)
    raise AssertionError("the coordinator has started no process for its model")


def until_gone(process: psutil.Process) -> None:
    psutil.wait_procs([process], timeout=PATIENCE_S)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_where_the_average_is_best_it_is_served_while_nodes_train_from_the_head(
    start_coordinator: Callable[..., Any], tiny_model_dir: Path, calibration: Path, node: Any, judge: Judge
) -> None:
    coordinator = start_coordinator(tiny_model_dir, settings(calibration, ALIGNFED))
    node.until_version(0)
    node.until(lambda: node.release is not None)
    first = node.adapter(0)
    assert (node.release.version, node.release.digest) == (0, node.head.digest)
    delta = overshoot(judge, first)
    ids = both_send(node, 0, delta)
    node.until_version(1)
    node.until(lambda: node.release.version == 1)
    assert node.release.judged == 1
    node.until(lambda: all(node.statuses(id_) == ["accepted", "aggregated"] for id_ in ids))
    manifest, head, average = node.version(1), node.adapter(1), node.adapter(1, "average")
    assert (node.head.variant, node.head.digest) == ("head", head.digest)
    assert (node.release.variant, node.release.digest) == ("average", average.digest)
    assert head.digest != average.digest
    assert average.values == pytest.approx((first * 0.4 + head * 0.6).values, abs=1e-5)
    # what is said of it is what another process with the same model finds
    assert manifest.calibration == CalibrationSet.load(calibration, 4, 8).digest
    both_send(node, 1, 0.0)
    node.until_version(2)
    decision = node.version(2).release
    assert (decision.judged, decision.version, decision.variant) == (1, 1, "average")
    assert decision.before == pytest.approx(judge.loss(first), rel=1e-4)
    assert decision.candidate == pytest.approx(judge.loss(average), rel=1e-4)
    assert decision.seconds > 0
    assert all(version.agrees for version in replay(coordinator.data_dir / "journal.db"))


def test_the_served_version_stays_on_the_broker_while_it_is_served_and_leaves_after(
    start_coordinator: Callable[..., Any], tiny_model_dir: Path, calibration: Path, node: Any, judge: Judge
) -> None:
    start_coordinator(tiny_model_dir, settings(calibration, GATED_HEADS, keep=1))
    node.until_version(0)
    first, harm = node.adapter(0), 10.0
    help_ = judge.improvement(first)
    worse = Adapter(first.layout, first.values + harm)
    assert judge.loss(worse) > judge.loss(first) > judge.loss(first + help_)
    both_send(node, 0, harm)
    node.until_version(1)
    both_send(node, 1, 0.0)
    node.until_version(2)
    node.until(lambda: node.retained(GlobalManifestOf(1)) is None)  # neither new nor served
    node.until(lambda: node.release is not None and node.release.epoch == node.head.epoch)
    assert (node.release.version, node.release.variant) == (0, "head")
    assert node.version(2).release.version == 0
    assert node.adapter(0) == first
    both_send(node, 2, Adapter(first.layout, help_.values - harm))
    node.until_version(3)
    node.until(lambda: node.retained(GlobalManifestOf(0)) is None)
    assert node.retained(GlobalChunk(0, 0)) is None
    assert node.release.version == 3
    assert node.body(3, node.release.variant)


def test_a_version_that_was_judged_for_long_is_on_the_broker_again_when_it_is_served(
    start_coordinator: Callable[..., Any], tiny_model_dir: Path, calibration: Path, node: Any, judge: Judge
) -> None:
    gated = 'norm_limit = 1e9, release = {choose = "gated"}'
    gate_alone = f'{{name = "alignfed", preset = "unlabelled", buffer_size = 2, step = 1, {gated}}}'
    coordinator = start_coordinator(tiny_model_dir, settings(calibration, gate_alone, keep=1))
    node.until_version(0)
    model = model_process(coordinator)
    model.suspend()
    both_send(node, 0, judge.improvement(node.adapter(0)))
    for version in (1, 2, 3):
        node.until_version(version)
        both_send(node, version, 10.0)  # nothing that comes after it passes
    node.until(lambda: node.retained(GlobalManifestOf(1)) is None)
    model.resume()
    node.until(lambda: node.release.judged > 1)
    assert (node.release.version, node.release.variant) == (1, "average")
    assert node.version(1).version == 1
    assert node.adapter(1, "average").digest == node.release.digest


def test_an_average_leaves_the_broker_with_its_version(
    start_coordinator: Callable[..., Any], tiny_model_dir: Path, calibration: Path, node: Any
) -> None:
    averaging = '{name = "alignfed", preset = "unlabelled", buffer_size = 2}'
    start_coordinator(tiny_model_dir, settings(calibration, averaging, keep=1))
    node.until_version(0)
    both_send(node, 0, 0.1)
    node.until(lambda: node.release is not None and node.release.version == 1)
    assert node.release.variant == "average"
    assert node.adapter(1, "average") != node.adapter(1)
    both_send(node, 1, 0.1)
    node.until(lambda: node.release.version == 2 and node.retained(GlobalManifestOf(1)) is None)
    assert node.retained(GlobalChunk(1, 0)) is None
    assert node.retained(GlobalAverageChunk(1, 0)) is None
    assert node.adapter(2, "average") != node.adapter(2)


def test_versions_go_on_while_the_model_thinks_and_after_a_kill_it_is_asked_again(
    start_coordinator: Callable[..., Any], tiny_model_dir: Path, calibration: Path, node: Any
) -> None:
    coordinator = start_coordinator(tiny_model_dir, settings(calibration, ALIGNFED))
    node.until_version(0)
    epoch, model = node.head.epoch, model_process(coordinator)
    model.suspend()  # it thinks for as long as we like
    for version in (1, 2):
        both_send(node, version - 1, 0.1)
        node.until_version(version)
    assert node.release.judged == 0
    coordinator.kill()
    model.resume()
    coordinator.start()
    node.until(lambda: node.release.judged == 2)
    assert node.head.epoch > epoch
    both_send(node, 2, 0.1)
    node.until_version(3)
    assert node.version(3).anchor is not None
    until_gone(model)  # the first coordinator's model did not outlive its question
    assert all(version.agrees for version in replay(coordinator.data_dir / "journal.db"))


def test_when_the_model_s_process_is_killed_the_coordinator_ends_and_says_what_happened(
    start_coordinator: Callable[..., Any], tiny_model_dir: Path, calibration: Path, node: Any
) -> None:
    coordinator = start_coordinator(tiny_model_dir, settings(calibration, ALIGNFED))
    node.until_version(0)
    model_process(coordinator).kill()
    code, said = coordinator.ends()
    assert code == 1
    assert "the base model's process ended with code -9" in said
    assert "lower calibration.memory_mb" in said
    assert "Traceback" not in said


def test_what_was_to_be_judged_when_the_model_died_is_judged_for_the_next_coordinator(
    start_coordinator: Callable[..., Any], tiny_model_dir: Path, calibration: Path, node: Any
) -> None:
    coordinator = start_coordinator(tiny_model_dir, settings(calibration, ALIGNFED))
    node.until_version(0)
    model = model_process(coordinator)
    model.suspend()
    both_send(node, 0, 0.1)
    node.until_version(1)
    model.kill()
    assert coordinator.ends()[0] == 1
    coordinator.start()
    node.until(lambda: node.release.judged == 1)


@pytest.mark.parametrize(
    ("number", "to"),
    [
        pytest.param(signal.SIGINT, os.killpg, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, os.kill, id="SIGTERM to it alone"),
        pytest.param(signal.SIGTERM, os.killpg, id="SIGTERM to it and its model"),
    ],
)
def test_a_coordinator_that_is_asked_to_end_leaves_no_process_behind(
    start_coordinator: Callable[..., Any],
    tiny_model_dir: Path,
    calibration: Path,
    node: Any,
    number: int,
    to: Callable[[int, int], None],
) -> None:
    coordinator = start_coordinator(tiny_model_dir, settings(calibration, ALIGNFED))
    node.until_version(0)
    ids = both_send(node, 0, 0.1)
    node.until(lambda: all(node.statuses(id_) == ["accepted"] for id_ in ids))
    family = psutil.Process(coordinator.process.pid).children(recursive=True)
    assert family
    to(coordinator.process.pid, number)
    code, said = coordinator.ends()
    for process in family:
        until_gone(process)
    assert (code, "Traceback" in said) == (0, False), said


def test_the_birth_says_what_nodes_train(
    start_coordinator: Callable[..., Any], tiny_model_dir: Path, node: Any
) -> None:
    start_coordinator(tiny_model_dir, 'strategy = {name = "ffa_lora"}')
    node.until_version(0)
    birth = node.retained(CoordinatorStateOf())
    assert birth is not None
    terms = CoordinatorState.from_bytes(birth.payload)
    assert (terms.strategy, terms.trained_factors) == ("ffa_lora", "B")


def test_a_calibration_file_that_is_too_small_ends_it_with_what_to_do(
    start_coordinator: Callable[..., Any], tiny_model_dir: Path, calibration: Path
) -> None:
    save_examples(EXAMPLES[:5], calibration)
    code, said = start_coordinator(tiny_model_dir, settings(calibration, ALIGNFED)).ends()
    assert code == 1
    assert "has 5 different prompts, but the anchor fold takes 4 and the gate fold 8" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("anchors", [None, 0], ids=["no calibration set", "no anchor fold"])
def test_a_strategy_that_cannot_do_without_an_anchor_fold_says_so_without_a_traceback(
    start_coordinator: Callable[..., Any], tiny_model_dir: Path, calibration: Path, anchors: int | None
) -> None:
    control = 'strategy = {name = "calibration_only", buffer_size = 1}'
    fold = f'\n[coordinator.calibration]\ndata = "{calibration}"\nanchor_examples = 0\ngate_examples = 2'
    coordinator = start_coordinator(tiny_model_dir, control + (fold if anchors == 0 else ""))
    code, said = coordinator.ends()
    assert code == 2
    assert "calibration_only needs [coordinator.calibration] with anchor_examples above 0" in said
    assert "Traceback" not in said
