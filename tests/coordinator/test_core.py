"""What must hold for any sequence of events. The stories of single decisions are in tests/golden."""

from collections.abc import Callable
from itertools import permutations

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from coordinator.core import found, next_deadline, step
from coordinator.state import (
    Configured,
    Drop,
    Effect,
    Event,
    FederationConfig,
    FederationState,
    PublishVersion,
    Received,
    SendReceipt,
    Started,
    Ticked,
)
from coordinator.strategies import FedAsync, FedBuff
from schemas.adapter import Adapter

MakeConfig = Callable[..., FederationConfig]
MakeMessage = Callable[..., Received]
MakeAdapter = Callable[[float], Adapter]

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
    state, effects = play(config(FedBuff(buffer_size=2, step=2)), adapter(0), huge)
    assert versions(effects) == [0]
    assert statuses(effects) == ["accepted", "accepted", "rejected", "rejected"]
    assert not state.buffer.groups


def test_what_waits_is_aggregated_under_the_strategy_it_was_sent_under(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    later = config(FedAsync(mixing=0.5))
    state, effects = play(config(FedBuff(buffer_size=2)), adapter(0), [message("a", 4), Configured(1, later)])
    assert state.head.adapter == adapter(4)
    assert versions(effects) == [0, 1]
    # from now on only the head is known well enough to mix with
    state, [receipt, *_] = step(state, message("b", 4, base_version=1, base_digest=state.head.digest))
    assert state.head.adapter == adapter(0.5 * 4 + 0.5 * 8)
    assert isinstance(receipt, SendReceipt) and receipt.receipt.status == "accepted"


def test_a_federation_cannot_change_its_base_model(config: MakeConfig, adapter: MakeAdapter) -> None:
    with pytest.raises(ValueError, match="start a new one"):
        play(config(), adapter(0), [Configured(1, config(base_model="f" * 64))])


def test_nothing_is_due_while_nothing_waits(config: MakeConfig, adapter: MakeAdapter, message: MakeMessage) -> None:
    terms = config(FedBuff(buffer_size=2, timeout_s=60))
    state, _ = play(terms, adapter(0), [])
    assert next_deadline(state) is None
    state, _ = step(state, message("a", 1, at_ns=5 * SECOND))
    assert next_deadline(state) == 65 * SECOND


def test_ids_are_forgotten_once_their_updates_would_be_stale_anyway(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = found(config(FedBuff(buffer_size=1, max_staleness=2)), adapter(0), 0)
    for sequence in range(10):
        base = message("a", 1, state.head.version, state.head.digest, sequence)
        state, _ = step(state, base)
    assert state.head.version == 10
    assert len(state.nodes["a"].accepted) <= 3
    assert set(state.digests) == {8, 9, 10}


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
    assert all(isinstance(effect, Drop | SendReceipt | PublishVersion) for effect in effects)
