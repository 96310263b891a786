"""A task as files: written and read again, a user's own folder, and folders that cannot be used."""

from pathlib import Path

import pytest

from base_model.examples import Example, InvalidExamples, save_examples
from simulation.task import Examples, Task, read_task, write_task


def some(count: int, about: str = "x") -> Examples:
    return tuple(Example(prompt=f"{about} {number}", completion="yes") for number in range(count))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder: two nodes at its top, calibration and held-out examples."""
    save_examples(some(20, "a"), tmp_path / "a.jsonl")
    save_examples(some(3, "b"), tmp_path / "b.jsonl")
    save_examples(some(4, "c"), tmp_path / "calibration.jsonl")
    save_examples(some(5, "h"), tmp_path / "held_out.jsonl")
    return tmp_path


def test_a_task_that_was_written_is_read_as_it_was(tmp_path: Path) -> None:
    nodes = {"home-0001": some(3), "home-0002": some(2)}
    task = Task(nodes, {name: some(1, "test") for name in nodes}, some(4, "c"), some(5, "h"))
    write_task(task, tmp_path / "task")
    assert read_task(tmp_path / "task") == task
    assert {path.relative_to(tmp_path / "task").as_posix() for path in (tmp_path / "task").rglob("*.jsonl")} == {
        "nodes/home-0001.jsonl",
        "nodes/home-0001.test.jsonl",
        "nodes/home-0002.jsonl",
        "nodes/home-0002.test.jsonl",
        "calibration.jsonl",
        "held_out.jsonl",
    }


def test_a_task_is_not_written_among_other_files(folder: Path) -> None:
    task = read_task(folder)
    with pytest.raises(FileExistsError, match="write the task to a new folder"):
        write_task(task, folder)


def test_a_node_without_a_test_file_keeps_its_last_eighth_as_its_test(folder: Path) -> None:
    task = read_task(folder)
    assert (task.nodes["a"], task.tests["a"]) == (some(20, "a")[:18], some(20, "a")[18:])
    assert (task.nodes["b"], task.tests["b"]) == (some(3, "b")[:2], some(3, "b")[2:])
    assert (task.calibration, task.held_out) == (some(4, "c"), some(5, "h"))


def test_a_large_node_keeps_no_more_than_32_examples_as_its_test(folder: Path) -> None:
    save_examples(some(1000), folder / "a.jsonl")
    assert len(read_task(folder).tests["a"]) == 32


def test_a_node_with_a_test_file_learns_from_all_its_examples(folder: Path) -> None:
    save_examples(some(2, "test"), folder / "a.test.jsonl")
    task = read_task(folder)
    assert (task.nodes["a"], task.tests["a"]) == (some(20, "a"), some(2, "test"))


def test_nodes_may_lie_in_a_folder_of_their_own(folder: Path) -> None:
    expected = read_task(folder)
    (folder / "nodes").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).rename(folder / "nodes" / name)
    assert read_task(folder) == expected


def test_nodes_in_two_places_are_refused(folder: Path) -> None:
    (folder / "nodes").mkdir()
    (folder / "a.jsonl").rename(folder / "nodes" / "a.jsonl")
    with pytest.raises(InvalidExamples, match=r"b\.jsonl lies beside .*nodes; move it in there"):
        read_task(folder)


def test_a_node_with_a_single_example_is_refused(folder: Path) -> None:
    save_examples(some(1), folder / "b.jsonl")
    with pytest.raises(InvalidExamples, match=r"b\.jsonl holds one example.*b\.test\.jsonl"):
        read_task(folder)


@pytest.mark.parametrize("missing", ["calibration.jsonl", "held_out.jsonl"])
def test_a_missing_common_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(InvalidExamples, match=rf"cannot read .*{missing}"):
        read_task(folder)


def test_a_broken_line_is_named_with_its_file(folder: Path) -> None:
    with (folder / "b.jsonl").open("a") as file:
        file.write('{"prompt": "only"}\n')
    with pytest.raises(InvalidExamples, match=r"b\.jsonl, line 4: completion"):
        read_task(folder)


def test_a_folder_without_nodes_says_where_to_put_them(folder: Path) -> None:
    (folder / "a.jsonl").unlink()
    (folder / "b.jsonl").unlink()
    with pytest.raises(InvalidExamples, match=r"has no nodes; put the examples of each node there"):
        read_task(folder)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidExamples, match="nowhere is not a folder"):
        read_task(tmp_path / "nowhere")


def test_a_test_of_nobody_is_refused(folder: Path) -> None:
    save_examples(some(2), folder / "z.test.jsonl")
    with pytest.raises(InvalidExamples, match=r"z\.test\.jsonl tests a node without examples; add .*z\.jsonl"):
        read_task(folder)


def test_a_file_whose_name_cannot_be_a_node_s_is_to_be_renamed(folder: Path) -> None:
    (folder / "b.jsonl").rename(folder / "my home.jsonl")
    with pytest.raises(InvalidExamples, match=r"my home\.jsonl.*rename it: letters"):
        read_task(folder)


@pytest.mark.parametrize("name", ["../up", "a.test", "", "a b"])
def test_a_task_with_a_name_no_node_can_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a node"):
        Task({name: some(2)}, {name: some(1)}, some(1), some(1))


def test_a_task_whose_parts_do_not_belong_together_is_refused() -> None:
    with pytest.raises(ValueError, match="a test for each node"):
        Task({"a": some(2)}, {"b": some(1)}, some(1), some(1))
    with pytest.raises(ValueError, match="every part of a task needs at least one example"):
        Task({"a": some(2)}, {"a": ()}, some(1), some(1))
