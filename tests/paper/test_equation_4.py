"""Equation (4): the buffer is aggregated at K updates, or at a timeout."""

import pytest

from coordinator.equations import buffer_is_ready


@pytest.mark.parametrize(
    ("pending", "waited_s", "ready"), [(3, 0, False), (4, 0, True), (5, 0, True), (1, 59, False), (1, 60, True)]
)
def test_the_buffer_is_ready_at_k_updates_or_when_one_has_waited_long_enough(
    pending: int, waited_s: float, ready: bool
) -> None:
    assert buffer_is_ready(pending, k=4, waited_s=waited_s, timeout_s=60) is ready


def test_an_empty_buffer_is_never_ready() -> None:
    assert not buffer_is_ready(0, k=1, waited_s=1e9, timeout_s=60)


def test_without_a_timeout_a_small_buffer_waits_for_ever() -> None:
    assert not buffer_is_ready(3, k=4, waited_s=1e9, timeout_s=None)
