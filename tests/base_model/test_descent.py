"""The steps of local training are those of PyTorch's AdamW, without what its class brings along."""

import subprocess
import sys

import pytest
import torch
from torch.nn import Parameter

from base_model.descent import descend
from base_model.settings import TrainingConfig


def factors():
    generator = torch.Generator().manual_seed(3)
    return {name: Parameter(torch.randn(4, 5, generator=generator)) for name in ("a", "b")}


def gradients(parameters):
    """What leaves the gradient of a curved loss with the parameters."""

    def leave(chosen):
        loss = sum((parameter.sin() * (1 + chosen[0])).square().sum() for parameter in parameters.values())
        loss.backward()
        return loss.item()

    return leave


@pytest.mark.parametrize("learning_rate", [0.1, 4e-3])
def test_steps_are_those_of_pytorchs_adamw_bit_for_bit(learning_rate):
    config = TrainingConfig(steps=5, learning_rate=learning_rate, gradient_clip=2.0)
    ours, theirs = factors(), factors()
    losses = descend(ours, [[n] for n in range(5)], gradients(ours), config, lambda step, loss: None)
    optimizer = torch.optim.AdamW(theirs.values(), lr=learning_rate, weight_decay=0.0)
    leave, expected = gradients(theirs), []
    for n in range(5):
        expected.append(leave([n]))
        torch.nn.utils.clip_grad_norm_(theirs.values(), 2.0)
        optimizer.step()
        optimizer.zero_grad()
    assert losses == expected
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(parameter.grad is None for parameter in ours.values())


def test_a_job_does_not_bring_pytorchs_compiler_into_memory():
    job = (
        "import sys, torch; from base_model.descent import descend; from base_model.settings import TrainingConfig\n"
        "factor = torch.nn.Parameter(torch.ones(3))\n"
        "def leave(chosen): loss = factor.square().sum(); loss.backward(); return loss.item()\n"
        "descend({'a': factor}, [[0], [0]], leave, TrainingConfig(steps=2), lambda step, loss: None)\n"
        "print(factor.tolist() != [1, 1, 1], [m for m in ('torch._dynamo', 'sympy') if m in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", job], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True []"
