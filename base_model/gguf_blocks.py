"""A GGUF file's weights by the names of safetensors files, and what their blocks are made of: views, and no copies.

It does not know what the weights are for: serving packs the blocks anew, training makes numbers of them.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from base_model.architecture import Architecture
from base_model.gguf_file import BlockTensor, GgufFile
from base_model.wheel import BaseModelError

BLOCK = 32  # weights that share a scale
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


class Q41Blocks(NamedTuple):
    """GGUF's Q4_1: w = scale * q + minimum; weight i of a block is in byte i's low half, weight 16 + i in its high."""

    scale: NDArray[np.float16]  # (rows, blocks, 1)
    minimum: NDArray[np.float16]  # (rows, blocks, 1)
    packed: NDArray[np.uint8]  # (rows, blocks, 16)


class Q80Blocks(NamedTuple):
    """GGUF's Q8_0: w = scale * q."""

    scale: NDArray[np.float16]  # (rows, blocks, 1)
    q: NDArray[np.int8]  # (rows, blocks, 32)


class GgufWeights:
    """The tensors of a GGUF file as a model of this architecture names them."""

    def __init__(self, file: GgufFile, architecture: Architecture) -> None:
        self._file = file
        # llama.cpp wants the two halves of each head's rotary dimensions interleaved for this architecture alone
        is_interleaved = file.architecture == "llama"
        self._heads = {"q_proj": architecture.heads, "k_proj": architecture.kv_heads} if is_interleaved else {}

    def find(self, name: str) -> BlockTensor | None:
        """A tensor as it lies in the file, or None. Raises BaseModelError for one of a type that is not read."""
        there = gguf_name(name)
        if (kind := self._file.unread.get(there)) is not None:
            raise BaseModelError(
                f"{there} is of type {kind}, and only F32, F16, Q4_1 and Q8_0 are used as they are; take a Q4_1 file "
                "of this model, or serve it with the precision fp32"
            )
        return self._file.tensors.get(there)

    def order(self, name: str, rows: int) -> NDArray[np.int64] | None:
        """In which order its rows are wanted, first the one and then the other half of each head; None for as it is."""
        heads = next((count for module, count in self._heads.items() if module in name), None)
        if heads is None:
            return None
        return np.ascontiguousarray(np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2)).reshape(-1)


def gguf_name(name: str) -> str:
    """The name that llama.cpp's files have for a tensor of the safetensors files."""
    renamed = name.replace("model.embed_tokens", "token_embd").replace("model.norm", "output_norm")
    renamed = renamed.replace("lm_head", "output").replace("model.layers.", "blk.")
    for ours, theirs in GGUF_NAMES.items():
        renamed = renamed.replace(ours, theirs)
    return renamed


def q41_blocks(rows: NDArray[np.uint8]) -> Q41Blocks:
    """Rows of blocks of 20 bytes: scale and minimum in float16, then 16 bytes."""
    blocks = rows.reshape(len(rows), -1, 20)
    return Q41Blocks(blocks[..., :2].view("<f2"), blocks[..., 2:4].view("<f2"), blocks[..., 4:])


def q80_blocks(rows: NDArray[np.uint8]) -> Q80Blocks:
    """Rows of blocks of 34 bytes: scale in float16, then 32 signed bytes."""
    blocks = rows.reshape(len(rows), -1, 34)
    return Q80Blocks(blocks[..., :2].view("<f2"), blocks[..., 2:].view(np.int8))
