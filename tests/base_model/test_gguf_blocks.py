"""Blocks of a GGUF file: the numbers that the gguf package makes of them, and names for what is not read."""

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from base_model.architecture import Architecture
from base_model.gguf_blocks import GgufWeights, q41_blocks, q80_blocks
from base_model.gguf_file import open_gguf
from base_model.wheel import BaseModelError

ROWS = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
TINY = Architecture(
    layers=1,
    hidden=4,
    heads=2,
    kv_heads=1,
    head_dim=4,
    vocabulary=4,
    context=4,
    epsilon=1e-5,
    rope_theta=1e4,
    tied=True,
)


def test_blocks_of_four_bits_stand_for_the_numbers_that_the_gguf_package_makes_of_them() -> None:
    rows = quants.quantize(ROWS, GGMLQuantizationType.Q4_1)
    scale, minimum, packed = q41_blocks(rows)
    q = np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.float32)
    values = scale.astype(np.float32) * q + minimum.astype(np.float32)
    np.testing.assert_array_equal(values.reshape(4, 64), quants.dequantize(rows, GGMLQuantizationType.Q4_1))
    assert all(np.shares_memory(part, rows) for part in (scale, minimum, packed))


def test_blocks_of_eight_bits_stand_for_the_numbers_that_the_gguf_package_makes_of_them() -> None:
    rows = quants.quantize(ROWS, GGMLQuantizationType.Q8_0)
    scale, q = q80_blocks(rows)
    values = scale.astype(np.float32) * q
    np.testing.assert_array_equal(values.reshape(4, 64), quants.dequantize(rows, GGMLQuantizationType.Q8_0))
    assert all(np.shares_memory(part, rows) for part in (scale, q))


def written(path: Path, architecture: bytes, kind: int, size: int) -> Path:
    """A file whose only tensor is the first layer's matrix of queries, 8 rows of 32 weights of this kind."""

    def text(word: bytes) -> bytes:
        return struct.pack("<Q", len(word)) + word

    key = text(b"general.architecture") + struct.pack("<I", 8) + text(architecture)
    tensor = text(b"blk.0.attn_q.weight") + struct.pack("<IQQIQ", 2, 32, 8, kind, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + key + tensor
    path.write_bytes(head.ljust(-(-len(head) // 32) * 32, b"\0") + bytes(8 * size))
    return path


QUERIES = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(("kind", "named"), [(12, "Q4_K"), (99, "number 99")])
def test_a_type_that_is_not_read_is_named_with_what_to_do(tmp_path: Path, kind: int, named: str) -> None:
    weights = GgufWeights(open_gguf(written(tmp_path / "other.gguf", b"llama", kind, 18)), TINY)
    with pytest.raises(BaseModelError, match=rf"blk\.0\.attn_q\.weight is of type {named}, .* precision fp32"):
        weights.find(QUERIES)
    assert weights.find("model.norm.weight") is None


def test_the_halves_of_a_llamas_heads_are_wanted_one_after_the_other(tmp_path: Path) -> None:
    llama, qwen = (
        GgufWeights(open_gguf(written(tmp_path / name, name.encode(), 3, 20)), TINY) for name in ("llama", "qwen2")
    )
    tensor = llama.find(QUERIES)
    assert tensor is not None
    assert (tensor.kind, tensor.shape) == ("Q4_1", (8, 32))
    order = llama.order(QUERIES, 8)
    assert order is not None
    assert order.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert qwen.order(QUERIES, 8) is None
    assert llama.order("model.layers.0.mlp.up_proj.weight", 8) is None
