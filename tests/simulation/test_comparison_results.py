"""docs/results.md is what the summary beside it says, to the letter."""

from pathlib import Path

import pytest

from simulation.comparison.document import Comparison
from simulation.comparison.results import render

DOCUMENT = Path(__file__).parents[2] / "docs" / "results.md"


@pytest.mark.skipif(not DOCUMENT.exists(), reason="no results have been written yet")
def test_the_published_results_are_those_of_the_summary_beside_them():
    comparison = Comparison.model_validate_json(DOCUMENT.with_suffix(".json").read_bytes())
    assert render(comparison) == DOCUMENT.read_text(encoding="utf-8"), (
        "write it again with `alignfed compare --results`"
    )
