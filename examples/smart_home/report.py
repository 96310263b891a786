"""The report as one page that needs nothing else: no network, no script, no font of its own.

It lays out a Report; every number on the page is in `report.json` beside it.
"""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from base_model.settings import TrainingConfig
from examples.smart_home import charts
from examples.smart_home.answers import by_version, stories, version_name
from examples.smart_home.outcome import Report, VersionOutcome
from examples.smart_home.wording import duration, megabytes, percent, served_in_words, speed, verdict
from schemas.messages import GroupReport

_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def render(report: Report) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "megabytes": megabytes,
        "duration": duration,
        "day": _day,
        "word": in_word,
        "speed": speed,
        "verdict": verdict,
        "breakable": _breakable,
        "loss": _loss,
        "served": served_in_words,
        "groups": _groups,
        "by_version": by_version,
        "stories": stories,
        "version_name": version_name,
    }
    return environment.get_template("report.html.j2").render(report=report, charts=charts, facts=_facts(report))


def write_page(report: Report, path: Path) -> None:
    """Write the page to `path`."""
    path.write_text(render(report), encoding="utf-8")


def in_word(count: int) -> str:
    """A small count as a word."""
    return _WORDS[count] if count < len(_WORDS) else str(count)


def _day(moment: datetime) -> str:
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def _breakable(text: str) -> Markup:
    """Text that may break between the parts of a JSON object, which has no spaces."""
    return Markup("<wbr>").join(re.split(r"(?<=[,{])", text))


def _loss(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.2f}" if loss >= 1 else f"{loss:.3f}"


def _groups(version: VersionOutcome) -> list[dict[str, Any]]:
    """The inputs by base version, newest first, with what the strategy said of each group, if it did."""
    said = {group.base_version: group for group in version.groups}
    bases = sorted({entry.base_version for entry in version.inputs}, reverse=True)
    nothing = GroupReport(base_version=0, updates=0)
    return [
        said.get(base, nothing).model_dump()
        | {"base_version": base, "inputs": [entry for entry in version.inputs if entry.base_version == base]}
        for base in bases
    ]


def _facts(report: Report) -> list[tuple[str, str]]:
    """The configuration as (name, value), for the table at the end."""
    recipe = report.recipe
    lora = recipe.lora
    layers = "all layers" if lora.last_layers is None else f"last {lora.last_layers} layers"
    return [
        ("base model", f"{report.base_model.name} ({report.base_model.digest[:12]})"),
        (
            "adapter",
            f"LoRA rank {lora.rank}, alpha {lora.alpha} on {', '.join(lora.target_modules)} of the {layers}: "
            f"{report.base_model.adapter_parameters:,} parameters",
        ),
        ("strategy", _settings(recipe.strategy.model_dump(mode="json"))),
        ("training", _training(recipe.training)),
        ("codec", recipe.codec),
        ("broker", report.broker),
        ("data", f"{recipe.private_examples} commands per home, {report.held_out.after.examples} held out"),
        *_calibration(report),
        ("seed", str(report.seed)),
        ("memory", f"{report.peak_rss_mb:,.0f} MB at the peak, all processes together ({report.peak_memory_is})"),
        ("restarts", ", ".join(f"{name}: {count}" for name, count in report.restarts.items()) or "none"),
        ("folder", str(report.folder)),
    ]


def _calibration(report: Report) -> list[tuple[str, str]]:
    if not report.stages:  # the coordinator has its commands, but this strategy never asked for them
        return []
    recipe = report.recipe
    return [("calibration", f"{recipe.anchor_examples} commands for the anchor, {recipe.gate_examples} for the gate")]


def _training(training: TrainingConfig) -> str:
    return f"{training.steps} steps of {training.batch_size} at learning rate {training.learning_rate:g} per update"


def _settings(values: dict[str, Any]) -> str:
    name = values.pop("name")
    return f"{name}: " + ", ".join(f"{key} {json.dumps(value)}" for key, value in values.items() if value is not None)
