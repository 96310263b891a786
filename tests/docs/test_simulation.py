"""docs/simulation.md names every method that can be simulated, and no other."""

import re
from pathlib import Path

from simulation.methods import METHODS

PAGE = Path(__file__).parents[2] / "docs" / "simulation.md"


def test_every_method_is_in_the_table() -> None:
    section = PAGE.read_text(encoding="utf-8").split("## Methods")[1].split("## A comparison")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(METHODS)
