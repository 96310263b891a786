"""What the base model does while updates come in: the next version's anchor, and whether the newest may be served."""

import math
from collections.abc import Callable

import pytest

from coordinator.core import found, step
from coordinator.questions import (
    Answer,
    MeasuredLosses,
    MeasureLosses,
    TrainAnchor,
    TrainedAnchor,
    answer_to_bytes,
)
from coordinator.stages import AnchorStage, ReleaseStage
from coordinator.state import (
    Answered,
    AskModel,
    CalibrationTerms,
    Configured,
    Drop,
    Effect,
    FederationConfig,
    FederationState,
    Limits,
    PublishRelease,
    PublishVersion,
    Received,
    SendReceipt,
    Started,
)
from coordinator.strategies import CalibrationOnly, FedAvg, FedBuff, Strategy
from coordinator.updates import Served
from schemas.adapter import Adapter
from schemas.messages import AnchorReport, ReleaseReport

MakeAdapter = Callable[..., Adapter]
MakeConfig = Callable[..., FederationConfig]
MakeMessage = Callable[..., Received]
Step = tuple[FederationState, tuple[Effect, ...]]

ANCHORED = FedBuff(buffer_size=1, anchor=AnchorStage())
GATED = FedBuff(buffer_size=1, release=ReleaseStage(choose="gated"))
BOTH = FedBuff(buffer_size=1, anchor=AnchorStage(), release=ReleaseStage(choose="gated"))


@pytest.fixture
def terms(config: MakeConfig, calibration: CalibrationTerms) -> MakeConfig:
    """Make the terms of a federation with a calibration set."""
    return lambda strategy, **changes: config(strategy, calibration=calibration, **changes)


def asked(effects: tuple[Effect, ...]) -> list[type]:
    return [type(effect.question) for effect in effects if isinstance(effect, AskModel)]


def version(effects: tuple[Effect, ...]) -> PublishVersion:
    [published] = [effect for effect in effects if isinstance(effect, PublishVersion)]
    return published


def release(effects: tuple[Effect, ...]) -> ReleaseReport:
    [published] = [effect for effect in effects if isinstance(effect, PublishRelease)]
    return published.report


def answer(state: FederationState, said: Answer) -> Step:
    """Answer what is asked in the background."""
    assert state.background is not None
    return step(state, Answered(0, state.background.id, answer_to_bytes(said)))


def trained(delta: Adapter) -> TrainedAnchor:
    return TrainedAnchor(delta, 2.5, 1.5, seconds=2.0)


def losses(before: float, candidate: float) -> MeasuredLosses:
    return MeasuredLosses((before, candidate), seconds=0.5)


def another_update(state: FederationState, message: MakeMessage, delta: float = 5) -> Step:
    """A version more, from a node that has the newest one."""
    return step(state, message("a", delta, state.head.version, state.head.digest, sequence=state.head.version))


# --- the anchor ---


def test_an_anchor_is_asked_for_before_the_first_update_comes(terms: MakeConfig, adapter: MakeAdapter) -> None:
    _, effects = found(terms(ANCHORED), adapter(7), 0)
    assert effects[-1] == AskModel((0, 0), TrainAnchor(adapter(7), seed=0))


