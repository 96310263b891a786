"""What must hold for any sequence of events. The stories of single decisions are in tests/golden."""

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import get_args

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from coordinator.aggregation import REMEMBERED_VERSIONS
from coordinator.core import found, next_deadline, step
from coordinator.state import (
    Configured,
    Drop,
    Effect,
    Event,
    FederationConfig,
    FederationState,
    Limits,
    PublishRelease,
    PublishVersion,
    Received,
    SendReceipt,
    Started,
    Ticked,
)
from coordinator.strategies import CalibrationOnly, FedAsync, FedAvg, FedBuff, Strategy
from schemas.adapter import Adapter, Layout

MakeConfig = Callable[..., FederationConfig]
MakeMessage = Callable[..., Received]
MakeAdapter = Callable[..., Adapter]

SECOND = 1_000_000_000


def play(config: FederationConfig, first: Adapter, events: list[Event]) -> tuple[FederationState, list[Effect]]:
    state, effects = found(config, first, 0)
    told = list(effects)
    for event in events:
        state, effects = step(state, event)
        told += effects
    return state, told


def versions(effects: list[Effect]) -> list[int]:
    return [effect.manifest.version for effect in effects if isinstance(effect, PublishVersion)]


def statuses(effects: list[Effect]) -> list[str]:
    return [effect.receipt.status for effect in effects if isinstance(effect, SendReceipt)]


