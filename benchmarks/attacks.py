"""Attacks on the real task against rules to withstand them: what accuracy is kept, and what it costs honest nodes.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/attacks.py --quick --json attacks.json --write docs/attacks.md

Every run is a simulated federation of real nodes around the production core (simulation/), in which some nodes lie
(simulation/attacks.py). FILE is written after each run, which names the commit that it was made with; a run that is in
it already is not done again. attack_bars.py says what must hold, and the exit code is 1 where it did not. `kept` is the
share of the loss improvement that the plain mean reaches without any attack; `rise` is the worst step between two
versions of the gate fold's loss, beyond 5 % + 0.01, of what nodes serve; `head_rise` the same of what they train from.
"""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from attack_bars import NONE, verdicts
from attack_page import page
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from robust_rules import rules

from base_model.evaluation import losses
from base_model.language_model import LanguageModel
from base_model.reference import DEFAULT_NAME, default_cache, resolve
from broker.whole_file import write_whole
from coordinator.calibration import CalibrationSet
from coordinator.state import FederationState
from coordinator.strategies import AlignFed
from coordinator.trust.robust import HeadGuard
from examples.smart_home.tasks import make_simulated_task
from schemas.adapter import Adapter, LoraConfig
from schemas.messages import GlobalManifest
from simulation.attacks import ATTACKS, LyingLearner
from simulation.comparison.regimes import TaskSpec
from simulation.federation import Released, Version
from simulation.judge import Judge
from simulation.methods import OLDEST, TIMEOUT
from simulation.run import commit, make_federation
from simulation.seeds import generator_of
from simulation.settings import Measuring, SimulationConfig
from simulation.task import Task

NODES = 20


class Size(NamedTuple):
    """How much is trained and measured."""

    task: str
    layers: int
    updates: int
    anchor: int
    gate: int
    held_out: int
    generated: int


class Case(NamedTuple):
    """One run."""

    attack: str
    share: float  # of the nodes that lie
    rule: str
    seed: int


QUICK = Size("narrow", layers=2, updates=48, anchor=16, gate=24, held_out=32, generated=16)
FULL = Size("wide", layers=6, updates=120, anchor=32, gate=64, held_out=128, generated=128)


def main() -> None:
    """Run what was asked for and print the table."""
    options = _options()
    size = QUICK if options.quick else FULL
    if options.updates:
        size = size._replace(updates=options.updates)
    file: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    if file.get("size", size._asdict()) != size._asdict():
        sys.exit(f"{options.json} has runs of another size ({file['size']}): give another file")
    done: list[dict[str, Any]] = file.get("runs", [])
    known = [{name: one[name] for name in Case._fields} for one in done]
    cases = [case for case in _cases(options) if case._asdict() not in known]
    progress = Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True))
    with get_context("spawn").Pool(options.workers) as workers, progress:
        task = progress.add_task("runs", total=len(cases))
        for case, found in workers.imap_unordered(partial(_run, size), cases):
            done.append({**case._asdict(), **found, "commit": commit()})
            _add_kept(done)
            said = [
                {**v.bar._asdict(), "found": v.found, "attack": v.attack, "verdict": v.word} for v in verdicts(done)
            ]
            figures = {"size": size._asdict(), "attacks": ATTACKS, "bars": said, "runs": done}
            write_whole(options.json, json.dumps(figures, indent=1).encode())
            progress.console.print(_line(done[-1]), soft_wrap=True, highlight=False)
            progress.advance(task)
    if options.write is not None:
        options.write.write_text(page(size._asdict(), NODES, size.updates < FULL.updates, done), encoding="utf-8")
    for one in verdicts(done):
        print(f"{one.word:<13}{one.bar.what}, {one.bar.share:.0%} liars: {one.said(one.found)}"
              f" ({one.attack or 'no run'}; at most {one.said(one.bar.most)})")  # fmt: skip
    sys.exit(any(one.word == "missed" for one in verdicts(done)))


@cache
def _model() -> LanguageModel:
    return LanguageModel.load(resolve(DEFAULT_NAME, default_cache()), "bfloat16", threads=1, frozen_cache_mb=1024)


def _run(size: Size, case: Case) -> tuple[Case, dict[str, Any]]:
    return case, run(_model(), size, case)


def run(model: LanguageModel, size: Size, case: Case) -> dict[str, Any]:
    """One federation with its liars, and what came of it."""
    task = make_simulated_task(TaskSpec(name=size.task, homes=NODES, seed=case.seed, held_out=size.held_out))  # type: ignore[arg-type]
    strategy = rules(buffer_size=4, timeout_s=TIMEOUT, max_staleness=OLDEST)[case.rule]
    config = _config(size, case, strategy)
    gate = CalibrationSet.cut(task.calibration, size.anchor, size.gate).gate
    known: dict[str, float] = {}

    def gate_loss(adapter: Adapter) -> float:
        if adapter.digest not in known:
            loss = losses(model, adapter, gate) if adapter.is_finite else math.inf
            known[adapter.digest] = loss if math.isfinite(loss) else math.inf
        return known[adapter.digest]

    manifests: list[GlobalManifest] = []
    heads: list[float] = []
    served: list[float] = []
    released: list[Adapter] = []

    def hear(news: Version | Released) -> None:
        if isinstance(news, Version):
            manifests.append(news.manifest)
            heads.append(gate_loss(news.head))
        else:
            released.append(news.served)
            served.append(gate_loss(news.served))

    federation = make_federation(model, config, strategy, task, hear, lambda updates, now: None)
    liars = _liars(task, case)
    if liars:
        federation.learner = LyingLearner(**vars(federation.learner), attack=case.attack, liars=liars)  # type: ignore[arg-type]
    federation.run(model.initial_adapter(config.lora, config.seed), config.updates, None)
    judge = Judge(model, task, config.measuring, federation.learner.works_with)
    final = judge.final(released[-1], federation.fleet.presences)
    return {
        "start": judge.loss(model.initial_adapter(config.lora, config.seed)),
        "loss": _sayable(final.loss),
        "exact_match": final.exact_match,
        "intent_accuracy": final.intent_accuracy,
        "worst_quarter": _sayable(final.worst_quarter),
        "rise": _sayable(_worst_rise(served)),
        "head_rise": _sayable(_worst_rise(heads)),
        "returns": sum(manifest.returned is not None for manifest in manifests),
        "versions": len(manifests) - 1,
        **_rejection(federation.state, manifests, liars),
    }


