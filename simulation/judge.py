"""How good what nodes serve is, on examples that nobody trained on. It takes no simulated time.

Where nodes keep factors of their own, or have other ranks, they do not all serve the same. Then each held-out example
is put to one node's model, in turn: the mean over all of them at the price of one.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import fmean
from typing import TypeVar

from base_model.evaluation import answers, example_losses
from base_model.examples import Example
from base_model.language_model import LanguageModel
from schemas.adapter import Adapter
from simulation.result import Final
from simulation.schedule import Presence
from simulation.scoring import jain, scores
from simulation.settings import Measuring
from simulation.task import Examples, Task

WorksWith = Callable[[str, Adapter], Adapter]
"""What a node makes of a global adapter; the same object for nodes that make the same of it."""
Put = tuple[Adapter, Example]
"""An example, and the model it is put to."""
T = TypeVar("T")


class Judge:
    """Measures adapters on one task; none is measured twice on the held-out examples."""

    def __init__(self, model: LanguageModel, task: Task, measuring: Measuring, works_with: WorksWith) -> None:
        self._model, self._task, self._measuring, self._works_with = model, task, measuring, works_with
        self._known: dict[str, float] = {}  # held-out loss by digest
        self.cpu_seconds = 0.0

    def loss(self, adapter: Adapter) -> float:
        """Held-out loss, in nats per answer token."""
        if adapter.digest in self._known:
            return self._known[adapter.digest]
        with self._on_the_clock():
            put = self._in_turn(adapter, self._task.held_out[: self._measuring.held_out])
            loss = self._mean([example for _, example in put], self._losses(put))
        if all(one is adapter for one, _ in put):  # what nodes add to it may change
            self._known[adapter.digest] = loss
        return loss

    def final(self, adapter: Adapter, presences: Mapping[str, Presence]) -> Final:
        """All that is to be said of what nodes serve at the end."""
        with self._on_the_clock():
            put = self._in_turn(adapter, self._task.held_out[: self._measuring.generated])
            written = _of_each(put, partial(answers, self._model))
            nodes = self._own_tests(adapter)
        exact, intents = scores(written, [example for _, example in put])
        worst = sorted(nodes.values(), reverse=True)
        slowest = sorted(nodes, key=lambda node: (-presences[node].speed, node))
        return Final(
            loss=self.loss(adapter),
            intent_accuracy=intents,
            exact_match=exact,
            nodes=nodes,
            worst_quarter=_mean_of_first(worst, 4),
            worst_tenth=_mean_of_first(worst, 10),
            slowest_quarter=_mean_of_first([nodes[node] for node in slowest], 4),
            jain=jain(list(nodes.values())),
        )

    def _own_tests(self, adapter: Adapter) -> dict[str, float]:
        """Each node's loss on its own test."""
        tests = {node: tests[: self._measuring.own_tests] for node, tests in self._task.tests.items()}
        held = {node: self._works_with(node, adapter) for node in tests}
        losses = iter(self._losses([(held[node], example) for node in tests for example in tests[node]]))
        return {node: self._mean(examples, [next(losses) for _ in examples]) for node, examples in tests.items()}

    def _in_turn(self, adapter: Adapter, examples: Examples) -> list[Put]:
        """Each example with the model of another node, as far as there are that many."""
        nodes = list(self._task.nodes)[: len(examples)]
        held = [self._works_with(node, adapter) for node in nodes]
        return [(held[place % len(held)], example) for place, example in enumerate(examples)]

    def _losses(self, put: Sequence[Put]) -> list[float]:
        """Mean loss of each example's answer tokens."""
        return _of_each(put, partial(example_losses, self._model))

    def _mean(self, examples: Sequence[Example], losses: Sequence[float]) -> float:
        """Mean over all answer tokens; infinite where any is no number."""
        tokens = [len(self._model.encode(example).answer) for example in examples]
        mean = math.fsum(loss * count for loss, count in zip(losses, tokens, strict=True)) / sum(tokens)
        return mean if math.isfinite(mean) else math.inf

    @contextmanager
    def _on_the_clock(self) -> Iterator[None]:
        begun = time.process_time()
        yield
        self.cpu_seconds += time.process_time() - begun


def _of_each(put: Sequence[Put], ask: Callable[[Adapter, Sequence[Example]], Sequence[T]]) -> list[T]:
    """What comes out for each example; every model is asked once, for all of its examples."""
    places: dict[int, list[int]] = {}
    for place, (adapter, _) in enumerate(put):
        places.setdefault(id(adapter), []).append(place)
    found: dict[int, T] = {}
    for own in places.values():
        found |= zip(own, ask(put[own[0]][0], [put[place][1] for place in own]), strict=True)
    return [found[place] for place in range(len(put))]


def _mean_of_first(values: Sequence[float], part: int) -> float:
    """The mean of the first quarter, tenth, ...; of one at least."""
    return fmean(values[: max(1, len(values) // part)])
