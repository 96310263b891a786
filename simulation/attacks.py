"""Nodes that lie: what an attacker with an enrolled key can send in place of what it has learnt.

Attackers work together and, the worst case, see every honest update as it is made. They choose a delta and no more:
what they send are messages like any other node's.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

import numpy as np

from base_model.descent import TrainingResult
from base_model.evaluation import losses
from base_model.examples import Example
from coordinator.trust.robust import HeadGuard
from schemas.adapter import Adapter, weighted_sum
from simulation.learner import Job, Learner
from simulation.seeds import generator_of

Attack = Literal["sign-flip", "scale", "label-flip", "alie", "ipm", "mimic", "free-rider", "gate-aware"]
ATTACKS: Mapping[Attack, str] = {
    "sign-flip": "minus ten times what was learnt",
    "scale": "a hundred times what was learnt",
    "label-flip": "trained on commands with the answers of other commands",
    "alie": "a little off the honest mean, within its spread (Baruch et al., arXiv 1902.06156)",
    "ipm": "minus half of the honest mean (Xie et al., arXiv 1903.03936)",
    "mimic": "all send what one honest node sent (Karimireddy et al., arXiv 2006.09365)",
    "free-rider": "noise of a thousandth of an honest length, without training",
    "gate-aware": "harm that points along its own honest delta, as long as one, and within the gate's tolerance",
}
HALVINGS = 4


@dataclass
class LyingLearner(Learner):
    """Does the jobs of all nodes, and sends lies for those that are attackers."""

    attack: Attack = "sign-flip"
    liars: frozenset[str] = frozenset()
    tolerance: Callable[[float], float] = HeadGuard().tolerated
    honest: dict[str, Adapter] = field(default_factory=dict)  # the latest delta of every honest node

    def learn(self, job: Job, examples: tuple[Example, ...]) -> tuple[Adapter, TrainingResult]:
        """What a node sends as its delta, and the result of the training that it pretends to have done."""
        delta, result = super().learn(job, examples)
        if job.node not in self.liars:
            self.honest[job.node] = delta
            return delta, result
        return self._lie(job, delta, examples), result

    def _lie(self, job: Job, learnt: Adapter, examples: tuple[Example, ...]) -> Adapter:
        others = [self.honest[node] for node in sorted(self.honest)] or [learnt]
        match self.attack:
            case "sign-flip":
                return learnt * -10
            case "scale":
                return learnt * 100
            case "label-flip":
                return super().learn(job, flipped(examples))[0]
            case "alie":
                return little_is_enough(others, len(self.ranks), len(self.liars))
            case "ipm":
                return weighted_sum(others, [-0.5 / len(others)] * len(others))
            case "mimic":
                return others[0]
            case "free-rider":
                noise = generator_of(self.seed, job.node, "noise", job.number).standard_normal(learnt.layout.size)
                return as_long_as(Adapter(learnt.layout, noise.astype(np.float32)), learnt) * 1e-3
            case "gate-aware":
                return self._within_the_gate(job, learnt, examples)

    def _within_the_gate(self, job: Job, learnt: Adapter, examples: tuple[Example, ...]) -> Adapter:
        """What harms without turning against the honest direction, halved until its own examples let it pass."""
        wrong = super().learn(job, flipped(examples))[0]
        aside = wrong - learnt * (wrong.cosine(learnt) * wrong.norm / learnt.norm)
        start, allowed = job.start.adapter, self.tolerance(losses(self.model, job.start.adapter, examples[:16]))
        share = 1.0
        for _ in range(HALVINGS):
            lie = as_long_as(aside * share + learnt * (1.1 - share), learnt)
            if losses(self.model, start + lie, examples[:16]) <= allowed:
                return lie
            share /= 2
        return as_long_as(aside * share + learnt * (1.1 - share), learnt)


def flipped(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Each prompt with the answer of the next example whose answer is another one."""
    answers = [example.completion for example in examples]
    return tuple(
        example.model_copy(update={"completion": _another(answers, place)}) for place, example in enumerate(examples)
    )


def little_is_enough(honest: Sequence[Adapter], nodes: int, liars: int) -> Adapter:
    """mean - z * standard deviation, with the largest z at which a majority still looks further away."""
    supporters = nodes // 2 + 1 - liars
    z = NormalDist().inv_cdf(min(0.999, max(0.5, (nodes - liars - supporters) / (nodes - liars))))
    values = np.stack([delta.values for delta in honest]).astype(np.float64)
    return Adapter(honest[0].layout, (values.mean(axis=0) - z * values.std(axis=0)).astype(np.float32))


def as_long_as(delta: Adapter, other: Adapter) -> Adapter:
    """The delta in its direction, with the other's norm."""
    return delta * (other.norm / delta.norm) if math.isfinite(delta.norm) and delta.norm > 0 else delta


def _another(answers: Sequence[str], place: int) -> str:
    ahead = (answers[(place + step) % len(answers)] for step in range(1, len(answers)))
    return next((answer for answer in ahead if answer != answers[place]), answers[place])