def _config(size: Size, case: Case, strategy: AlignFed) -> SimulationConfig:
    return SimulationConfig(
        method=case.rule,
        strategy=strategy,
        seed=case.seed,
        updates=size.updates,
        lora=LoraConfig(rank=8, alpha=16, target_modules=("q_proj", "v_proj"), last_layers=size.layers),
        anchor_examples=size.anchor,
        gate_examples=size.gate,
        measuring=Measuring(held_out=size.held_out, generated=size.generated, own_tests=4),
    )


def _liars(task: Task, case: Case) -> frozenset[str]:
    """Nodes drawn by the seed: the same for every attack and rule, and those of 20 % among those of 40 %."""
    nodes = sorted(task.nodes)
    order = generator_of(case.seed, "liars").permutation(len(nodes))
    count = 0 if case.attack == NONE else round(case.share * len(nodes))
    return frozenset(nodes[place] for place in order[:count])


def _rejection(state: FederationState, manifests: Sequence[GlobalManifest], liars: frozenset[str]) -> dict[str, Any]:
    """The share of decided updates that were refused or got no weight: of honest nodes, of the worst, of liars."""
    unused = Counter(given.node for manifest in manifests for given in manifest.inputs if given.weight == 0)
    shares: dict[str, tuple[int, int]] = {}
    for node, ledger in state.nodes.items():
        waiting = sum(known.version is None for known in ledger.accepted.values())
        refused = sum(ledger.refusals.values())
        before = refused - ledger.refusals.get("distrusted", 0) - ledger.refusals.get("overflow", 0)
        shares[node] = refused + unused[node], ledger.participation - waiting + before
    honest = {node: counts for node, counts in shares.items() if node not in liars}
    return {
        "honest_rejected": _share(list(honest.values())),
        "honest_rejected_worst": max((_share([counts]) for counts in honest.values()), default=0.0),
        "liars_rejected": _share([counts for node, counts in shares.items() if node in liars]),
    }


def _share(counts: Sequence[tuple[int, int]]) -> float:
    """Rejected of decided updates."""
    decided = sum(all_ for _, all_ in counts)
    return sum(rejected for rejected, _ in counts) / decided if decided else 0.0


def _worst_rise(measured: Sequence[float]) -> float:
    """The largest rise of a loss in one step beyond what is tolerated; 0 where there is none."""
    tolerated = HeadGuard().tolerated
    return max((max(0.0, after - tolerated(before)) for before, after in pairwise(measured)), default=0.0)


def _sayable(figure: float) -> float | None:
    return figure if math.isfinite(figure) else None


def _add_kept(done: list[dict[str, Any]]) -> None:
    """The share of the plain mean's improvement without attack, for every run whose reference is there."""
    for one in done:
        reference = next((r for r in done if (r["attack"], r["rule"], r["seed"]) == (NONE, "mean", one["seed"])), None)
        if reference and reference["loss"] is not None:
            gain = reference["start"] - reference["loss"]
            one["kept"] = (one["start"] - one["loss"]) / gain if one["loss"] is not None else None


def _line(one: dict[str, Any]) -> str:
    def said(name: str, form: str) -> str:
        value = one.get(name)
        return f"{'-' if value is None else format(value, form):>6}"

    columns = (("loss", ".3f"), ("kept", ".0%"), ("exact_match", ".0%"), ("rise", ".2f"), ("head_rise", ".2f"),
               ("honest_rejected", ".0%"), ("honest_rejected_worst", ".0%"), ("liars_rejected", ".0%"),
               ("returns", "d"))  # fmt: skip
    figures = "  ".join(f"{name} {said(name, form)}" for name, form in columns)
    return f"{one['attack']:<11}{one['share']:>4.0%}  {one['rule']:<13}seed {one['seed']}  {figures}"


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    """Without attack first, then rule by rule the attacks, so that what is cut short is a table with fewer rows."""
    for seed in options.seeds:
        yield from (Case(NONE, 0.0, rule, seed) for rule in options.rules)
        for share in options.shares:
            yield from (Case(attack, share, rule, seed) for attack in options.attacks for rule in options.rules)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--json", type=Path, required=True, metavar="FILE", help="results, and what need not be done again"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a narrow task and two layers: a minute or so for each run"
    )
    parser.add_argument("--updates", type=int, help="of nodes, after which a run ends")
    parser.add_argument("--attacks", nargs="*", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--rules", nargs="*", choices=list(rules()), default=list(rules()))
    parser.add_argument("--shares", nargs="*", type=float, default=[0.2, 0.4], help="of the nodes that lie")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time: 1 GB of memory each")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the tables, as Markdown")
    return parser.parse_args()


if __name__ == "__main__":
    main()
