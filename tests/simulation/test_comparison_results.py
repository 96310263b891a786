"""The published results are what the summaries beside them say, to the letter."""

from pathlib import Path

import pytest

from simulation.comparison.document import Comparison
from simulation.comparison.results import render

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("document", sorted(DOCS.glob("results*.md")), ids=lambda document: document.stem)
def test_the_published_results_are_those_of_the_summary_beside_them(document: Path):
    comparison = Comparison.model_validate_json(document.with_suffix(".json").read_bytes())
    assert render(comparison, Path("images") / document.stem) == document.read_text(encoding="utf-8"), (
        "write it again with `alignfed compare --results`"
    )
