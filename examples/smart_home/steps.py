"""The steps of the demo that a person waits for: fetch the base model, make the data, load, and question the model.

Each shows a bar while it lasts and leaves a line. What needs PyTorch is imported when its step comes, so that the first
line is on the screen at once.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from base_model.examples import Example, save_examples
from base_model.reference import ResolvedModel, resolve
from base_model.settings import BaseModelSettings
from broker.config import LOOPBACK
from broker.embedded import find_mosquitto
from broker.federation_keys import enrol, init
from examples.smart_home.commands import calibration_examples, held_out_examples, make_homes, private_examples
from examples.smart_home.outcome import HeldOutScore, VersionLoss
from examples.smart_home.plan import Plan
from examples.smart_home.stages import line, of_bytes, of_count, stage
from examples.smart_home.wording import percent
from examples.smart_home.workplace import FEDERATION, Workplace
from schemas.adapter import Adapter

if TYPE_CHECKING:
    from base_model.evaluation import Score
    from base_model.language_model import LanguageModel
    from examples.smart_home.measure import VersionAdapters

KEY_DAYS = 365
_RESOLVING = {"wait": "waiting", "download": "download", "convert": "convert", "hash": "verify"}


@dataclass(frozen=True)
class Data:
    """The homes' private commands by node, and the held-out ones."""

    private: Mapping[str, tuple[Example, ...]]
    held_out: tuple[Example, ...]


def fetch_base_model(settings: BaseModelSettings, console: Console) -> ResolvedModel:
    """Find the base model, downloading it the first time. Raises BaseModelError."""
    with stage(console, "base model", of_bytes) as shown:

        def progress(name: str, done: int, total: int | None) -> None:
            shown.rename(_RESOLVING[name])
            shown.advance(done, total)

        resolved = resolve(settings.name, settings.cache, progress)
        shown.result = f"{resolved.name}, digest {resolved.digest[:12]}"
    return resolved


def make_data(plan: Plan, place: Workplace, console: Console) -> Data:
    """Draw all commands from the seed, and write them as users write theirs: the homes', the coordinator's, others."""
    recipe = plan.recipe
    homes = make_homes(len(plan.nodes), plan.seed)
    names = [node.name for node in plan.nodes]
    private = {name: private_examples(home, recipe.private_examples) for name, home in zip(names, homes, strict=True)}
    seen = {example for examples in private.values() for example in examples}
    held_out = held_out_examples(recipe.held_out_examples, plan.seed, seen)
    wanted = recipe.anchor_examples + recipe.gate_examples
    calibration = calibration_examples(wanted, plan.seed, seen | set(held_out))
    for name, examples in private.items():
        save_examples(examples, place.data(name))
    save_examples(calibration, place.calibration)
    save_examples(held_out, place.held_out)
    line(
        console,
        "data",
        f"{recipe.private_examples} private commands in each home, {len(calibration)} for calibration, "
        f"{len(held_out)} held out",
    )
    return Data(private, held_out)


def make_keys(plan: Plan, place: Workplace, console: Console) -> Path | None:
    """Keys for every process of this run; none where the broker could not use them, which is said."""
    if find_mosquitto() is None:
        line(console, "keys", "none, and nothing is signed: iotcore has no TLS and no access rules; install mosquitto")
        return None
    init(place.keys, FEDERATION, (LOOPBACK,), KEY_DAYS)
    for node in plan.nodes:
        enrol(place.keys, node.name, KEY_DAYS)
    line(console, "keys", "made for this run: TLS, access rules for each home, every update and version signed")
    return place.keys


def load_model(resolved: ResolvedModel, console: Console) -> "LanguageModel":
    """Load the model into this process, on all its cores: the federation does not run while it is questioned."""
    # threads that spin while they wait take four times as long as soon as another program wants a core
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with stage(console, "load", of_count) as shown:
        from base_model.language_model import LanguageModel

        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        model = LanguageModel.load(resolved, threads=threads)
        millions = sum(parameter.numel() for parameter in model.network.parameters()) / 1e6
        shown.result = f"{millions:.3g} million parameters, on {threads} CPU threads"
    return model


def question(
    name: str, model: "LanguageModel", adapter: Adapter, examples: Sequence[Example], console: Console
) -> tuple["Score", HeldOutScore]:
    """Put the held-out commands to the model with this adapter."""
    with stage(console, name, of_count) as shown:
        from base_model.evaluation import evaluate
        from examples.smart_home.measure import held_out_score

        score = evaluate(model, adapter, examples, shown.advance)
        held_out = held_out_score(score, examples)
        shown.result = (
            f"loss {held_out.loss:.3f}, right intent {percent(held_out.intent_accuracy)}, "
            f"exact {percent(held_out.exact_match)}  on {held_out.examples} held-out commands"
        )
    return score, held_out


def measure_versions(
    model: "LanguageModel", versions: Sequence["VersionAdapters"], examples: Sequence[Example], console: Console
) -> tuple[VersionLoss, ...]:
    """Held-out loss of some versions: of what nodes trained from, and of what they served."""
    with stage(console, "versions", of_count) as shown:
        from examples.smart_home.measure import losses_of

        losses = losses_of(model, versions, examples, lambda done: shown.advance(done, len(versions)))
        shown.result = f"loss of {len(losses)} versions on {len(examples)} of the commands"
    return losses