def test_whatever_order_a_buffer_fills_in_the_version_is_the_same_bit_for_bit(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    messages = [message("a", 0.1), message("b", 0.2), message("c", 0.7)]
    digests = {
        play(config(FedBuff(buffer_size=3)), adapter(0), list(order))[0].head.digest for order in permutations(messages)
    }
    assert len(digests) == 1


def test_participation_is_counted_and_not_believed(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = play(config(FedBuff(buffer_size=9)), adapter(0), [message("a", 1, participation=999_999)])
    assert state.nodes["a"].participation == 1


def test_updates_that_add_up_to_infinity_make_no_version(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    huge = [message("a", 3e38), message("b", 3e38)]
    state, effects = play(
        config(FedBuff(buffer_size=2, step=2), limits=Limits(delta_norm=1e39, delta_reach=1e90)), adapter(0), huge
    )
    assert versions(effects) == [0]
    assert statuses(effects) == ["accepted", "accepted", "rejected", "rejected"]
    assert not state.buffer.groups


KINDS = [kind for kind in get_args(get_args(Strategy)[0]) if kind is not CalibrationOnly]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_largest_deltas_there_are_make_a_version_that_can_be_sent_or_none(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage, kind: type[Strategy]
) -> None:
    state, effects = found(config(kind(), limits=Limits(delta_norm=1e39, delta_reach=1e90)), adapter(0), 0)
    told = list(effects)
    for number in range(8):
        state, effects = step(state, message("abcd"[number % 4], 3e38, sequence=number))
        told += effects
    state, effects = step(state, Ticked(10**15))
    told += effects
    assert all(effect.adapter.is_finite for effect in told if isinstance(effect, PublishVersion))
    assert not state.buffer.groups
    assert {"aggregated", "rejected"} & set(statuses(told))


def test_what_waits_when_the_strategy_changes_waits_under_the_new_one(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    later = config(FedAsync(mixing=0.5))
    state, effects = play(config(FedBuff(buffer_size=2)), adapter(0), [message("a", 4), Configured(1, later)])
    assert state.head.adapter == adapter(0.5 * 0 + 0.5 * 4)
    assert versions(effects) == [0, 1]
    assert statuses(effects) == ["accepted", "aggregated"]
    # from now on only the head is known well enough to mix with
    state, [receipt, *_] = step(state, message("b", 4, base_version=1, base_digest=state.head.digest))
    assert state.head.adapter == adapter(0.5 * 2 + 0.5 * 6)
    assert isinstance(receipt, SendReceipt) and receipt.receipt.status == "accepted"


def test_what_waits_for_a_base_that_the_new_strategy_cannot_look_back_to_is_refused_as_stale(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    terms = config(FedBuff(buffer_size=2))
    late = message("c", 8)  # from version 0, when the head is at 1
    state, _ = play(terms, adapter(0), [message("a", 4), message("b", 4), late])
    state, effects = step(state, Configured(1, config(FedAsync())))
    [told] = [effect.receipt for effect in effects if isinstance(effect, SendReceipt)]
    assert (told.status, told.reason) == ("stale", "it became too old while it waited: train from version 1")
    assert (state.head.version, state.buffer.groups) == (1, ())
    assert statuses(list(step(state, late)[1])) == ["stale"]  # not a duplicate: nothing came of it


def test_what_waits_and_is_too_old_for_the_new_strategy_is_refused_as_stale(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    late = message("c", 8)  # from version 0, when the head is at 1
    state, _ = play(config(FedBuff(buffer_size=2)), adapter(0), [message("a", 4), message("b", 4), late])
    state, effects = step(state, Configured(1, config(FedAvg(nodes_per_round=1))))  # it takes nothing stale
    assert statuses(list(effects)) == ["stale"]
    assert (state.head.version, state.buffer.groups) == (1, ())


def test_other_limits_change_nothing_of_what_waits(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    terms = config(FedBuff(buffer_size=2))
    state, _ = play(terms, adapter(0), [message("a", 4)])
    after, effects = step(state, Configured(1, terms.model_copy(update={"limits": Limits(nodes=2)})))
    assert effects == ()
    assert after.buffer == state.buffer


def test_a_federation_cannot_change_its_base_model(config: MakeConfig, adapter: MakeAdapter) -> None:
    with pytest.raises(ValueError, match="start a new one"):
        play(config(), adapter(0), [Configured(1, config(base_model="f" * 64))])


def test_nothing_is_due_while_nothing_waits(config: MakeConfig, adapter: MakeAdapter, message: MakeMessage) -> None:
    terms = config(FedBuff(buffer_size=2, timeout_s=60))
    state, _ = play(terms, adapter(0), [])
    assert next_deadline(state) is None
    state, _ = step(state, message("a", 1, at_ns=5 * SECOND))
    assert next_deadline(state) == 65 * SECOND


@pytest.mark.parametrize("notices", [Ticked, Started])
def test_what_came_while_the_clock_was_ahead_waits_no_longer_than_the_rest(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage, notices: type[Ticked | Started]
) -> None:
    year = 365 * 24 * 3600 * SECOND
    state, _ = play(config(FedBuff(buffer_size=2, timeout_s=60)), adapter(0), [message("a", 1, at_ns=year)])
    state, effects = step(state, notices(5 * SECOND))
    assert versions([*effects]) == []
    assert next_deadline(state) == 65 * SECOND
    assert state.nodes["a"].decoded_in(5 * SECOND) == 1
    assert state.nodes["a"].decoded_in(2 * 3600 * SECOND) == 0
    _, effects = step(state, Ticked(65 * SECOND))
    assert versions([*effects]) == [1]


def test_ids_are_forgotten_long_after_their_updates_would_be_stale(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = found(config(FedBuff(buffer_size=1, max_staleness=2)), adapter(0), 0)
    sent = []
    for sequence in range(REMEMBERED_VERSIONS + 10):
        sent.append(message("a", 1, state.head.version, state.head.digest, sequence))
        state, _ = step(state, sent[-1])
    assert set(state.digests) == {state.head.version - 2, state.head.version - 1, state.head.version}
    assert len(state.nodes["a"].accepted) == REMEMBERED_VERSIONS + 2
    assert statuses(list(step(state, sent[-50])[1])) == ["duplicate"]
    assert statuses(list(step(state, sent[0])[1])) == ["stale"]


def test_a_delta_that_is_absurdly_large_is_refused_before_it_moves_anything(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, effects = play(config(FedBuff(buffer_size=1)), adapter(0), [message("a", 1e30)])
    assert statuses(effects) == ["rejected"]
    assert state.head.version == 0


def test_an_update_under_another_node_s_name_does_not_count_again(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    original = message("a", 1)
    copy = replace(original, topic=original.topic.replace("/a/", "/thief/"))
    _, effects = play(config(FedBuff(buffer_size=2)), adapter(0), [original, copy])
    assert statuses(effects) == ["accepted", "rejected"]
    assert versions(effects) == [0]


def test_in_a_synchronous_round_a_node_counts_once(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    eager = [message("a", 1, sequence=sequence) for sequence in range(3)]
    state, effects = play(config(FedAvg(nodes_per_round=2)), adapter(0), [*eager, message("b", 3)])
    assert statuses(effects) == ["accepted", "stale", "stale", "accepted", "aggregated", "aggregated"]
    assert state.head.adapter == adapter(2)


def test_moving_the_last_version_forward_answers_those_who_wait(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    terms = config(FedBuff(buffer_size=1))
    state, _ = play(terms, adapter(0), [message("a", 1)])
    waiting = state.config.model_copy(update={"strategy": FedBuff(buffer_size=2)})
    state, _ = step(state, Configured(1, waiting))
    state, _ = step(state, message("b", 1, 1, state.head.digest))
    last = waiting.model_copy(update={"final_version": 1, "strategy": FedBuff(buffer_size=3)})
    state, effects = step(state, Configured(2, last))
    assert statuses(list(effects)) == ["stale"]
    assert state.head.version == 1


def test_a_name_that_never_sent_anything_sound_takes_no_room(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    terms = config(FedBuff(buffer_size=1), limits=Limits(nodes=1))
    strays = [Received(0, message(f"stray-{i}", 1).topic, b"garbage") for i in range(5)]
    state, effects = play(terms, adapter(0), [*strays, message("a", 1)])
    assert statuses(effects)[-2:] == ["accepted", "aggregated"]
    assert list(state.nodes) == ["a"]


# --- nodes of another rank ---


def of_rank_2(layout: Layout, a: tuple[float, float], b: tuple[float, float]) -> Adapter:
    """A delta of twice the federation's rank, with the same alpha / rank."""
    return Adapter(layout.with_rank(2), np.array([*a, *b], dtype=np.float32))


def test_a_delta_of_another_rank_that_is_taken_becomes_one_of_the_federation_s_own(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage, layout: Layout
) -> None:
    first = adapter(2, 0)
    terms = config(FedBuff(buffer_size=1), node_ranks=(2,))
    # its node started from A = (2, a new row) and B = (0, 0): only the first column of B changes, by 3
    state, effects = play(terms, first, [message("a", of_rank_2(layout, (0, 0), (3, 0)), 0, first.digest)])
    assert statuses(effects) == ["accepted", "aggregated"]
    a, b = state.head.adapter.values
    assert a * b == pytest.approx(2 * 3, rel=0.02)


def test_a_delta_of_a_lower_rank_moves_the_head_by_exactly_what_its_node_changed(
    config: MakeConfig, message: MakeMessage, layout: Layout
) -> None:
    of_two = layout.with_rank(2)
    first = Adapter(of_two, np.array([1, 2, 2, 1], dtype=np.float32))  # A = (1, 2), B = (2, 1): a product of 4
    terms = config(FedBuff(buffer_size=1), layout=of_two, node_ranks=(1,))
    # its node started from A = (2,), B = (2,), and both became 3: from 4 to 9
    delta = Adapter(of_two.with_rank(1), np.array([1, 1], dtype=np.float32))
    state, effects = play(terms, first, [message("a", delta, 0, first.digest)])
    assert statuses(effects) == ["accepted", "aggregated"]
    a, b = np.split(state.head.adapter.values, 2)
    assert a @ b == pytest.approx(9, rel=1e-5)


def test_a_delta_of_a_rank_that_nobody_takes_is_refused_with_those_that_are_taken(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage, layout: Layout
) -> None:
    delta = of_rank_2(layout, (0, 0), (3, 0))
    _, effects = play(config(FedBuff(buffer_size=1), node_ranks=(4,)), adapter(0), [message("a", delta)])
    [told] = [effect.receipt for effect in effects if isinstance(effect, SendReceipt)]
    assert told.status == "rejected"
    assert "takes rank 1, 4 of" in str(told.reason)


def test_a_codec_that_the_operator_does_not_want_is_refused_with_those_that_are_taken(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    terms = config(FedBuff(buffer_size=1), codecs=("kltp", "int8"))
    first, in_fp32 = adapter(0), message("a", 1.0)
    state, effects = play(terms, first, [in_fp32])
    [told] = [effect.receipt for effect in effects if isinstance(effect, SendReceipt)]
    assert (told.status, told.reason) == ("rejected", "codec fp32 is not taken here: set edge.codec to kltp or int8")
    state, _ = step(state, Configured(1, config(FedBuff(buffer_size=1))))
    assert statuses(list(step(state, message("b", 1.0))[1])) == ["accepted", "aggregated"]


def test_ranks_that_are_taken_from_now_on_are_taken_from_the_newest_version_on(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage, layout: Layout
) -> None:
    before, after = config(FedBuff(buffer_size=1)), config(FedBuff(buffer_size=1), node_ranks=(2,))
    first, delta = adapter(2, 0), of_rank_2(layout, (0, 0), (3, 0))
    state, _ = play(before, first, [message("b", adapter(0), 0, first.digest), Configured(1, after)])
    assert state.head.version == 1
    _, effects = step(state, message("a", delta, 1, state.head.digest))
    assert statuses(list(effects)) == ["accepted", "aggregated"]
    _, effects = step(state, message("c", delta, 0, first.digest))
    assert statuses(list(effects)) == ["stale"]  # what version 0 was is not known any more


TOPIC = "alignfed/v1/test/update/{}/{}/{}"
IDS = st.sampled_from(["0" * 32, "1" * 32, "2" * 32])
PARTS = st.one_of(st.just("manifest"), st.integers(0, 99_999).map("chunk/{}".format))
TOPICS = st.one_of(
    st.text(max_size=80),
    st.builds(TOPIC.format, st.sampled_from(["a", "b", "c", "d"]), IDS, PARTS),
)
EVENTS = st.one_of(
    st.builds(Received, st.integers(0, 10**19), TOPICS, st.binary(max_size=300)),
    st.builds(Ticked, st.integers(0, 10**19)),
    st.builds(Started, st.integers(0, 10**19)),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(EVENTS, max_size=30))
def test_no_bytes_on_any_topic_make_it_raise_or_grow_beyond_its_limits(
    config: MakeConfig, adapter: MakeAdapter, events: list[Event]
) -> None:
    terms = config()
    terms = terms.model_copy(update={"limits": terms.limits.model_copy(update={"nodes": 2, "partial_bytes": 1000})})
    state, effects = play(terms, adapter(0), events)
    assert state.head.version == 0
    assert len(state.nodes) <= 2
    assert state.partial_bytes == sum(ledger.partial_bytes for ledger in state.nodes.values()) <= 1000
    assert all(isinstance(effect, Drop | SendReceipt | PublishVersion | PublishRelease) for effect in effects)
