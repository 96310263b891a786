"""Attention of short rows in bfloat16 on a CPU: plain matrix products in place of PyTorch's fused kernel.

That kernel is made for long rows: here its backward pass takes three times as long as all of this. Long rows still go
to it, since the products hold every pair of tokens in memory, and so do the single tokens of generation. This module
knows shapes, and no model.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

SHORT_ROWS = "short_rows"
"""The name by which a transformers model takes this attention."""

SHORT = 512


def short_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attend from queries (batch, heads, tokens, size) to keys and values of as many heads or fewer.

    The mask, (batch, 1, tokens, keys), is added to the scores. The result is (batch, tokens, heads, size).
    """
    batch, heads, tokens, size = query.shape
    _, groups, keys, _ = key.shape
    plain = not any(more.get(name) for name in ("dropout", "softcap", "position_bias"))
    if attention_mask is None or tokens == 1 or keys > SHORT or not plain:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)
    # heads that share a key count as more queries of it, so that no key is copied
    scores = (query * scaling).reshape(batch, groups, -1, size) @ key.transpose(-1, -2)
    weights = (scores.view(batch, heads, tokens, keys) + attention_mask).softmax(dim=-1)
    attended = weights.view(batch, groups, -1, keys) @ value
    return attended.view(batch, heads, tokens, size).transpose(1, 2), None


AttentionInterface.register(SHORT_ROWS, short_attention)
AttentionMaskInterface.register(SHORT_ROWS, eager_mask)
