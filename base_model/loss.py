"""Cross-entropy over a large vocabulary, few rows at a time, so that what is in between stays in the processor's cache.

The gradient is made on the way: PyTorch's own function goes over tens of megabytes several times. It knows logits and
targets, and nothing of where they come from.
"""

from typing import Any

import torch
from torch import Tensor

ROWS = 4


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Each row's -log softmax(logits)[target] in nats, float32 (rows,): logits (rows, vocabulary), targets (rows,)."""
    losses: Tensor = _CrossEntropies.apply(logits, targets)  # type: ignore[no-untyped-call]
    return losses


class _CrossEntropies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        losses = logits.new_empty(len(logits), dtype=torch.float32)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for start in range(0, len(logits), ROWS):
            rows, columns = slice(start, start + ROWS), targets[start : start + ROWS, None]
            likelihoods = logits[rows].log_softmax(dim=-1, dtype=torch.float32)
            losses[rows] = -likelihoods.gather(1, columns).squeeze(1)
            if gradient is not None:  # d loss / d logits = softmax(logits) - 1 at the target
                shares = likelihoods.exp_()
                gradient[rows] = shares.scatter_add_(1, columns, shares.new_full(columns.shape, -1))
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(gradients[0].unsqueeze(1)), None
