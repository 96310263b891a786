"""The command end to end on the tiny model: what it writes, what it keeps, and what it computes again."""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console

from base_model.examples import Example
from base_model.settings import TrainingConfig
from schemas.adapter import LoraConfig
from simulation.comparison.command import CompareOptions, compare, show
from simulation.comparison.document import Comparison
from simulation.comparison.regimes import TaskSpec
from simulation.comparison.results import render, write_results
from simulation.settings import Measuring
from simulation.task import Task, write_task

RUNS = ["alignfed-0", "alignfed-1", "fedbuff_2-0", "fedbuff_2-1"]


def make_task(spec: TaskSpec) -> Task:
    """Three nodes that talk of rooms; every seed has other rooms."""
    nodes = {f"n{number}": says(f"{spec.seed} {number}", 4) for number in range(3)}
    tests = {node: says(f"{node} test", 2) for node in nodes}
    return Task(nodes=nodes, tests=tests, calibration=says("calibration", 8), held_out=says("held out", 6))


def says(voice: str, count: int) -> tuple[Example, ...]:
    return tuple(
        Example(prompt=f"{voice} light {room}", completion=f'{{"intent":"TurnOn","area":"{room}"}}')
        for room in range(count)
    )


@dataclass(frozen=True)
class Compared:
    """Options, and what the command said of them and returned."""

    options: CompareOptions
    said: str
    code: int


def run(options: CompareOptions) -> Compared:
    console = Console(file=io.StringIO(), width=160)
    code = compare(options, make_task, console)
    assert isinstance(console.file, io.StringIO)
    return Compared(options, console.file.getvalue(), code)


@pytest.fixture(scope="module")
def compared(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compared]:
    """Two methods over two seeds, with two workers."""
    options = CompareOptions(
        out=tmp_path_factory.mktemp("compared"),
        preset="ci",
        methods=("alignfed", "fedbuff_2"),
        seeds=(0, 1),
        regimes=("base",),
        workers=2,
        command="alignfed compare --preset ci",
        settings={
            "base_model": str(tiny_model_dir),
            "dtype": "float32",
            "updates": 8,
            "lora": LoraConfig(rank=2, alpha=4, last_layers=1),
            "training": TrainingConfig(steps=2, batch_size=2, learning_rate=0.02),
            "measuring": Measuring(held_out=4, generated=2, own_tests=2),
        },
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNFED_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield run(options)


def files(out: Path) -> dict[str, tuple[int, int]]:
    """When which run was written."""
    return {path.stem: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (out / "runs").iterdir()}


def test_it_writes_a_file_for_every_run_a_summary_a_page_and_pictures(compared: Compared) -> None:
    out = compared.options.out
    assert compared.code == 0
    assert sorted(files(out)) == [f"ci-base-{name}" for name in RUNS]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["regimes"]["base"]["alignfed"]["seeds"] == 2
    assert {f"{name}.png" for name in summary["figures"]} == {path.name for path in (out / "figures").iterdir()}


def test_the_tasks_can_be_looked_at(compared: Compared) -> None:
    [first, second] = sorted((compared.options.out / "data").iterdir())
    assert first.name.endswith("-0") and second.name.endswith("-1")
    assert {"calibration.jsonl", "held_out.jsonl"} <= {path.name for path in first.iterdir()}


def test_a_finished_run_is_not_computed_again(compared: Compared) -> None:
    before = files(compared.options.out)
    again = run(compared.options)
    assert (again.code, "4 of 4 runs are there from before" in again.said) == (0, True)
    assert files(compared.options.out) == before


def test_only_what_has_changed_or_is_new_is_computed(compared: Compared, tmp_path: Path) -> None:
    before = files(compared.options.out)
    wider = replace(compared.options, methods=("fedbuff_1", "fedbuff_2"), seeds=(0,))
    assert run(wider).code == 0
    after = files(compared.options.out)
    assert after.keys() - before.keys() == {"ci-base-fedbuff_1-0"}
    assert {name: after[name] for name in before} == before
    longer = replace(wider, methods=("fedbuff_1",), settings={**wider.settings, "updates": 12})
    run(longer)
    again = files(compared.options.out)
    assert {name for name in again if again[name] != after[name]} == {"ci-base-fedbuff_1-0"}


def test_the_page_refers_to_nothing_outside_itself(compared: Compared) -> None:
    page = (compared.options.out / "report.html").read_text()
    assert not re.search(r"https?:|//|@import|<script|<link|<img|\bsrc=", page)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_a_failed_run_is_reported_and_the_others_are_kept(compared: Compared, tmp_path: Path) -> None:
    too_deep = LoraConfig(rank=2, alpha=4, last_layers=9)
    failing = replace(
        compared.options,
        out=tmp_path,
        methods=("fedbuff_2",),
        seeds=(0,),
        settings={**compared.options.settings, "lora": too_deep},
    )
    failed = run(failing)
    assert failed.code == 1
    assert "ci-base-fedbuff_2-0 failed: BaseModelError: last_layers is 9" in failed.said
    assert "Traceback" in (tmp_path / "failures" / "ci-base-fedbuff_2-0.txt").read_text()


def test_data_of_ones_own_are_compared_on(compared: Compared, tmp_path: Path) -> None:
    write_task(make_task(TaskSpec(seed=7)), tmp_path / "mine")
    own = replace(compared.options, out=tmp_path / "out", data=tmp_path / "mine", methods=("fedbuff_2",), seeds=(0,))
    assert run(own).code == 0
    assert not (tmp_path / "out" / "data").exists()
    [made] = (tmp_path / "out" / "runs").iterdir()
    assert json.loads(made.read_text())["final"]["nodes"].keys() == {"n0", "n1", "n2"}


def test_the_plan_is_shown_without_computing_anything(compared: Compared, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=160)
    show(replace(compared.options, out=tmp_path / "nowhere"), console)
    assert isinstance(console.file, io.StringIO)
    assert "4 runs" in console.file.getvalue()
    assert not (tmp_path / "nowhere").exists()


def test_the_document_is_written_from_the_summary_alone(compared: Compared, tmp_path: Path) -> None:
    document = tmp_path / "docs" / "results.md"
    document.parent.mkdir()
    write_results(compared.options.out, document)
    text = document.read_text()
    comparison = Comparison.model_validate_json(document.with_suffix(".json").read_bytes())
    assert render(comparison, Path("images") / "results") == text
    pictures = re.findall(r"\]\((images/results/[^)]+)\)", text)
    assert pictures
    assert all((document.parent / picture).is_file() for picture in pictures)
    assert "every seed" in text
    assert "alignfed compare --preset ci" in text


def test_without_a_comparison_there_is_no_document(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the comparison first"):
        write_results(tmp_path, tmp_path / "results.md")
