"""Equation (6): linear maps of the factors that bring a stale group's features to the current model's."""

from collections.abc import Callable

import numpy as np
import pytest

from coordinator.equations import apply_maps, consensus, feature_gap
from schemas.adapter import Adapter

MakeAdapter = Callable[..., Adapter]

A, B = "x.lora_A.weight", "x.lora_B.weight"


def test_a_maps_the_rows_of_a_and_the_columns_of_b(rank_2: MakeAdapter) -> None:
    delta = rank_2([[1], [2]], [[3, 4]])
    swap, double_first = [[0, 1], [1, 0]], [[2, 0], [0, 1]]
    assert apply_maps(delta, {A: swap, B: double_first}) == rank_2([[2], [1]], [[6, 4]])


def test_maps_start_as_the_identity_which_changes_nothing(rank_2: MakeAdapter) -> None:
    delta = rank_2([[0.1], [1 / 3]], [[1e-7, 4]])
    assert apply_maps(delta, {A: np.eye(2), B: np.eye(2)}) == delta


def test_maps_that_are_inverse_to_each_other_leave_the_product(rank_2: MakeAdapter) -> None:
    mapped = apply_maps(rank_2([[1], [2]], [[3, 4]]), {A: [[2, 1], [1, 1]], B: [[1, -1], [-1, 2]]}).tensors()
    assert (mapped[B] @ mapped[A]).item() == 3 * 1 + 4 * 2


def test_to_map_a_group_is_to_map_its_consensus(rank_2: MakeAdapter) -> None:
    maps = {A: [[1, 2], [3, 4]], B: [[0, 1], [2, -1]]}
    group = [rank_2([[1], [2]], [[3, 4]]), rank_2([[3], [-4]], [[5, 0]])]
    assert apply_maps(consensus(group), maps) == consensus([apply_maps(delta, maps) for delta in group])


def test_every_factor_needs_its_map(rank_2: MakeAdapter) -> None:
    with pytest.raises(KeyError, match="lora_B"):
        apply_maps(rank_2([[1], [2]], [[3, 4]]), {A: np.eye(2)})


def test_the_gap_is_the_squared_distance_of_the_mean_features() -> None:
    moved, current = [[1, 0], [3, 2]], [[0, 0], [0, 0]]
    assert feature_gap(moved, current) == 2**2 + 1**2


def test_the_gap_sees_means_alone_so_two_examples_may_have_changed_places() -> None:
    assert feature_gap([[1, 0], [3, 2]], [[3, 2], [1, 0]]) == 0
