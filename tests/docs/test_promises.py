"""PROMISES.md names tests that there are, for every promise, and says what is open and what is not promised at all."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "PROMISES.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)


def test_every_test_that_a_promise_names_is_there():
    missing = [f"{file}::{name}" for file, name in NAMED if name not in names_in(ROOT / file)]
    assert NAMED and missing == []


def test_no_test_is_named_in_a_way_that_is_not_checked():
    assert len(re.findall(r"tests/[\w/]+\.py::", TEXT)) == len(NAMED)


def test_every_promise_from_one_to_twelve_has_a_test():
    parts = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
    promises = {part.split(".")[0]: part for part in parts if re.match(r"P\d+\.", part)}
    assert list(promises) == [f"P{number}" for number in range(1, 13)]
    assert [name for name, part in promises.items() if "::" not in part] == []


def test_what_is_not_promised_is_said():
    not_promised = TEXT.partition("## Not promised")[2]
    for word in ("backdoor", "private", "coordinator that lies", "colluding"):
        assert word in not_promised


def names_in(file: Path) -> set[str]:
    """The names of the tests in a file; none for a file that is not there."""
    if not file.exists():
        return set()
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}
