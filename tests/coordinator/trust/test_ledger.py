"""What the coordinator counts of each node, and what it does about one: refusals by kind, quotas, alarm, quarantine."""

from collections.abc import Callable

import pytest

from coordinator.core import found, step
from coordinator.operations.orders import Forgive, Order, Quarantine
from coordinator.state import (
    Drop,
    Effect,
    FederationConfig,
    FederationState,
    Limits,
    Ordered,
    PublishVersion,
    RaiseAlarm,
    Received,
    SendReceipt,
)
from coordinator.strategies import AlignFed, FedBuff
from coordinator.trust.ledger import NodeLedger, report_of
from schemas.adapter import Adapter

MakeAdapter = Callable[..., Adapter]
MakeConfig = Callable[..., FederationConfig]
MakeMessage = Callable[..., Received]

HOUR = 3600 * 10**9


def play(state: FederationState, *events: Received | Ordered) -> tuple[FederationState, list[Effect]]:
    told: list[Effect] = []
    for event in events:
        state, effects = step(state, event)
        told += effects
    return state, told


def receipts(effects: list[Effect]) -> list[str]:
    return [effect.receipt.status for effect in effects if isinstance(effect, SendReceipt)]


def reasons(effects: list[Effect]) -> list[str]:
    return [
        str(effect.receipt.reason) for effect in effects if isinstance(effect, SendReceipt) and effect.receipt.reason
    ]


def ordered(number: int, order: Order) -> Ordered:
    return Ordered(number, number, order.to_bytes())


@pytest.fixture
def patient(config: MakeConfig, adapter: MakeAdapter) -> FederationState:
    """A federation that makes no version yet: its buffer takes ten."""
    return found(config(FedBuff(buffer_size=10)), adapter(0), 0)[0]


# --- refusals and the alarm ---


def test_every_refusal_is_counted_by_its_kind_with_the_reason_that_the_node_was_told(
    patient: FederationState, message: MakeMessage
) -> None:
    state, told = play(patient, message("a", 1), message("a", 1, base_version=7), message("a", 99999, sequence=1))
    assert state.nodes["a"].refusals == {"unknown version": 1, "too large": 1}
    assert state.nodes["a"].last_refusal == reasons(told)[-1]


