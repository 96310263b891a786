from collections.abc import Callable
from itertools import permutations

import pytest

from coordinator.strategies import FedAsync, FedAvg, FedBuff
from coordinator.updates import AdapterUpdate, Buffer, GlobalAdapter
from schemas.adapter import Adapter, weighted_sum

MakeUpdate = Callable[..., AdapterUpdate]
MakeAdapter = Callable[[float], Adapter]


def buffer_of(*updates: AdapterUpdate) -> Buffer:
    buffer = Buffer()
    for update in updates:
        buffer = buffer.with_update(update)
    return buffer


def test_fedbuff_takes_a_step_along_the_mean_of_fresh_deltas(update: MakeUpdate, adapter: MakeAdapter) -> None:
    head = GlobalAdapter(0, adapter(10))
    aggregate = FedBuff(step=2).aggregate(head, buffer_of(update("a", 1), update("b", 3)), {})
    assert aggregate.adapter == adapter(10 + 2 * (1 + 3) / 2)
    assert aggregate.weights == (1, 1)


def test_fedbuff_discounts_a_stale_delta_without_enlarging_the_others(update: MakeUpdate, adapter: MakeAdapter) -> None:
    head = GlobalAdapter(3, adapter(0))
    stale, fresh = update("slow", 8, base_version=0), update("fast", 2, base_version=3)
    aggregate = FedBuff(staleness_exponent=0.5).aggregate(head, buffer_of(fresh, stale), {})
    assert aggregate.weights == (0.25, 0.5)  # (1 + 3)^-0.5 / 2 and 1 / 2: absolute, they do not sum to one
    assert aggregate.adapter == adapter(8 * 0.25 + 2 * 0.5)


def test_a_buffer_of_equally_stale_updates_is_discounted_as_a_whole(update: MakeUpdate, adapter: MakeAdapter) -> None:
    head = GlobalAdapter(3, adapter(0))
    aggregate = FedBuff().aggregate(head, buffer_of(update("a", 4), update("b", 4)), {})
    assert aggregate.adapter == adapter(2)


def test_fedavg_weighs_by_examples_and_its_weights_sum_to_one(update: MakeUpdate, adapter: MakeAdapter) -> None:
    updates = buffer_of(update("a", 1, examples=1), update("b", 5, examples=3))
    aggregate = FedAvg().aggregate(GlobalAdapter(0, adapter(0)), updates, {})
    assert aggregate.weights == (0.25, 0.75)
    assert aggregate.adapter == adapter(4)


def test_fedavg_waits_for_distinct_nodes_not_for_many_updates(update: MakeUpdate) -> None:
    strategy = FedAvg(nodes_per_round=2)
    eager = buffer_of(update("a", 1), update("a", 1, sequence=1))
    assert not strategy.is_ready(eager)
    assert strategy.is_ready(eager.with_update(update("b", 1)))


def test_fedasync_mixes_in_the_node_s_whole_adapter(update: MakeUpdate, adapter: MakeAdapter) -> None:
    head, bases = GlobalAdapter(1, adapter(4)), {0: adapter(2), 1: adapter(4)}
    stale = buffer_of(update("a", 6, base_version=0))
    aggregate = FedAsync(mixing=0.5, staleness_exponent=1).aggregate(head, stale, bases)
    assert aggregate.weights == (0.25,)
    assert aggregate.adapter == adapter(0.75 * 4 + 0.25 * (2 + 6))


@pytest.mark.parametrize("strategy", [FedBuff(), FedAvg(), FedAsync()], ids=lambda strategy: strategy.name)
def test_the_order_of_arrival_changes_no_bit(
    strategy: FedBuff | FedAvg | FedAsync, update: MakeUpdate, adapter: MakeAdapter
) -> None:
    updates = [update("a", 0.1), update("a", 0.7, sequence=1), update("b", 1 / 3, base_version=1), update("c", 1e-7)]
    head, bases = GlobalAdapter(1, adapter(0.3)), {0: adapter(0.2), 1: adapter(0.3)}
    digests = {strategy.aggregate(head, buffer_of(*order), bases).adapter.digest for order in permutations(updates)}
    assert len(digests) == 1


def test_a_buffer_groups_its_updates_by_base_version_oldest_first(update: MakeUpdate) -> None:
    buffer = buffer_of(update("b", 1, base_version=4), update("a", 1, base_version=2), update("a", 1, base_version=4))
    grouped = [(group.base_version, [u.node for u in group.updates]) for group in buffer.groups]
    assert grouped == [(2, ["a"]), (4, ["a", "b"])]


def test_a_weighted_sum_needs_a_weight_for_every_delta(adapter: MakeAdapter) -> None:
    with pytest.raises(ValueError, match="zip"):
        weighted_sum([adapter(1), adapter(2)], [1.0])
