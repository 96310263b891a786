"""Real trainings of a real, tiny model, each in a process of its own, and what becomes of one that is killed."""

import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from base_model.examples import Example, save_examples
from base_model.layout import initial_adapter, layout_of
from base_model.reference import ResolvedModel, resolve
from base_model.settings import TrainingConfig
from edge_node.child_process import NICENESS
from edge_node.data.local_data import LocalData
from edge_node.data.settings import LocalDataSettings
from edge_node.events import HeldOutMeasured, MeasuringEnded, StepTrained, TrainingFailed, TrainingFinished
from edge_node.settings import EdgeSettings
from edge_node.state import GlobalAdapter, TrainingJob
from edge_node.training.trainer import Trainer
from schemas.adapter import LoraConfig
from schemas.messages import GlobalPointer
from tests.patience import PATIENCE_S

EXAMPLES = tuple(Example(prompt=f"turn on lamp {number}", completion="TurnOn") for number in range(3))
NODE = """
import sys, queue
from pathlib import Path
from base_model.layout import initial_adapter, layout_of
from base_model.reference import ResolvedModel
from base_model.settings import TrainingConfig
from edge_node.data.settings import LocalDataSettings
from edge_node.data.local_data import LocalData
from edge_node.settings import EdgeSettings
from edge_node.state import GlobalAdapter, TrainingJob
from edge_node.training.trainer import Trainer
from schemas.adapter import LoraConfig
from schemas.messages import GlobalPointer
folder, data = map(Path, sys.argv[1:])
resolved = ResolvedModel(str(folder), folder, "")
adapter = initial_adapter(layout_of(resolved, LoraConfig(rank=2)), seed=0)
pointer = GlobalPointer(epoch=1, version=0, digest=adapter.digest, parent=None, size=1, chunks=0)
local = LocalData.open(data, data.parent / "node", LocalDataSettings(held_out=0))
settings = EdgeSettings(node="home-1", data=data, slowdown=1000, training=TrainingConfig(steps=3, batch_size=1))
told = queue.SimpleQueue()
trainer = Trainer(resolved, data.parent, local, settings, told.put)
trainer.start()
trainer.train(TrainingJob(GlobalAdapter(pointer, adapter), sequence=0, seed=1))
told.get()
assert "torch" not in sys.modules
print(trainer.pid, flush=True)
told.get()
"""


@pytest.fixture(scope="module")
def resolved(quantised: ResolvedModel) -> ResolvedModel:
    """Trained on its blocks: such a process is ready in half the time of one that takes dense weights."""
    return quantised


@pytest.fixture
def job(resolved: ResolvedModel) -> TrainingJob:
    adapter = initial_adapter(layout_of(resolved, LoraConfig(rank=2)), seed=0)
    size = len(adapter.to_safetensors())
    pointer = GlobalPointer(epoch=1, version=3, digest=adapter.digest, parent=None, size=size, chunks=0)
    return TrainingJob(GlobalAdapter(pointer, adapter), sequence=5, seed=1)


class Bench:
    """A trainer and what it emits."""

    def __init__(self, resolved: ResolvedModel, data: Path, **settings: Any) -> None:
        self.emitted: queue.SimpleQueue[Any] = queue.SimpleQueue()
        chosen = {"local_data": LocalDataSettings(held_out=0)} | settings
        self.settings = EdgeSettings(node="home-1", data=data, data_dir=data.parent / "node", **chosen)
        local = LocalData.open(data, self.settings.data_dir, self.settings.local_data)
        self.trainer = Trainer(resolved, data.parent / "cache", local, self.settings, self.emitted.put)
        self.trainer.start()

    def next(self) -> Any:
        return self.emitted.get(timeout=PATIENCE_S)