def test_a_node_of_which_everything_was_refused_is_in_the_ledger_until_others_need_its_place(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = found(config(FedBuff(buffer_size=10), limits=Limits(nodes=2)), adapter(0), 0)
    state, _ = play(state, message("bad", 1, base_version=7), message("a", 1))
    assert state.nodes["bad"].refusals == {"unknown version": 1}
    state, told = play(state, message("b", 1))
    assert (receipts(told), sorted(state.nodes)) == (["accepted"], ["a", "b"])


def test_the_alarm_rises_once_when_over_a_fifth_of_a_nodes_updates_are_refused(
    patient: FederationState, message: MakeMessage
) -> None:
    good = [message("a", 1, sequence=sequence) for sequence in range(6)]
    bad = [message("a", 1, base_version=7, sequence=sequence) for sequence in range(4)]
    state, told = play(patient, *good, *bad)
    assert [effect.node for effect in told if isinstance(effect, RaiseAlarm)] == ["a"]
    assert state.nodes["a"].refused_share == 4 / 10
    assert report_of("a", state.nodes["a"]).alarm


def test_one_bad_update_of_two_is_no_alarm(patient: FederationState, message: MakeMessage) -> None:
    _, told = play(patient, message("a", 1), message("a", 1, base_version=7))
    assert not [effect for effect in told if isinstance(effect, RaiseAlarm)]


def test_an_update_that_is_refused_after_it_was_accepted_counts_once(
    patient: FederationState, message: MakeMessage
) -> None:
    good = [message("a", 1, sequence=sequence) for sequence in range(4)]
    state, told = play(patient, *good, ordered(1, Quarantine(node="a", reason="a trial")))
    ledger = state.nodes["a"]
    assert (receipts(told)[-4:], ledger.participation, ledger.decided) == (["rejected"] * 4, 4, 4)
    assert ledger.refused_share == 1


def test_an_update_that_is_offered_again_after_its_refusal_counts_once(
    patient: FederationState, message: MakeMessage
) -> None:
    bad = message("a", 1, base_version=7)
    state, told = play(patient, bad, bad, bad)
    assert receipts(told) == ["rejected"] * 3
    assert state.nodes["a"].refusals == {"unknown version": 1}


def test_a_node_that_has_not_heard_of_the_end_is_not_blamed(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = found(config(FedBuff(buffer_size=1), final_version=1), adapter(0), 0)
    state, told = play(state, message("a", 1), message("a", 1, sequence=1))
    assert receipts(told)[-1] == "stale"
    assert state.nodes["a"].refusals == {}


# --- what is checked ---


def test_a_delta_that_moves_products_too_far_is_refused_though_its_factors_are_short(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    limits = Limits(nodes=10, delta_norm=1000, delta_reach=20_000)
    state, _ = found(config(FedBuff(buffer_size=10), limits=limits), adapter(100), 0)
    digest = adapter(100).digest
    state, told = play(state, message("a", adapter(9, 0), base_digest=digest), message("b", 90, base_digest=digest))
    assert receipts(told) == ["accepted", "rejected"]
    assert "moves products B A" in reasons(told)[0]


def test_a_node_has_so_many_updates_in_the_next_version_and_no_more(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    limits = Limits(nodes=10, updates_per_version=2)
    state, _ = found(config(FedBuff(buffer_size=4), limits=limits), adapter(0), 0)
    eager = [message("a", 1, sequence=sequence) for sequence in range(3)]
    state, told = play(state, *eager, message("b", 1))
    assert receipts(told) == ["accepted", "accepted", "rejected", "accepted"]
    assert "wait for it" in reasons(told)[0] and state.nodes["a"].refusals == {"quota": 1}


def test_an_hour_has_so_many_updates_of_a_node_by_recorded_time_and_clocks_that_go_back_begin_no_new_one(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    limits = Limits(nodes=10, updates_per_hour=2)
    state, _ = found(config(FedBuff(buffer_size=10, timeout_s=None), limits=limits), adapter(0), 0)
    times = (HOUR, HOUR + 1, HOUR + 2, HOUR - 1, 2 * HOUR)
    sent = [message("a", 1, sequence=number, at_ns=at_ns) for number, at_ns in enumerate(times)]
    _, told = play(state, *sent)
    assert receipts(told) == ["accepted", "accepted", "rejected", "rejected", "accepted"]


def test_a_claim_of_more_participation_than_was_counted_changes_nothing_and_is_noted(
    patient: FederationState, message: MakeMessage
) -> None:
    state, told = play(patient, message("a", 1, participation=5), message("a", 1, sequence=1, participation=1))
    assert receipts(told) == ["accepted", "accepted"]
    assert (state.nodes["a"].participation, state.nodes["a"].overclaimed) == (2, 1)


# --- the operator's orders ---


def test_a_quarantined_node_is_refused_with_the_operators_reason_and_what_waits_of_it_as_well(
    patient: FederationState, message: MakeMessage
) -> None:
    quarantine = ordered(1, Quarantine(node="a", reason="it sends noise"))
    state, told = play(patient, message("a", 1), message("b", 1), quarantine, message("a", 1, sequence=1))
    assert receipts(told) == ["accepted", "accepted", "rejected", "rejected"]
    assert all("it sends noise" in reason for reason in reasons(told))
    assert [update.node for update in state.buffer.updates] == ["b"]


def test_a_version_in_the_making_is_begun_anew_without_the_quarantined_node(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage, calibration: object
) -> None:
    aligning = AlignFed(buffer_size=2, align="semantic", anchor=None, participation=False, step=1)
    state, _ = found(config(aligning, calibration=calibration), adapter(1), 0)
    first = [message(node, 1, base_digest=adapter(1).digest) for node in "ab"]
    state, _ = play(state, *first)
    stale = [message(node, 1, base_digest=adapter(1).digest, sequence=1) for node in "ab"]
    state, _ = play(state, *stale)
    assert state.pending is not None
    state, told = play(state, ordered(1, Quarantine(node="a", reason="why")))
    assert state.pending is None
    assert [update.node for update in state.buffer.updates] == ["b"] and receipts(told) == ["rejected"]


def test_a_forgiven_node_begins_anew_with_what_it_has_contributed(
    patient: FederationState, message: MakeMessage
) -> None:
    orders = ordered(1, Quarantine(node="a", reason="why")), ordered(2, Forgive(node="a"))
    state, told = play(patient, message("a", 1), *orders, message("a", 1, sequence=1))
    assert receipts(told) == ["accepted", "rejected", "accepted"]
    assert state.nodes["a"] == NodeLedger(participation=2, accepted=state.nodes["a"].accepted, decoded=2,
                                          refused=state.nodes["a"].refused)  # fmt: skip


def test_a_node_can_be_quarantined_before_it_was_ever_heard(patient: FederationState, message: MakeMessage) -> None:
    _, told = play(patient, ordered(1, Quarantine(node="new", reason="stolen")), message("new", 1))
    assert receipts(told) == ["rejected"]


def test_an_order_is_obeyed_once_and_one_that_cannot_be_read_is_dropped(
    patient: FederationState, message: MakeMessage
) -> None:
    quarantine, forgive = ordered(1, Quarantine(node="a", reason="why")), ordered(2, Forgive(node="a"))
    state, told = play(patient, quarantine, forgive, quarantine, Ordered(9, 3, b'{"kind":"dance"}'))
    assert [effect.reason for effect in told if isinstance(effect, Drop)] == [
        "order that was taken already",
        "order that cannot be read",
    ]
    assert (state.orders, state.nodes) == (3, {})
    _, told = play(state, message("a", 1))
    assert receipts(told) == ["accepted"]


def test_a_quarantine_that_empties_the_buffer_makes_no_version(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = found(config(FedBuff(buffer_size=2)), adapter(0), 0)
    _, told = play(state, message("a", 1), ordered(1, Quarantine(node="a", reason="why")))
    assert not [effect for effect in told if isinstance(effect, PublishVersion)]
