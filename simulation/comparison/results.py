"""The results as a document, written from a comparison's summary and from nothing else, never by hand.

The summary is kept beside it, so that anyone can write it again and find no difference; its images lie in a folder of
its name, so that two comparisons can have a document each.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from simulation.comparison.document import NAME, Comparison
from simulation.comparison.summary import MethodSummary
from simulation.comparison.tables import PARTS, Column, learning
from simulation.comparison.verdicts import Verdict
from simulation.comparison.wording import TERMS, duration, meaning_of_intervals, with_range

CURVES = "curves-"
Methods = dict[str, MethodSummary]


def write_results(out: Path, document: Path) -> None:
    """Write the document, its summary (`<document>.json`) and its images from the folder of a comparison.

    Raises FileNotFoundError when there is no summary there yet.
    """
    if not (out / NAME).exists():
        raise FileNotFoundError(f"{out / NAME} does not exist: run the comparison first, with --out {out}")
    comparison = Comparison.model_validate_json((out / NAME).read_bytes())
    images = Path("images") / document.stem
    shutil.rmtree(document.parent / images, ignore_errors=True)  # of another comparison
    shutil.copytree(out / "figures", document.parent / images)
    shutil.copyfile(out / NAME, document.with_suffix(".json"))
    document.write_text(render(comparison, images), encoding="utf-8")


def render(comparison: Comparison, images: Path) -> str:
    """The document as Markdown; `images` is where its pictures lie, seen from it."""
    return "\n\n".join(_parts(comparison, images)) + "\n"


def _parts(comparison: Comparison, images: Path) -> Iterator[str]:
    yield "# Results"
    yield (
        "This page is written by a command from the runs, not by hand. Below are all methods that were run, all seeds, "
        "and what did not hold."
    )
    yield f"{meaning_of_intervals(comparison.seeds_per_method)} {TERMS}"
    if comparison.failures:
        yield "## Runs that failed"
        yield "\n".join(f"- `{name}`: {reason}" for name, reason in comparison.failures.items())
    yield from _verdicts(comparison)
    yield "## In pictures"
    yield from (_image(comparison, images, name) for name in comparison.figures if not name.startswith(CURVES))
    for regime, methods in comparison.regimes.items():
        yield from _regime(comparison, images, regime, methods)
    yield from _conditions(comparison)


def _verdicts(comparison: Comparison) -> Iterator[str]:
    measured = [verdict for verdict in comparison.verdicts if verdict.measured is not None]
    for heading, met in (("What does not hold", False), ("What holds", True), ("Shown beside", None)):
        rows = [_verdict(verdict) for verdict in measured if verdict.met is met]
        if rows:
            yield f"## {heading}"
            yield _table(("bar", "regime", "asked", "measured", "note"), rows)
    unmeasured = [verdict for verdict in comparison.verdicts if verdict.measured is None]
    if unmeasured:
        yield "## What these runs do not measure"
        yield "\n".join(_unmeasured(comparison, unmeasured))


def _unmeasured(comparison: Comparison, verdicts: Sequence[Verdict]) -> Iterator[str]:
    """A line for each bar of a regime that was run, one for all of the others."""
    here = [verdict for verdict in verdicts if verdict.regime in comparison.regimes]
    elsewhere = [verdict for verdict in verdicts if verdict.regime not in comparison.regimes]
    yield from (f"- {verdict.bar} ({verdict.regime}): {verdict.asked}" for verdict in here)
    if elsewhere:
        regimes = ", ".join(f"`{regime}`" for regime in dict.fromkeys(verdict.regime for verdict in elsewhere))
        yield f"- {len(elsewhere)} bars of regimes that were not run here: {regimes}"


def _verdict(verdict: Verdict) -> tuple[str, ...]:
    return verdict.bar, verdict.regime, verdict.asked, with_range(verdict.measured, verdict.unit), verdict.note


def _regime(comparison: Comparison, images: Path, regime: str, methods: Methods) -> Iterator[str]:
    some = next(iter(methods.values()))
    targets = ", ".join(f"{target:g}" for target in comparison.targets[regime])
    yield f"## Regime `{regime}`"
    yield f"{comparison.about_regimes[regime].capitalize()}. {some.nodes} nodes. Targets: {targets}."
    if CURVES + regime in comparison.figures:
        yield _image(comparison, images, CURVES + regime)
    shown = learning(list(some.time_to))
    yield _medians(methods, shown)
    yield _folded("who has what part, and what it costs", _medians(methods, PARTS))
    yield _folded("every seed", f"{_every_seed(methods, shown)}\n\n{_every_seed(methods, PARTS)}")


def _medians(methods: Methods, shown: Sequence[Column]) -> str:
    header = ("method", *(column.heading for column in shown))
    return _table(header, [_method(name, summary, shown) for name, summary in methods.items()])


def _every_seed(methods: Methods, shown: Sequence[Column]) -> str:
    header = ("method", "seed", *(column.heading for column in shown))
    return _table(header, [row for name, summary in methods.items() for row in _seeds(name, summary, shown)])


def _folded(heading: str, content: str) -> str:
    return f"<details><summary>{heading}</summary>\n\n{content}\n\n</details>"


def _method(name: str, summary: MethodSummary, shown: Sequence[Column]) -> tuple[str, ...]:
    cells = (f"{column.median(summary)}<br><sub>{column.range(summary)}</sub>" for column in shown)
    return f"`{name}`", *(cell.removesuffix("<br><sub></sub>") for cell in cells)


def _seeds(name: str, summary: MethodSummary, shown: Sequence[Column]) -> Iterator[tuple[str, ...]]:
    for seed in summary.final_loss.values:
        yield f"`{name}`", str(seed), *(column.seed(summary, seed) for column in shown)


def _conditions(comparison: Comparison) -> Iterator[str]:
    machine = comparison.machine
    yield "## How it was run"
    yield f"```console\n{comparison.command}\n```"
    yield "\n".join(
        (
            f"- Preset `{comparison.preset}`, seeds {', '.join(map(str, comparison.seeds))}.",
            f"- Commit {', '.join(comparison.commits)}. A plus sign: files had been changed since.",
            f"- {machine.cores} cores of {machine.processor}, {machine.memory_gb:g} GB, Python {machine.python}.",
            f"- All runs together took {duration(comparison.run_seconds)}, one core each.",
            f"- Targets: {comparison.targets_are}.",
        )
    )
    yield "## The methods"
    yield _table(("method", "what it is"), [(f"`{name}`", about) for name, about in comparison.about_methods.items()])


def _image(comparison: Comparison, images: Path, name: str) -> str:
    caption = comparison.figures[name]
    return f"![{caption}]({(images / name).as_posix()}.png)\n\n*{caption}*"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heading = list(header)
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
