"""Cross-entropy a few rows at a time is cross-entropy."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from base_model.loss import ROWS, cross_entropies


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_losses_and_gradients_are_pytorchs(dtype: torch.dtype, rtol: float) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = 2 * ROWS + 1
    logits = torch.randn(rows, 50, generator=generator).mul(5).to(dtype)
    targets = torch.randint(0, 50, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().float().requires_grad_()
    losses, expected = cross_entropies(ours, targets), cross_entropy(theirs, targets, reduction="none")
    torch.testing.assert_close(losses, expected)
    (losses * weights).sum().backward()  # type: ignore[no-untyped-call]
    (expected * weights).sum().backward()  # type: ignore[no-untyped-call]
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad.float(), theirs.grad, rtol=rtol, atol=1e-6)


def test_a_certain_row_costs_nothing_and_an_impossible_one_stays_finite() -> None:
    logits = torch.tensor([[1000.0, 0.0], [1000.0, 0.0]])
    assert cross_entropies(logits, torch.tensor([0, 1])).tolist() == [0, 1000]