@pytest.fixture
def start(resolved: ResolvedModel, tmp_path: Path) -> Iterator[Any]:
    benches = []

    def start(model: ResolvedModel = resolved, **settings: Any) -> Bench:
        save_examples(EXAMPLES, tmp_path / "examples.jsonl")
        benches.append(Bench(model, tmp_path / "examples.jsonl", **settings))
        return benches[-1]

    yield start
    for bench in benches:
        bench.trainer.stop()


def test_a_job_reports_every_step_and_ends_with_a_better_adapter(start: Any, job: TrainingJob) -> None:
    bench = start(training=TrainingConfig(steps=6, batch_size=2, learning_rate=0.01))
    bench.trainer.train(job)
    steps = [bench.next() for _ in range(6)]
    assert [(step.sequence, step.step) for step in steps] == [(5, number) for number in range(1, 7)]
    assert all(isinstance(step, StepTrained) for step in steps)
    assert steps[-1].loss < steps[0].loss
    finished = bench.next()
    assert isinstance(finished, TrainingFinished)
    assert (finished.sequence, finished.steps, finished.examples) == (5, 6, 3)
    assert (finished.adapter - job.start.adapter).norm > 0


def test_the_same_job_gives_the_same_adapter(start: Any, job: TrainingJob) -> None:
    bench = start(training=TrainingConfig(steps=2, batch_size=2))
    digests = []
    for _ in range(2):
        bench.trainer.train(job)
        digests.append([bench.next() for _ in range(3)][-1].adapter.digest)
    assert digests[0] == digests[1]


def test_an_aborted_job_gives_no_result_and_the_next_one_does(start: Any, job: TrainingJob) -> None:
    bench = start(training=TrainingConfig(steps=3, batch_size=1), slowdown=1000)
    bench.trainer.train(job)
    assert isinstance(bench.next(), StepTrained)  # and now it pauses, a thousand times as long as the step took
    bench.trainer.abort()
    bench.trainer.train(TrainingJob(job.start, sequence=6, seed=2))
    assert bench.next().sequence == 6


