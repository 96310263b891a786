"""Factors are run with where they are mapped, and nothing of them is in the process's own memory."""

import mmap
import re
from pathlib import Path

import numpy as np
import pytest

from edge_node.serving import mapped_factors
from edge_node.serving.mapped_factors import Factor, map_factors

ROLLUP = Path("/proc/self/smaps_rollup")
PROMPT = [5, 17, 300, 42]


def factors_of(*shapes):
    """Random factors, transposed as an adapter's are; every second one scaled."""
    generator = np.random.default_rng(0)
    return {
        f"layer.{number}.lora_{'AB'[number % 2]}": Factor(
            generator.normal(size=shape).astype(np.float32).T, 1.0 + number % 2
        )
        for number, shape in enumerate(shapes)
    }


def anonymous_bytes():
    return 1024 * int(re.search(r"^Anonymous:\s+(\d+)", ROLLUP.read_text(), re.MULTILINE)[1])


@pytest.mark.parametrize(
    "shapes", [[(4, 64)], [(1, 1), (1, 1)], [(4, 63), (17, 4), (1, 5), (3, 1)], [(16, 576), (1536, 16)] * 20]
)
def test_every_factor_is_there_scaled_and_as_the_graph_takes_it(shapes):
    factors = factors_of(*shapes)
    mapped = map_factors(factors)
    assert mapped.values.keys() == factors.keys()
    assert isinstance(mapped.memory, mmap.mmap)
    for name, (values, scale) in factors.items():
        np.testing.assert_array_equal(mapped.values[name].numpy(), values * np.float32(scale))
        assert mapped.values[name].data_type() == "tensor(float)"


def test_the_values_lie_in_the_mapping():
    factors = factors_of((16, 576), (1536, 16), (3, 1))
    mapped = map_factors(factors)
    start = np.frombuffer(mapped.memory, np.uint8).ctypes.data
    places = [mapped.values[name].data_ptr() - start for name in factors]
    assert places == [0, 4 * 16 * 576, 4 * (16 * 576 + 1536 * 16)]
    assert len(mapped.memory) == 4 * sum(factor.values.size for factor in factors.values())


@pytest.mark.skipif(not ROLLUP.exists(), reason="only Linux tells what kind of memory it is")
def test_no_copy_of_them_is_in_the_processs_own_memory():
    factors = {f"layer.{number}.lora_A": Factor(np.ones((1024, 256), np.float32)) for number in range(64)}  # of 1 MiB
    before = anonymous_bytes()
    mapped = map_factors(factors)
    assert all(one.numpy().sum() == 1024 * 256 for one in mapped.values.values())
    assert len(mapped.memory) == 64 << 20
    assert anonymous_bytes() - before < 16 << 20


def test_what_there_is_no_room_for_is_an_error_and_no_adapter(monkeypatch):
    monkeypatch.setattr(mapped_factors, "SHARED_MEMORY", Path("/proc/self/fd"))  # nothing can be made there
    with pytest.raises(OSError):
        map_factors(factors_of((4, 64)))


def test_another_mapping_leaves_this_one_as_it_was(session):
    names = sorted(name for name in session.factor_shapes if "layers.0.self_attn.q_proj" in name)
    shapes = [(64, 4), (4, 64)]

    def filled(value):
        return map_factors({n: Factor(np.full(s, value, np.float32)) for n, s in zip(names, shapes, strict=True)})

    held = filled(0.1)
    before = session.begin(4, held.values).read(PROMPT, [3])
    other = filled(0.7)
    assert (session.begin(4, other.values).read(PROMPT, [3]) != before).any()
    np.testing.assert_array_equal(session.begin(4, held.values).read(PROMPT, [3]), before)
