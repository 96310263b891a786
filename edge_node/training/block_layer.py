"""One layer of a Llama-like decoder on PyTorch: its numbers out of blocks, its factors, and what it does to states.

Factors, norms and the states between layers are float32; the large products are of the dtype that is asked for.
Examples lie one behind the other, (tokens, hidden), and no token sees another example's. It does not know how layers
follow each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from base_model.architecture import Architecture
from base_model.layout import PEFT_PREFIX
from edge_node.training.blocks import BlockWeight, BlockWeights
from schemas.adapter import A_SUFFIX, B_SUFFIX, LoraConfig

MODULES = (*(f"self_attn.{part}_proj" for part in "qkvo"), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
SHORT = 512  # tokens up to which all pairs of an example are held: the fused kernel goes back more slowly


@dataclass(frozen=True)
class LayerBlocks:
    """A layer's weights and biases by module, as they lie in the file, and its norms."""

    weights: Mapping[str, BlockWeight]
    biases: Mapping[str, Tensor]
    attention_norm: Tensor  # (hidden,)
    mlp_norm: Tensor  # (hidden,)


@dataclass(frozen=True)
class Linear:
    """A module's dense weight (out, in) and bias, and its factors A (rank, in) and B (out, rank), if it has some."""

    weight: Tensor
    bias: Tensor | None
    factors: tuple[Tensor, Tensor] | None
    scaling: float

    def __call__(self, values: Tensor) -> Tensor:
        frozen = F.linear(values, self.weight, self.bias)
        if self.factors is None:
            return frozen
        a, b = self.factors
        return (frozen + (values.float() @ a.T) @ b.T * self.scaling).to(values.dtype)


@dataclass(frozen=True)
class Rotation:
    """The rotary positions of examples, one behind the other: cosines and sines, (tokens, 1, head size)."""

    lengths: Sequence[int]
    cos: Tensor
    sin: Tensor

    def __call__(self, heads: Tensor) -> Tensor:
        half = heads.shape[-1] // 2
        turned = torch.cat([-heads[..., half:], heads[..., :half]], dim=-1)
        return heads * self.cos + turned * self.sin


def layer_blocks(weights: BlockWeights, layer: int) -> LayerBlocks:
    """Find a layer's tensors. Raises BaseModelError for one that is missing or of a type that is not read."""
    prefix = f"model.layers.{layer}."
    with_bias = [module for module in MODULES if f"{prefix}{module}.bias" in weights]
    return LayerBlocks(
        weights={module: weights.weight(f"{prefix}{module}.weight") for module in MODULES},
        biases={module: weights.vector(f"{prefix}{module}.bias") for module in with_bias},
        attention_norm=weights.vector(f"{prefix}input_layernorm.weight"),
        mlp_norm=weights.vector(f"{prefix}post_attention_layernorm.weight"),
    )


def dense_layer(
    blocks: LayerBlocks, layer: int, factors: Mapping[str, Parameter], lora: LoraConfig | None, dtype: torch.dtype
) -> dict[str, Linear]:
    """The numbers of a layer's modules, some 14 MB at 3.5 million weights in float32, with the factors on them."""

    def linear(module: str) -> Linear:
        name, bias = f"{PEFT_PREFIX}model.layers.{layer}.{module}", blocks.biases.get(module)
        pair = (factors[name + A_SUFFIX], factors[name + B_SUFFIX]) if name + A_SUFFIX in factors else None
        scaling = lora.alpha / lora.rank if lora is not None else 0.0
        return Linear(blocks.weights[module].dense(dtype), None if bias is None else bias.to(dtype), pair, scaling)

    return {module: linear(module) for module in MODULES}


def rotation(lengths: Sequence[int], architecture: Architecture, dtype: torch.dtype) -> Rotation:
    """Positions that begin again with each example."""
    size = architecture.head_dim
    frequencies = architecture.rope_theta ** -(torch.arange(0, size, 2, dtype=torch.float32) / size)
    angles = torch.cat([torch.arange(length) for length in lengths])[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return Rotation(lengths, angles.cos().to(dtype), angles.sin().to(dtype))


def passed(
    states: Tensor,
    blocks: LayerBlocks,
    linear: Mapping[str, Linear],
    rotate: Rotation,
    architecture: Architecture,
    dtype: torch.dtype,
) -> Tensor:
    """What leaves the layer, (tokens, hidden), for what enters it."""

    def heads(part: str) -> Tensor:
        return linear[f"self_attn.{part}_proj"](entered).view(len(entered), -1, architecture.head_dim)

    entered = normed(states, blocks.attention_norm, architecture).to(dtype)
    queries, keys, values = rotate(heads("q")), rotate(heads("k")), heads("v")
    ends = accumulate(rotate.lengths, initial=0)
    seen = [attended(queries[a:b], keys[a:b], values[a:b]) for a, b in pairwise(ends)]
    states = states + linear["self_attn.o_proj"](torch.cat(seen))
    entered = normed(states, blocks.mlp_norm, architecture).to(dtype)
    return states + linear["mlp.down_proj"](F.silu(linear["mlp.gate_proj"](entered)) * linear["mlp.up_proj"](entered))


def normed(states: Tensor, scale: Tensor, architecture: Architecture) -> Tensor:
    """States (tokens, hidden) by their root mean square, times `scale`."""
    return F.rms_norm(states, (states.shape[-1],), scale, architecture.epsilon)


def attended(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention within one example: queries (tokens, heads, size), keys and values of as many heads or fewer."""
    tokens, count, size = queries.shape
    groups = keys.shape[1]
    q, k, v = (part.transpose(0, 1) for part in (queries, keys, values))
    if tokens > SHORT:
        fused = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True)
        return fused[0].transpose(0, 1).flatten(1)
    # heads that share a key count as more queries of it, so that no key is copied
    scores = (q * size**-0.5).reshape(groups, -1, size) @ k.transpose(1, 2)
    later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    weights = scores.view(count, tokens, tokens).masked_fill(later, float("-inf")).softmax(dim=-1)
    mixed = weights.view(groups, -1, tokens) @ v
    joined: Tensor = mixed.view(count, tokens, size).transpose(0, 1).flatten(1)
    return joined