def killed(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_a_process_that_is_killed_in_the_midst_of_a_step_is_a_failed_job_and_the_next_one_is_done(
    start: Any, job: TrainingJob
) -> None:
    bench = start(training=TrainingConfig(steps=3, batch_size=1), slowdown=1000)
    bench.trainer.train(job)
    assert isinstance(bench.next(), StepTrained)
    killed(bench.trainer.pid)
    failed = bench.next()
    assert isinstance(failed, TrainingFailed)
    assert failed.sequence == 5
    assert "killed" in failed.reason
    assert "memory" in failed.reason
    bench.trainer.train(replace(job, sequence=6))
    assert (bench.next().sequence, bench.trainer.pid is None) == (6, False)


def test_a_process_that_is_killed_before_it_has_loaded_anything_is_a_failed_job(start: Any, job: TrainingJob) -> None:
    bench = start(training=TrainingConfig(steps=3, batch_size=1))
    bench.trainer.train(job)
    while (pid := bench.trainer.pid) is None:
        time.sleep(0.001)
    killed(pid)
    assert isinstance(bench.next(), TrainingFailed)


def test_the_process_stands_back_and_is_gone_after_its_job(start: Any, job: TrainingJob) -> None:
    bench = start(training=TrainingConfig(steps=2, batch_size=1), slowdown=3)
    bench.trainer.train(job)
    assert isinstance(bench.next(), StepTrained)
    process = psutil.Process(bench.trainer.pid)
    assert process.nice() == psutil.Process().nice() + NICENESS
    assert isinstance(bench.next(), StepTrained)
    assert isinstance(bench.next(), TrainingFinished)
    process.wait(PATIENCE_S)


def test_the_process_ends_with_the_node(resolved: ResolvedModel, tmp_path: Path) -> None:
    save_examples(EXAMPLES, tmp_path / "examples.jsonl")
    node = subprocess.Popen(
        [sys.executable, "-c", NODE, resolved.path, tmp_path / "examples.jsonl"], stdout=subprocess.PIPE, text=True
    )
    assert node.stdout is not None
    training = psutil.Process(int(node.stdout.readline()))
    node.kill()
    node.wait()
    node.stdout.close()
    training.wait(PATIENCE_S)


def test_stopping_interrupts_the_pause_of_slow_hardware(start: Any, job: TrainingJob) -> None:
    bench = start(training=TrainingConfig(steps=3, batch_size=1), slowdown=1000)
    bench.trainer.train(job)
    bench.next()
    bench.trainer.stop()
    assert not bench.trainer._thread.is_alive()


def test_a_model_without_blocks_is_trained_on_its_dense_weights(
    tiny_model_dir: Path, tmp_path: Path, job: TrainingJob, start: Any
) -> None:
    dense = resolve(str(tiny_model_dir), tmp_path / "cache")
    bench = start(dense, training=TrainingConfig(steps=1, batch_size=1))
    bench.trainer.train(job)
    assert isinstance(bench.next(), StepTrained)
    assert isinstance(bench.next(), TrainingFinished)


def test_data_that_were_spoilt_are_a_failed_job_and_not_the_end(start: Any, job: TrainingJob, tmp_path: Path) -> None:
    bench = start(training=TrainingConfig(steps=1, batch_size=1))
    (tmp_path / "examples.jsonl").write_text("{")
    bench.trainer.train(job)
    failed = bench.next()
    assert isinstance(failed, TrainingFailed)
    assert "examples.jsonl holds no examples (1 lines are none)" in failed.reason
    save_examples(EXAMPLES, tmp_path / "examples.jsonl")
    bench.trainer.train(job)
    assert isinstance(bench.next(), StepTrained)


def test_the_start_is_measured_on_examples_that_are_never_trained_on(start: Any, job: TrainingJob) -> None:
    bench = start(training=TrainingConfig(steps=1, batch_size=3), local_data=LocalDataSettings(held_out=0.9))
    data = LocalData.open(bench.settings.data, bench.settings.data_dir, bench.settings.local_data)
    data.add("http", [Example(prompt=f"turn on lamp {number}", completion="TurnOn") for number in range(40)])
    for _ in range(2):
        bench.trainer.train(replace(job, measured=8))
        measured, _, finished = [bench.next() for _ in range(3)]
        assert isinstance(measured, HeldOutMeasured)
        assert (measured.sequence, measured.examples) == (5, 8)
        assert isinstance(finished, TrainingFinished)
    bench.trainer.train(job)
    assert isinstance(bench.next(), StepTrained)


def test_the_start_is_measured_without_a_training(start: Any, job: TrainingJob) -> None:
    bench = start(local_data=LocalDataSettings(held_out=0.9))
    data = LocalData.open(bench.settings.data, bench.settings.data_dir, bench.settings.local_data)
    data.add("http", [Example(prompt=f"turn on lamp {number}", completion="TurnOn") for number in range(40)])
    losses = []
    for begin in (bench.trainer.measure, bench.trainer.train):
        begin(replace(job, measured=8))
        measured = bench.next()
        assert isinstance(measured, HeldOutMeasured)
        losses.append((measured.sequence, measured.examples, measured.loss))
        if begin == bench.trainer.measure:
            assert isinstance(bench.next(), MeasuringEnded)
    assert losses[0] == losses[1]


def test_where_nothing_is_held_out_there_is_nothing_to_measure(start: Any, job: TrainingJob) -> None:
    bench = start()
    bench.trainer.measure(replace(job, measured=8))
    assert isinstance(bench.next(), MeasuringEnded)


def test_a_measurement_whose_process_is_killed_has_failed(start: Any, job: TrainingJob) -> None:
    bench = start(local_data=LocalDataSettings(held_out=0.9))
    bench.trainer.measure(replace(job, measured=8))
    while (pid := bench.trainer.pid) is None:
        time.sleep(0.001)
    killed(pid)
    assert isinstance(bench.next(), TrainingFailed)
