"""`alignfed simulate` and `compare`: methods on this machine, in virtual time."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from commands.console import FAILURE, USAGE, ending, fail

TaskFolder = Annotated[
    Path | None, typer.Option("--data", metavar="FOLDER", help="Your own task instead of smart-home commands.")
]

app = typer.Typer()


@app.command(epilog=ending("alignfed simulate --method fedbuff_2 --nodes 16 --updates 60", FAILURE, "130  interrupted"))
def simulate(
    method: Annotated[str, typer.Option(metavar="NAME", help="One of the methods in docs/simulation.md.")] = "alignfed",
    data: TaskFolder = None,
    nodes: Annotated[int, typer.Option(min=2, help="Homes, without --data.")] = 16,
    updates: Annotated[int, typer.Option(min=1, help="Updates of nodes after which the run ends.")] = 120,
    seed: Annotated[int, typer.Option(min=0, max=2**48 - 1, help="Of data, schedule and training.")] = 0,
    clip_norm: Annotated[float | None, typer.Option(help="Nodes shorten longer deltas to this norm.")] = None,
    noise_multiplier: Annotated[float, typer.Option(min=0, help="Noise for privacy, with --clip-norm.")] = 0.0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the whole record here, as JSON.")] = None,
) -> None:
    """Simulate one federation.

    Many nodes train for real, in virtual time, and the coordinator's own core decides: one process, no broker.
    """
    from pydantic import ValidationError
    from rich.console import Console

    from coordinator.privacy.terms import PrivacyTerms
    from examples.smart_home.tasks import make_simulated_task
    from simulation.command import run_simulate
    from simulation.comparison.regimes import TaskSpec
    from simulation.methods import METHODS, strategy_of
    from simulation.settings import SimulationConfig
    from simulation.task import read_task

    if method not in METHODS:
        fail(f"there is no method {method}; there are {', '.join(METHODS)}", USAGE)
    task = read_task(data) if data else make_simulated_task(TaskSpec(homes=nodes, seed=seed))
    strategy = strategy_of(method, len(task.nodes))
    try:
        privacy = PrivacyTerms(clip_norm=clip_norm, noise_multiplier=noise_multiplier) if clip_norm else None
        config = SimulationConfig(method=method, strategy=strategy, updates=updates, seed=seed, privacy=privacy)
    except ValidationError as error:
        fail(error.errors(include_url=False)[0]["msg"], USAGE)
    raise typer.Exit(run_simulate(config, task, out, Console()))


@app.command(
    epilog=ending("alignfed compare --preset ci --out runs/compare", "1  a run failed", "130  interrupted: go on later")
)
def compare(
    preset: Annotated[Literal["ci", "full", "long"], typer.Option(help="How much is compared.")] = "ci",
    methods: Annotated[str | None, typer.Option(metavar="A,B", help="Only these.  [default: the preset's]")] = None,
    seeds: Annotated[str | None, typer.Option(metavar="10,11", help="Only these.  [default: the preset's]")] = None,
    regimes: Annotated[str | None, typer.Option(metavar="R,S", help="Only these.  [default: the preset's]")] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="For runs, figures and the report.")] = Path(
        "runs/compare"
    ),
    data: TaskFolder = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at once.  [default: one for each core]")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be run and how long it takes.")] = False,
    results: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what is in FOLDER as a document, and run nothing.")
    ] = None,
) -> None:
    """Compare methods over conditions and seeds.

    Every run is kept in FOLDER: stopped and started again, it goes on. At the end there are tables, figures, and a
    verdict on every claim.
    """
    from rich.console import Console

    from examples.smart_home.tasks import make_simulated_task
    from simulation.comparison import command
    from simulation.comparison.matrix import ImpossibleComparison
    from simulation.comparison.results import write_results

    options = command.CompareOptions(
        out=out,
        preset=preset,
        methods=_listed(methods),
        seeds=_numbers(seeds),
        regimes=_listed(regimes),
        data=data,
        workers=workers or os.cpu_count() or 1,
        command=" ".join(["alignfed", *sys.argv[1:]]),
    )
    try:
        if results is not None:
            write_results(out, results)
        elif plan:
            command.show(options, Console())
        else:
            raise typer.Exit(command.compare(options, make_simulated_task, Console()))
    except ImpossibleComparison as error:
        fail(str(error), USAGE)


def _listed(text: str | None) -> tuple[str, ...] | None:
    return tuple(word.strip() for word in text.split(",") if word.strip()) if text is not None else None


def _numbers(text: str | None) -> tuple[int, ...] | None:
    words = _listed(text)
    if words is not None and not all(word.isdecimal() for word in words):
        fail(f"--seeds takes numbers with commas between them, not {text}", USAGE)
    return tuple(map(int, words)) if words is not None else None
