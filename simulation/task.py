"""A federated task: what every node learns from, what it is tested on, and the commons of the federation.

A task comes from a generator, or from a user's folder of JSON lines. It does not know what the examples are about,
nor how anything is trained.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from base_model.examples import Example, InvalidExamples, load_examples, save_examples
from schemas.topics import NAME_PATTERN

NODES = "nodes"
ENDING = ".jsonl"
TEST_ENDING = ".test.jsonl"
CALIBRATION = f"calibration{ENDING}"
HELD_OUT = f"held_out{ENDING}"
TESTED_SHARE = 8  # without a test file, one in so many of a node's examples is kept as its test
MOST_TESTED = 32
NAME_RULE = "letters, digits, '_', '.' and '-', at most 64, a letter or digit first, and not ending in '.test'"

Examples = tuple[Example, ...]


@dataclass(frozen=True)
class Task:
    """Private examples and own tests of every node by its name, and what the coordinator and the judge hold.

    Nobody trains on `tests` or `held_out`; the coordinator alone sees `calibration`.
    """

    nodes: Mapping[str, Examples]
    tests: Mapping[str, Examples]
    calibration: Examples
    held_out: Examples

    def __post_init__(self) -> None:
        if not self.nodes or self.nodes.keys() != self.tests.keys():
            raise ValueError("a task needs at least one node, and a test for each node and for nobody else")
        if wrong := [name for name in self.nodes if not _is_node_name(name)]:
            raise ValueError(f"{wrong[0]!r} cannot be the name of a node: {NAME_RULE}")
        if not all((self.calibration, self.held_out, *self.nodes.values(), *self.tests.values())):
            raise ValueError("every part of a task needs at least one example")


def write_task(task: Task, folder: Path) -> None:
    """Write the task as `read_task` reads it. Raises FileExistsError when the folder holds anything already."""
    if folder.exists() and any(folder.iterdir()):
        # files of an earlier task would become nodes of this one
        raise FileExistsError(f"{folder} is not empty; write the task to a new folder")
    for name, examples in task.nodes.items():
        save_examples(examples, folder / NODES / f"{name}{ENDING}")
        save_examples(task.tests[name], folder / NODES / f"{name}{TEST_ENDING}")
    save_examples(task.calibration, folder / CALIBRATION)
    save_examples(task.held_out, folder / HELD_OUT)


def read_task(folder: Path) -> Task:
    """Read a folder: `<node>.jsonl` and maybe `<node>.test.jsonl` in nodes/ or beside, and the two common files.

    A node without a test file keeps its last eighth (1 to 32 examples) as its test and does not train on it.
    Nodes come in the order of their names. Raises InvalidExamples, which names the file and says what to do.
    """
    if not folder.is_dir():
        raise InvalidExamples(f"{folder} is not a folder; give the folder that holds {CALIBRATION} and {HELD_OUT}")
    files = _node_files(folder)
    parts = {name: _node_examples(training, test) for name, (training, test) in files.items()}
    return Task(
        nodes={name: part.private for name, part in parts.items()},
        tests={name: part.test for name, part in parts.items()},
        calibration=load_examples(folder / CALIBRATION),
        held_out=load_examples(folder / HELD_OUT),
    )


class _NodeExamples(NamedTuple):
    private: Examples
    test: Examples


def _node_files(folder: Path) -> dict[str, tuple[Path, Path | None]]:
    """The training file, and the test file where there is one, of every node."""
    place, found = _jsonl_files(folder)
    tests = {path.name.removesuffix(TEST_ENDING): path for path in found if path.name.endswith(TEST_ENDING)}
    training = {path.name.removesuffix(ENDING): path for path in found if not path.name.endswith(TEST_ENDING)}
    if not training:
        raise InvalidExamples(f"{place} has no nodes; put the examples of each node there, in a file <node>{ENDING}")
    for name, path in training.items():
        if not _is_node_name(name):
            raise InvalidExamples(f"{path}: the file bears the name of its node; rename it: {NAME_RULE}")
    for name, path in tests.items():
        if name not in training:
            raise InvalidExamples(f"{path} tests a node without examples; add {path.with_name(name + ENDING)}")
    return {name: (path, tests.get(name)) for name, path in training.items()}


def _jsonl_files(folder: Path) -> tuple[Path, list[Path]]:
    """Where the nodes' files are, and the files, by name."""
    beside = sorted(path for path in folder.glob(f"*{ENDING}") if path.name not in (CALIBRATION, HELD_OUT))
    inside = folder / NODES
    if not inside.is_dir():
        return folder, beside
    if beside:
        raise InvalidExamples(f"{beside[0]} lies beside {inside}; move it in there, or take it out of {folder}")
    return inside, sorted(inside.glob(f"*{ENDING}"))


def _node_examples(training: Path, test: Path | None) -> _NodeExamples:
    examples = load_examples(training)
    if test is not None:
        return _NodeExamples(examples, load_examples(test))
    kept = min(max(len(examples) // TESTED_SHARE, 1), MOST_TESTED)
    if kept == len(examples):
        raise InvalidExamples(
            f"{training} holds one example; a node needs at least two, one to learn from and one to be tested on. "
            f"Add examples, or a file {training.name.removesuffix(ENDING)}{TEST_ENDING}"
        )
    return _NodeExamples(examples[:-kept], examples[-kept:])


def _is_node_name(name: str) -> bool:
    return re.fullmatch(NAME_PATTERN, name) is not None and not name.endswith(".test")
