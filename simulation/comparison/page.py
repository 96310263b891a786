"""The comparison as one page that needs nothing else: no network, no script, no font of its own.

It lays out a Comparison and its figures; every number on the page is in `summary.json` beside it.
"""

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from simulation.comparison.document import Comparison
from simulation.comparison.drawing import WIDTH, Drawing
from simulation.comparison.tables import PARTS, learning
from simulation.comparison.wording import MET, TERMS, duration, meaning_of_intervals, number, span


def render(comparison: Comparison, figures: Mapping[str, Drawing]) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "number": number}
    return environment.get_template("page.html.j2").render(
        comparison=comparison,
        figures=figures,
        full_width=WIDTH,
        learning=learning,
        parts=PARTS,
        span=span,
        met=MET,
        meaning=meaning_of_intervals(comparison.seeds_per_method),
        terms=TERMS,
    )


def write_page(comparison: Comparison, figures: Mapping[str, Drawing], path: Path) -> None:
    """Write the page to `path`."""
    path.write_text(render(comparison, figures), encoding="utf-8")
