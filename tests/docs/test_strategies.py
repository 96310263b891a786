"""docs/strategies.md shows settings that are valid, code that is the code, and every strategy there is."""

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from pydantic import TypeAdapter

from coordinator.settings import CoordinatorSettings
from coordinator.strategies import Strategy

ROOT = Path(__file__).parents[2]
STRATEGIES = ROOT / "coordinator" / "strategies"
ALIGNFED_AND_WHAT_IS_SHARED = {"__init__.py", "alignfed.py", "buffer_of_k.py", "buffered.py"}


@pytest.fixture
def page() -> str:
    return (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def test_the_settings_shown_are_settings(page: str) -> None:
    shown = blocks(page, "toml")
    assert len(shown) == 2
    for text in shown:
        CoordinatorSettings.model_validate(tomllib.loads(text)["coordinator"])


def test_the_strategy_shown_is_the_one_that_runs(page: str) -> None:
    (shown,) = blocks(page, "python")
    assert shown in (STRATEGIES / "fedbuff.py").read_text(encoding="utf-8")


def test_every_strategy_is_in_the_table(page: str) -> None:
    classes = get_args(get_args(Strategy)[0])
    names = {kind.model_fields["name"].default for kind in classes}
    assert names == set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE))
    for name in names:
        TypeAdapter(Strategy).validate_python({"name": name})


def test_a_published_method_takes_under_fifty_lines() -> None:
    lines = {path.name: len(path.read_text().splitlines()) for path in STRATEGIES.glob("*.py")}
    long = {name: count for name, count in lines.items() if name not in ALIGNFED_AND_WHAT_IS_SHARED and count >= 50}
    assert not long
