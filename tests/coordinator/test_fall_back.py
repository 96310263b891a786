"""Where the calibration set is unlike the fleet, most nodes together can have served what the gate turns down."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.core import found, step
from coordinator.fall_back import KEPT_REPORTS, FallBack, gain_since, with_report
from coordinator.privacy.terms import fitted, is_fitted
from coordinator.questions import MeasuredLosses, answer_to_bytes
from coordinator.stages import ReleaseStage
from coordinator.state import (
    Answered,
    CalibrationTerms,
    Configured,
    Effect,
    FederationConfig,
    FederationState,
    Received,
)
from coordinator.strategies import AlignFed, FedBuff
from coordinator.trust.robust import HeadGuard
from schemas.adapter import Adapter

MakeAdapter = Callable[..., Adapter]
MakeConfig = Callable[..., FederationConfig]
MakeMessage = Callable[..., Received]

BETTER = {1: 2.0, 5: 1.0}  # a node's reports: the version served is 2
WORSE = {1: 2.0, 5: 3.0}
FALL_BACK = FallBack(after=2, nodes=3, quorum=0.6, gain=0.1)


@pytest.mark.parametrize(
    ("reports", "gain"),
    [
        ({}, None),
        ({1: 2.0}, None),
        ({5: 2.0}, None),
        ({2: 2.0, 3: 1.0}, 0.5),
        ({0: 9.0, 1: 2.0, 4: 0.0, 5: 3.0}, -0.5),
        ({1: 0.0, 5: 1.0}, 0.0),
    ],
)
def test_a_node_compares_the_newest_version_with_what_is_served(reports: dict[int, float], gain: float | None) -> None:
    assert gain_since(2, reports) == gain


@pytest.mark.parametrize(
    ("turned_down", "reports", "overruled"),
    [
        (2, [BETTER] * 3, True),
        (1, [BETTER] * 3, False),  # once is no pattern
        (2, [BETTER] * 2, False),  # too few
        (2, [BETTER] * 3 + [{1: 2.0}] * 3, False),  # half of those that say anything cannot compare yet: no quorum
        (2, [BETTER] * 3 + [{1: 2.0}] * 2, True),
        (2, [BETTER] * 3 + [{5: 1.0}] * 9, True),  # who came too late to compare holds nobody up
        (2, [BETTER] * 3 + [WORSE] * 2, True),
        (2, [BETTER] * 3 + [WORSE] * 3, False),  # in doubt the gate decides
        (2, [{1: 2.0, 5: 1.9}] * 5, False),  # not by enough
        (2, [{1: 2.0, 5: 0.0}] * 2 + [WORSE] * 3, False),  # a few that praise much are a few
        (9, [], False),
    ],
)
def test_most_nodes_decide_and_one_does_not(turned_down: int, reports: list[dict[int, float]], overruled: bool) -> None:
    assert FALL_BACK.overrules(turned_down, 2, reports) is overruled


REPORTS = st.lists(st.tuples(st.integers(0, 60), st.floats(0, 10)), min_size=1, max_size=60)


@given(REPORTS, st.integers(0, 60))
def test_what_is_kept_of_a_node_is_little_and_all_that_a_comparison_needs(
    said: list[tuple[int, float]], served: int
) -> None:
    kept: dict[int, float] = {}
    for version, loss in said:
        kept = with_report(kept, version, loss, served)
    assert 1 <= len(kept) <= KEPT_REPORTS
    assert gain_since(served, kept) == gain_since(served, dict(said))


# --- in the core ---


@pytest.fixture
def terms(config: MakeConfig, calibration: CalibrationTerms) -> FederationConfig:
    release = ReleaseStage(choose="gated", guard=HeadGuard(), fall_back=FALL_BACK)
    return config(FedBuff(buffer_size=3, release=release), calibration=calibration)


def version_of_all(
    state: FederationState, message: MakeMessage, loss: float | None, delta: float = 1.0
) -> FederationState:
    """One version of three nodes, each of which says so much of the version that it began with."""
    base = state.head
    for node in ("a", "b", "c"):
        said = message(node, delta, base.version, base.digest, sequence=base.version, held_out_loss=loss)
        state, _ = step(state, said)
    assert state.head.version == base.version + 1
    return state


def judge(state: FederationState, before: float, candidate: float) -> tuple[FederationState, tuple[Effect, ...]]:
    assert state.background is not None
    answer = MeasuredLosses((before, candidate), seconds=0.5)
    return step(state, Answered(0, state.background.id, answer_to_bytes(answer)))


def test_what_the_gate_turns_down_again_and_again_is_served_where_nodes_find_it_better(
    terms: FederationConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = found(terms, adapter(0), 0)
    state = version_of_all(state, message, loss=4.0)
    state, _ = judge(state, before=2.0, candidate=2.01)
    assert (state.served.version, state.turned_down) == (0, 1)
    state = version_of_all(state, message, loss=3.0)  # of version 1
    state, _ = judge(state, before=2.0, candidate=9.0)
    assert (state.served.version, state.served.variant, state.turned_down) == (2, "average", 0)
    assert state.release.is_overruled and state.release.candidate == 9.0
    assert (state.head.version, state.returns) == (2, 0)  # the guard does not take back what nodes find better
    state = version_of_all(state, message, loss=2.0)
    state, _ = judge(state, before=2.0, candidate=1.9)
    assert state.release.is_taken and not state.release.is_overruled


@pytest.mark.parametrize("second", [3.9, 5.0, None])
def test_where_nodes_do_not_find_it_better_the_gate_decides_and_the_guard_guards(
    terms: FederationConfig, adapter: MakeAdapter, message: MakeMessage, second: float | None
) -> None:
    state, _ = found(terms, adapter(0), 0)
    state = version_of_all(state, message, loss=4.0)
    state, _ = judge(state, before=2.0, candidate=2.01)
    state = version_of_all(state, message, loss=second)
    state, _ = judge(state, before=2.0, candidate=9.0)
    assert state.served.version == 0
    assert (state.head.adapter, state.returns, state.turned_down) == (adapter(0), 1, 0)  # taken back


def test_a_version_without_a_loss_is_never_served(
    terms: FederationConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = found(terms, adapter(0), 0)
    state = version_of_all(state, message, loss=4.0)
    state, _ = judge(state, before=2.0, candidate=2.01)
    state = version_of_all(state, message, loss=1.0)
    state, _ = judge(state, before=2.0, candidate=math.inf)
    assert state.served.version == 0


def test_without_the_setting_what_nodes_say_is_not_even_kept(
    config: MakeConfig, calibration: CalibrationTerms, adapter: MakeAdapter, message: MakeMessage
) -> None:
    usual = config(FedBuff(buffer_size=3, release=ReleaseStage(choose="gated")), calibration=calibration)
    state, _ = found(usual, adapter(0), 0)
    state = version_of_all(state, message, loss=4.0)
    assert not any(ledger.held_out for ledger in state.nodes.values())


def test_who_is_in_quarantine_has_no_word(terms: FederationConfig, adapter: MakeAdapter, message: MakeMessage) -> None:
    state, _ = found(terms, adapter(0), 0)
    state = version_of_all(state, message, loss=4.0)
    state, _ = judge(state, before=2.0, candidate=2.01)
    state = version_of_all(state, message, loss=3.0)
    liar = replace(state.nodes["a"], quarantine="it lies")
    state, _ = judge(replace(state, nodes={**state.nodes, "a": liar}), before=2.0, candidate=2.01)
    assert (state.served.version, state.turned_down) == (0, 2)  # two are left, and three were to be


def test_new_terms_count_anew(terms: FederationConfig, adapter: MakeAdapter, message: MakeMessage) -> None:
    state, _ = found(terms, adapter(0), 0)
    state = version_of_all(state, message, loss=4.0)
    state, _ = judge(state, before=2.0, candidate=2.01)
    assert state.turned_down == 1
    state, _ = step(state, Configured(0, terms))
    assert state.turned_down == 0


@pytest.mark.parametrize("strategy", [AlignFed, FedBuff])
def test_where_privacy_is_promised_what_nodes_say_decides_nothing(strategy: type[AlignFed] | type[FedBuff]) -> None:
    asking = strategy(release=ReleaseStage(choose="gated", fall_back=FallBack()))
    assert not is_fitted(asking)
    assert fitted(asking).release == ReleaseStage(choose="gated")
