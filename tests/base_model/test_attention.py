"""Attention of short rows is attention."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from base_model.attention import SHORT, SHORT_ROWS, short_attention
from base_model.language_model import LanguageModel
from base_model.reference import ResolvedModel

LAYER: Any = SimpleNamespace(num_key_value_groups=3, is_causal=True)  # what transformers asks the module for


@pytest.mark.parametrize("tokens", [1, 7, SHORT + 1])
def test_six_heads_on_two_keys_attend_as_pytorchs_do(tokens: int) -> None:
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(2, 6, tokens, 8, generator=generator)
    key, value = (torch.randn(2, 2, tokens, 8, generator=generator) for _ in range(2))
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril().expand(2, 1, tokens, tokens).clone()
    seen[1, :, 3:, :2] = False
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    attended, _ = short_attention(LAYER, query, key, value, mask, scaling=0.3)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(attended, expected.transpose(1, 2))


def test_models_in_bfloat16_on_a_cpu_use_it(resolved: ResolvedModel) -> None:
    names = {
        dtype: LanguageModel.load(resolved, dtype=dtype).network.config._attn_implementation
        for dtype in ("float32", "bfloat16")
    }
    assert names == {"float32": "sdpa", "bfloat16": SHORT_ROWS}
