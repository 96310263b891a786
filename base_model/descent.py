"""The optimiser's side of local training: which examples in which order, and AdamW on the factors, step by step.

It knows factors and their gradients. It does not know what network makes them, and loads no model library.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.adamw import adamw

from base_model.settings import TrainingConfig
from schemas.adapter import A_SUFFIX, B_SUFFIX, Adapter

OnStep = Callable[[int, float], None]
"""Called after each step with its number, from 1, and its loss; it may raise to abandon the run."""

LeaveGradients = Callable[[Sequence[int]], float]
"""Called as leave_gradients(examples): adds the step's gradient to every factor's, and returns the step's loss."""


@dataclass(frozen=True)
class TrainingResult:
    """What a job made: the adapter at its end, its losses (nats per answer token), and how much it saw."""

    adapter: Adapter
    mean_loss: float
    last_loss: float
    steps: int
    examples_seen: int


def result_of(adapter: Adapter, losses: Sequence[float], config: TrainingConfig, examples: int) -> TrainingResult:
    """What a job made that had so many examples; `losses` are those of its steps."""
    return TrainingResult(
        adapter=adapter,
        mean_loss=float(np.mean(losses)),
        last_loss=losses[-1],
        steps=config.steps,
        examples_seen=config.steps * min(config.batch_size, examples),
    )


def orders(count: int, config: TrainingConfig) -> Iterator[list[int]]:
    """Indices of each step's examples: every example once, in a seeded order, before any comes again."""
    generator = np.random.default_rng(config.seed)
    waiting: list[int] = []
    size = min(config.batch_size, count)
    for _ in range(config.steps):
        if len(waiting) < size:
            waiting = generator.permutation(count).tolist()
        yield waiting[:size]
        waiting = waiting[size:]


def learning(factors: Mapping[str, Parameter], config: TrainingConfig) -> dict[str, Parameter]:
    """The factors that this configuration trains."""
    fixed = {"both": None, "A": B_SUFFIX, "B": A_SUFFIX}[config.trained_factors]
    return {name: factor for name, factor in factors.items() if fixed is None or not name.endswith(fixed)}


def descend(
    parameters: Mapping[str, Parameter],
    steps: Sequence[Sequence[int]],
    leave_gradients: LeaveGradients,
    config: TrainingConfig,
    on_step: OnStep,
) -> list[float]:
    """Take a step for each list of examples; the losses. The parameters are changed in place, their gradients end."""
    start = {name: factor.detach().clone() for name, factor in parameters.items()} if config.proximal else {}
    optimizer = _AdamW(tuple(parameters.values()), config.learning_rate)
    losses = []
    for step, chosen in enumerate(steps, start=1):
        losses.append(leave_gradients(chosen))
        _pull_back(parameters, start, config)
        torch.nn.utils.clip_grad_norm_(parameters.values(), config.gradient_clip)
        optimizer.step()
        on_step(step, losses[-1])
    return losses


class _AdamW:
    """torch.optim.AdamW without weight decay, bit for bit, by the function that it calls too.

    The class imports PyTorch's compiler when it is made: 68 MB and 1.7 processor seconds that no job needs.
    """

    def __init__(self, parameters: tuple[Parameter, ...], learning_rate: float) -> None:
        self._parameters, self._learning_rate = parameters, learning_rate
        self._means = [torch.zeros_like(parameter) for parameter in parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in parameters]
        self._steps = [torch.tensor(0.0) for _ in parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Follow the gradients, and forget them."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        assert len(gradients) == len(self._parameters)
        adamw(
            list(self._parameters),
            gradients,
            self._means,
            self._squares,
            [],
            self._steps,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
        for parameter in self._parameters:
            parameter.grad = None


def _pull_back(parameters: Mapping[str, Parameter], start: Mapping[str, Tensor], config: TrainingConfig) -> None:
    """Add the gradient of mu/2 ||theta - theta_start||^2 (FedProx, arXiv 1812.06127, equation 2)."""
    if config.proximal:
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            parameter.grad.add_(parameter.detach() - start[name], alpha=config.proximal)
