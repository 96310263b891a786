"""`summary.json`: what was compared, how, and what came of it. Documents are written from it and from nothing else."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil
from pydantic import BaseModel, ConfigDict

from simulation.comparison.regimes import BASE, REGIMES
from simulation.comparison.summary import (
    REFERENCES,
    TARGET_STEP,
    Regimes,
    derive_targets,
    fixed_targets,
    summarise,
)
from simulation.comparison.verdicts import Verdict, verdicts
from simulation.methods import METHODS
from simulation.result import RunResult

NAME = "summary.json"
DERIVED = (
    f"the losses that {REFERENCES[0]} serves after half of its run and at its end (where it was not "
    f"run: {', '.join(REFERENCES[1:])}, or the first method), medians over seeds, rounded up to the next {TARGET_STEP}"
)
FIXED = f"fixed on another seed before these runs; in regimes without any, {DERIVED}"


class Machine(BaseModel):
    """Where the runs were computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    processor: str
    cores: int
    memory_gb: float
    python: str

    @classmethod
    def here(cls) -> Self:
        """This one."""
        return cls(
            processor=_processor(),
            cores=os.cpu_count() or 1,
            memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
            python=platform.python_version(),
        )


class Comparison(BaseModel):
    """A whole comparison. `regimes` are medians and intervals by regime and method; null is infinite.

    `figures` are captions by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    commit: str
    preset: str
    commits: tuple[str, ...]
    command: str
    machine: Machine
    run_seconds: float
    seeds: tuple[int, ...]
    regimes: Regimes
    about_regimes: Mapping[str, str]
    about_methods: Mapping[str, str]
    targets: Mapping[str, tuple[float, ...]]
    targets_are: str
    verdicts: tuple[Verdict, ...]
    failures: Mapping[str, str]
    figures: Mapping[str, str] = {}

    @property
    def main(self) -> str:
        """The regime that most is said about."""
        return BASE.name if BASE.name in self.regimes else next(iter(self.regimes))

    @property
    def seeds_per_method(self) -> int:
        """How many seeds a method has, in the regime where it has most."""
        return max(summary.seeds for methods in self.regimes.values() for summary in methods.values())


def compare_runs(
    results: Sequence[RunResult], command: str, targets: Sequence[float] | None, failures: Mapping[str, str]
) -> Comparison:
    """Everything that can be said of these runs, of which there must be one. `targets` replace those of the regimes."""
    names = list(dict.fromkeys(result.regime for result in results))
    by_regime = {name: [result for result in results if result.regime == name] for name in names}
    aims = {name: tuple(targets or fixed_targets(runs) or derive_targets(runs)) for name, runs in by_regime.items()}
    regimes = summarise(results, aims)
    commits = tuple(sorted({result.commit for result in results}))
    return Comparison(
        commit=commits[0] if len(commits) == 1 else "several",
        preset=results[0].preset,
        commits=commits,
        command=command,
        machine=Machine.here(),
        run_seconds=sum(result.seconds for result in results),
        seeds=tuple(sorted({result.seed for result in results})),
        regimes=regimes,
        about_regimes={name: REGIMES[name].about for name in names},
        about_methods={result.method: METHODS[result.method].about for result in results},
        targets=aims,
        targets_are="given"
        if targets
        else FIXED
        if any(fixed_targets(runs) for runs in by_regime.values())
        else f"in every regime, {DERIVED}",
        verdicts=verdicts(regimes),
        failures=failures,
    )


def _processor() -> str:
    """The processor as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
