"""Adapters small enough for a sum in the head: one module, rank 1, A of two numbers and B of one."""

from collections.abc import Callable

import numpy as np
import pytest

from schemas.adapter import Adapter, Layout, LoraConfig

LAYOUT = Layout(lora=LoraConfig(rank=1, alpha=1), tensors=(("x.lora_A.weight", (1, 2)), ("x.lora_B.weight", (1, 1))))


@pytest.fixture(scope="session")
def adapter() -> Callable[..., Adapter]:
    """Make an adapter of three numbers: A, A, B."""
    return lambda *values: Adapter(LAYOUT, np.array(values, dtype=np.float32))


@pytest.fixture(scope="session")
def rank_2() -> Callable[..., Adapter]:
    """Make an adapter of rank 2 from A, two rows of one number, and B, one row of two."""
    tensors = (("x.lora_A.weight", (2, 1)), ("x.lora_B.weight", (1, 2)))
    layout = Layout(lora=LoraConfig(rank=2, alpha=2), tensors=tensors)
    return lambda a, b: Adapter.from_tensors(
        layout, {name: np.array(value, dtype=np.float32) for (name, _), value in zip(tensors, (a, b), strict=True)}
    )