def test_an_anchor_that_is_there_goes_into_the_next_version_once(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = found(terms(ANCHORED), adapter(0), 0)
    state, effects = answer(state, trained(adapter(9)))
    assert effects == ()
    state, effects = another_update(state, message)
    assert version(effects).manifest.anchor == AnchorReport(
        base_version=0, weight=0.5, loss_before=2.5, loss_after=1.5, seconds=2.0
    )
    assert state.head.adapter == adapter((5 + 9) / 2)
    assert effects[-1] == AskModel((1, 0), TrainAnchor(state.head.adapter, seed=1))
    _, effects = another_update(state, message)
    assert version(effects).manifest.anchor is None


def test_no_version_waits_for_an_anchor(terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage) -> None:
    state, _ = found(terms(ANCHORED), adapter(0), 0)
    state, effects = another_update(state, message)
    assert version(effects).manifest.anchor is None
    assert state.head.adapter == adapter(5)
    assert asked(effects) == []  # the model is at it still


def test_a_late_anchor_counts_for_less_and_the_next_one_is_trained_from_the_newest_head(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = found(terms(ANCHORED), adapter(0), 0)
    for _ in range(3):
        state, _ = another_update(state, message, delta=1)
    state, effects = answer(state, trained(adapter(6)))
    assert effects == (AskModel((3, 0), TrainAnchor(adapter(3), seed=3)),)
    state, effects = another_update(state, message, delta=1)
    anchor = version(effects).manifest.anchor
    assert anchor is not None
    assert anchor.base_version == 0
    assert anchor.weight == pytest.approx(0.5 / 1.5)  # three versions old: half a vote beside one update


def test_of_two_anchors_without_a_version_between_them_the_newer_counts(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = found(terms(ANCHORED), adapter(0), 0)
    state, _ = another_update(state, message)
    state, _ = answer(state, trained(adapter(6)))
    state, _ = answer(state, trained(adapter(7)))
    assert state.anchor is not None
    assert (state.anchor.base_version, state.anchor.delta) == (1, adapter(7))


@pytest.mark.parametrize("strategy", [GATED, FedBuff(), FedAvg()], ids=["gate", "fedbuff", "fedavg"])
def test_a_strategy_without_an_anchor_does_not_ask_for_one(
    terms: MakeConfig, adapter: MakeAdapter, strategy: Strategy
) -> None:
    assert asked(found(terms(strategy), adapter(0), 0)[1]) == []


@pytest.mark.parametrize("strategy", [ANCHORED, GATED, BOTH], ids=["anchor", "gate", "both"])
def test_without_a_calibration_set_nothing_is_asked(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage, strategy: Strategy
) -> None:
    state, first = found(config(strategy), adapter(0), 0)
    state, second = another_update(state, message)
    assert asked(first) + asked(second) == []
    manifest = version(second).manifest
    assert (manifest.calibration, manifest.anchor) == (None, None)
    assert release(second).is_taken  # no gate to say otherwise


def test_the_control_moves_by_the_anchor_alone(terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage) -> None:
    state, _ = found(terms(CalibrationOnly(buffer_size=1)), adapter(0), 0)
    state, effects = another_update(state, message)
    assert (state.head.adapter, version(effects).manifest.anchor) == (adapter(0), None)
    state, _ = answer(state, trained(adapter(9)))
    state, effects = another_update(state, message)
    assert state.head.adapter == adapter(9)
    assert version(effects).manifest.inputs[0].weight == 0


def test_after_the_last_version_there_is_no_anchor_and_still_a_judgement(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = found(terms(BOTH, final_version=1), adapter(0), 0)
    state, _ = answer(state, trained(adapter(9)))
    state, effects = another_update(state, message)
    assert asked(effects) == [MeasureLosses]
    state, effects = answer(state, losses(3, 2))
    assert release(effects).version == 1
    assert asked(effects) == []


# --- what is served ---


def test_a_version_is_published_before_it_is_judged(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, first = found(terms(GATED), adapter(0), 0)
    assert release(first) == ReleaseReport(version=0, variant="head", judged=0)
    state, effects = another_update(state, message)
    said = version(effects)
    assert said.manifest.release == ReleaseReport(version=0, variant="head", judged=0)
    assert said.manifest.average is not None
    assert said.manifest.average.sha256 == adapter(3).digest  # 2/5 of what was, 3/5 of the head
    assert not any(isinstance(effect, PublishRelease) for effect in effects)
    assert effects[-1] == AskModel((1, 0), MeasureLosses("gate", (adapter(0), adapter(3))))
    state, effects = answer(state, losses(3, 2))
    expected = ReleaseReport(version=1, variant="average", judged=1, candidate=2, before=3, seconds=0.5)
    assert effects == (PublishRelease(expected, adapter(3)),)
    assert state.served == Served(1, "average", adapter(3))
    assert state.head.adapter == adapter(5)


def test_what_is_turned_down_is_not_served_and_the_next_version_says_so(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = found(terms(GATED), adapter(0), 0)
    state, _ = another_update(state, message)
    state, effects = answer(state, losses(2, 2.5))
    turned_down = ReleaseReport(version=0, variant="head", judged=1, candidate=2.5, before=2, seconds=0.5)
    assert effects == (PublishRelease(turned_down, adapter(0)),)
    assert not turned_down.is_taken
    state, effects = another_update(state, message)
    assert version(effects).manifest.release == turned_down
    assert state.background is not None
    assert state.background.question == MeasureLosses("gate", (adapter(0), state.average))


def test_an_infinite_loss_is_told_without_a_number(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = found(terms(GATED), adapter(0), 0)
    state, _ = another_update(state, message)
    _, effects = answer(state, losses(2, math.inf))
    assert (release(effects).candidate, release(effects).version) == (None, 0)


def test_a_version_that_was_not_judged_in_time_is_passed_over(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = found(terms(GATED), adapter(0), 0)
    for _ in range(3):
        state, _ = another_update(state, message)
    state, effects = answer(state, losses(3, 2))
    assert release(effects).judged == 1
    assert effects[-1] == AskModel((3, 0), MeasureLosses("gate", (state.served.adapter, state.average)))
    _, effects = answer(state, losses(2, 1))
    assert release(effects).version == 3


def test_where_the_model_is_slow_anchors_and_judgements_take_turns(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, effects = found(terms(BOTH), adapter(0), 0)
    turns = []
    for _ in range(5):  # a version for each answer: both are always due, but that version 0 needs no judgement
        turns += asked(effects)
        state, _ = another_update(state, message)
        said = trained(adapter(1)) if turns[-1] is TrainAnchor else losses(2, 1)
        state, effects = answer(state, said)
    assert turns == [TrainAnchor, TrainAnchor, MeasureLosses, TrainAnchor, MeasureLosses]


@pytest.mark.parametrize(("choose", "variant", "served"), [("head", "head", 5), ("average", "average", 3)])
def test_without_a_gate_every_version_is_served_as_it_comes(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, choose: str, variant: str, served: float
) -> None:
    state, _ = found(terms(FedBuff(buffer_size=1, release=ReleaseStage(choose=choose))), adapter(0), 0)
    state, effects = another_update(state, message)
    assert asked(effects) == []
    assert release(effects) == ReleaseReport(version=1, variant=variant, judged=1)
    assert version(effects).manifest.release == release(effects)
    assert state.served == Served(1, variant, adapter(served))


def test_the_running_average_goes_on_under_the_same_release_stage_alone(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    averaging = FedBuff(buffer_size=1, release=ReleaseStage(choose="average"))
    state, _ = found(terms(averaging), adapter(0), 0)
    state, _ = another_update(state, message)
    state, _ = another_update(state, message)
    assert state.served.adapter == adapter(0.5 * 3 + 0.5 * 10)
    for same in (terms(averaging, limits=Limits(nodes=3)), terms(averaging.model_copy(update={"step": 2.0}))):
        assert step(state, Configured(1, same))[0].average == state.average
    slower = averaging.model_copy(update={"release": ReleaseStage(choose="average", decay=0.9)})
    other, _ = step(state, Configured(1, terms(slower)))
    assert (other.average, other.served) == (None, state.served)


def test_while_there_is_no_average_nothing_is_judged(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = found(terms(GATED), adapter(0), 0)
    state, _ = another_update(state, message)
    slower = GATED.model_copy(update={"release": ReleaseStage(choose="gated", decay=0.9)})
    state, effects = step(state, Configured(1, terms(slower)))
    assert (state.average, asked(effects)) == (None, [])
    state, effects = another_update(state, message)
    assert asked(effects) == [MeasureLosses]
    _, effects = answer(state, losses(3, 2))
    assert (release(effects).version, release(effects).variant) == (2, "average")


def test_where_a_manifest_cannot_name_two_bodies_heads_are_served_unjudged(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.background.LARGEST_AVERAGED", 1)
    state, _ = found(terms(GATED), adapter(0), 0)
    _, effects = another_update(state, message)
    assert asked(effects) == []
    assert release(effects) == ReleaseReport(version=1, variant="head", judged=1)
    assert version(effects).manifest.average is None


# --- answers that are none, new processes, new terms ---


@pytest.mark.parametrize("said", [losses(1, 2), MeasuredLosses((1.0,), 0)], ids=["another kind", "too few"])
def test_an_answer_that_does_not_fit_is_dropped_and_the_question_stays_open(
    terms: MakeConfig, adapter: MakeAdapter, said: Answer
) -> None:
    state, _ = found(terms(ANCHORED), adapter(0), 0)
    after, [dropped] = answer(state, said)
    assert dropped == Drop("answer that does not fit its question", "(0, 0)")
    assert after.background == state.background


def test_a_new_coordinator_asks_the_same_question_again(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, asked_first = found(terms(BOTH), adapter(0), 0)
    state, effects = step(state, Started(9))
    assert effects == asked_first[-1:]
    state, asked_next = another_update(answer(state, trained(adapter(1)))[0], message)
    _, effects = step(state, Started(10))
    assert effects == asked_next[-1:]


def test_under_new_terms_what_was_asked_is_asked_under_a_new_name(terms: MakeConfig, adapter: MakeAdapter) -> None:
    state, _ = found(terms(ANCHORED), adapter(0), 0)
    old = state.background
    assert old is not None
    state, effects = step(state, Configured(1, terms(ANCHORED.model_copy(update={"step": 2.0}))))
    assert effects == (AskModel((0, 1), old.question),)
    after, [dropped] = step(state, Answered(2, old.id, answer_to_bytes(trained(adapter(1)))))
    assert isinstance(dropped, Drop)
    assert (after.anchor, after.background) == (None, state.background)


def test_an_anchor_that_was_trained_under_other_terms_is_not_used(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = found(terms(ANCHORED), adapter(0), 0)
    state, _ = answer(state, trained(adapter(9)))
    state, _ = step(state, Configured(1, terms(ANCHORED.model_copy(update={"step": 2.0}))))
    _, effects = another_update(state, message)
    assert version(effects).manifest.anchor is None


def test_an_anchor_that_makes_infinite_values_makes_no_version(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = found(terms(BOTH.model_copy(update={"step": 10.0})), adapter(0), 0)
    state, _ = answer(state, trained(adapter(3e38)))
    state, effects = another_update(state, message)
    [_, receipt] = [effect.receipt for effect in effects if isinstance(effect, SendReceipt)]
    assert (receipt.status, receipt.reason) == ("rejected", "the updates of this buffer add up to infinite values")
    assert (state.head.version, state.served.version) == (0, 0)
    state, effects = step(state, message("a", 1, sequence=7))
    assert state.head.version == 1
    assert version(effects).manifest.anchor is None
