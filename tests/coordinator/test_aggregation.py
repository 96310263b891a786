"""A version in the making: the base model is asked, updates go on coming, and the answer publishes."""

from collections.abc import Callable

import pytest

from coordinator.core import found, next_deadline, step
from coordinator.questions import (
    AlignDeltas,
    AlignedDeltas,
    Answer,
    MeasuredLosses,
    MeasureLosses,
    Question,
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
    Event,
    FederationConfig,
    FederationState,
    Limits,
    PublishVersion,
    Received,
    SendReceipt,
    Started,
    Ticked,
)
from coordinator.strategies import (
    AlignFed,
    AlignFedLiteral,
    FedAsync,
    FedAvg,
    FedBuff,
    FedEx,
    Strategy,
)
from coordinator.updates import Served
from schemas.adapter import Adapter
from schemas.messages import MAX_INPUTS, AnchorReport, ModelSeconds, ReleaseReport

MakeAdapter = Callable[..., Adapter]
MakeConfig = Callable[..., FederationConfig]
MakeMessage = Callable[..., Received]
Step = tuple[FederationState, tuple[Effect, ...]]

SECOND = 1_000_000_000
ANCHORED = FedBuff(buffer_size=2, anchor=AnchorStage())
GATED = FedBuff(buffer_size=2, release=ReleaseStage(choose="gated"))
BOTH = FedBuff(buffer_size=2, anchor=AnchorStage(), release=ReleaseStage(choose="gated"))


@pytest.fixture
def terms(config: MakeConfig, calibration: CalibrationTerms) -> Callable[..., FederationConfig]:
    """Make the terms of a federation with a calibration set."""

    def make(strategy: Strategy, **changes: object) -> FederationConfig:
        return config(strategy, calibration=calibration, **changes)

    return make


def play(config: FederationConfig, first: Adapter, *events: Event) -> Step:
    """The state after all events, and the effects of the last one."""
    state, effects = found(config, first, 0)
    for event in events:
        state, effects = step(state, event)
    return state, effects


def told(effects: tuple[Effect, ...]) -> list[str]:
    """What nodes are told, and what becomes of the version: one word or two for each effect."""
    words = []
    for effect in effects:
        match effect:
            case SendReceipt(_, receipt):
                words.append(receipt.status)
            case PublishVersion(manifest):
                words.append(f"version {manifest.version}")
            case AskModel(_, question):
                words.append(type(question).__name__)
            case Drop(reason):
                words.append(f"dropped: {reason}")
    return words


def answer(state: FederationState, said: Answer, at_ns: int = 0) -> Answered:
    """The answer to the question that is open."""
    assert state.pending is not None
    return Answered(at_ns, state.pending.question_id, answer_to_bytes(said))


def losses(*values: float) -> MeasuredLosses:
    return MeasuredLosses(values, seconds=0.5)


def anchor(delta: Adapter) -> TrainedAnchor:
    return TrainedAnchor(delta, 2.5, 1.5, seconds=2.0)


def published(effects: tuple[Effect, ...]) -> PublishVersion:
    [version] = [effect for effect in effects if isinstance(effect, PublishVersion)]
    return version


# --- asking ---


def test_a_question_leaves_the_version_in_the_making(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, effects = play(terms(BOTH), adapter(0), message("a", 3), message("b", 3))
    assert told(effects) == ["accepted", "TrainAnchor"]
    assert effects[-1] == AskModel((1, 0), TrainAnchor(adapter(0), seed=0))
    assert state.pending is not None
    assert [update.node for update in state.pending.flush.buffer.updates] == ["a", "b"]
    assert (state.head.version, state.buffer.groups) == (0, ())


def test_the_answers_publish_the_version_with_what_was_answered(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, calibration: CalibrationTerms
) -> None:
    state, _ = play(terms(BOTH), adapter(0), message("a", 3), message("b", 6))
    state, effects = step(state, answer(state, anchor(adapter(9))))
    [asked] = effects
    assert isinstance(asked, AskModel)
    assert asked.question_id == (1, 1)
    assert isinstance(asked.question, MeasureLosses)
    assert [float(one.values[0]) for one in asked.question.adapters] == pytest.approx([0, 6, 3.6])
    state, effects = step(state, answer(state, losses(3, 1, 2), at_ns=7))
    assert told(effects) == ["version 1", "aggregated", "aggregated"]
    manifest = published(effects).manifest
    assert state.head.adapter == adapter(6)
    assert state.pending is None
    assert manifest.calibration == calibration.digest
    assert manifest.anchor == AnchorReport(weight=1 / 3, loss_before=2.5, loss_after=1.5)
    assert manifest.release == ReleaseReport(version=1, variant="head", head=1, average=2, before=3)
    assert manifest.model_seconds == ModelSeconds(anchor=2.0, gate=0.5)
    assert [one.weight for one in manifest.inputs] == pytest.approx([1 / 3, 1 / 3])
    assert manifest.created_at_ns == 7


def test_without_a_calibration_set_nothing_is_asked(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    _, effects = play(config(BOTH), adapter(0), message("a", 3), message("b", 3))
    assert told(effects) == ["accepted", "version 1", "aggregated", "aggregated"]
    manifest = published(effects).manifest
    assert (manifest.calibration, manifest.anchor, manifest.model_seconds) == (None, None, ModelSeconds())
    assert manifest.release.variant == "average"  # no gate to say otherwise


def test_updates_that_come_while_the_model_thinks_wait_for_the_version_after(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = play(terms(ANCHORED), adapter(0), message("a", 3), message("b", 3))
    for late in (message("c", 6), message("d", 6)):
        state, effects = step(state, late)
        assert told(effects) == ["accepted"]
    assert [update.node for update in state.buffer.updates] == ["c", "d"]
    state, effects = step(state, answer(state, anchor(adapter(3))))
    assert told(effects) == ["version 1", "aggregated", "aggregated", "TrainAnchor"]
    assert [one.node for one in published(effects).manifest.inputs] == ["a", "b"]
    assert effects[-1] == AskModel((2, 0), TrainAnchor(adapter(3), seed=1))
    state, effects = step(state, answer(state, anchor(adapter(3))))
    assert [one.node for one in published(effects).manifest.inputs] == ["c", "d"]


def test_time_does_not_close_a_buffer_while_the_model_thinks_and_does_when_it_has_answered(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    strategy = ANCHORED.model_copy(update={"timeout_s": 60})
    state, _ = play(terms(strategy), adapter(0), message("a", 3), message("b", 3))
    state, _ = step(state, message("c", 3, at_ns=5 * SECOND))
    assert next_deadline(state) is None
    state, effects = step(state, Ticked(1000 * SECOND))
    assert effects == ()
    state, effects = step(state, answer(state, anchor(adapter(3)), at_ns=1001 * SECOND))
    assert told(effects) == ["version 1", "aggregated", "aggregated", "TrainAnchor"]


def test_a_buffer_whose_time_has_not_come_waits_on_after_the_answer(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    strategy = ANCHORED.model_copy(update={"timeout_s": 60})
    state, _ = play(terms(strategy), adapter(0), message("a", 3), message("b", 3))
    state, _ = step(state, message("c", 3, at_ns=5 * SECOND))
    state, effects = step(state, answer(state, anchor(adapter(3)), at_ns=6 * SECOND))
    assert told(effects) == ["version 1", "aggregated", "aggregated"]
    assert next_deadline(state) == 65 * SECOND


def test_with_one_update_per_version_what_is_in_the_making_counts(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    patient = AlignFed(preset="patient", buffer_size=2)
    state, _ = play(terms(patient), adapter(0), message("a", 3), message("b", 3))
    assert state.pending is not None
    state, effects = step(state, message("a", 3, sequence=1))
    [refused] = [effect.receipt for effect in effects if isinstance(effect, SendReceipt)]
    assert refused.status == "stale"
    assert refused.reason == "version 1 has an update of this node already: wait for it"
    assert told(step(state, message("c", 3))[1]) == ["accepted"]


def test_a_copy_of_an_update_in_the_making_is_a_duplicate_without_a_version(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = play(terms(ANCHORED), adapter(0), message("a", 3), message("b", 3))
    _, [effect] = step(state, message("a", 3))
    assert isinstance(effect, SendReceipt)
    assert (effect.receipt.status, effect.receipt.version) == ("duplicate", None)


def test_more_than_a_manifest_can_name_do_not_wait(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = play(terms(ANCHORED), adapter(0), message("a", 3), message("b", 3))
    for sequence in range(MAX_INPUTS):
        state, effects = step(state, message("c", 3, sequence=sequence))
        assert told(effects) == ["accepted"]
    state, effects = step(state, message("d", 3))
    [refused] = [effect.receipt for effect in effects if isinstance(effect, SendReceipt)]
    assert refused.status == "stale"
    assert refused.reason == "500 updates wait for the base model on the coordinator: try again later"
    assert len(state.buffer.updates) == MAX_INPUTS
    state, effects = step(state, answer(state, anchor(adapter(3))))
    assert told(effects)[-1] == "TrainAnchor"
    state, effects = step(state, answer(state, anchor(adapter(3))))
    assert len(published(effects).manifest.inputs) == MAX_INPUTS
    assert told(step(state, message("d", 3, 2, state.head.digest))[1]) == ["accepted"]


# --- answers that are none ---


@pytest.mark.parametrize("question_id", [(0, 0), (1, 1), (2, 0), (1, -1)])
def test_an_answer_to_another_question_is_dropped(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, question_id: tuple[int, int]
) -> None:
    state, _ = play(terms(ANCHORED), adapter(0), message("a", 3), message("b", 3))
    after, effects = step(state, Answered(1, question_id, answer_to_bytes(anchor(adapter(3)))))
    assert told(effects) == ["dropped: answer to no question"]
    assert (after.pending, after.head) == (state.pending, state.head)


def test_an_answer_while_nothing_is_asked_is_dropped(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    payload = answer_to_bytes(anchor(adapter(3)))
    state, effects = play(terms(ANCHORED), adapter(0), message("a", 3), Answered(1, (1, 0), payload))
    assert told(effects) == ["dropped: answer to no question"]
    assert (state.head.version, len(state.buffer.updates)) == (0, 1)


def test_an_answer_given_twice_counts_once(terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage) -> None:
    state, _ = play(terms(BOTH), adapter(0), message("a", 3), message("b", 3))
    first = answer(state, anchor(adapter(3)))
    state, effects = step(state, first)
    assert told(effects) == ["MeasureLosses"]
    after, effects = step(state, first)
    assert told(effects) == ["dropped: answer to no question"]
    assert after.pending == state.pending


@pytest.mark.parametrize("payload", [b"", b"{}", b"\0" * 100, b'{"kind":"anchor"}\n', b"[" * 10_000])
def test_an_answer_that_cannot_be_read_is_dropped_and_the_true_one_still_counts(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, payload: bytes
) -> None:
    state, _ = play(terms(ANCHORED), adapter(0), message("a", 3), message("b", 3))
    after, effects = step(state, Answered(1, (1, 0), payload))
    assert told(effects) == ["dropped: answer that cannot be read"]
    assert after.pending == state.pending
    _, effects = step(after, answer(after, anchor(adapter(3))))
    assert told(effects) == ["version 1", "aggregated", "aggregated"]


UNFITTING: dict[str, tuple[Strategy, int, Callable[[MakeAdapter], Answer]]] = {
    "another kind": (ANCHORED, 1, lambda adapter: losses(1, 2, 3)),
    "too few losses": (GATED, 1, lambda adapter: losses(1, 2)),
    "too many losses": (GATED, 1, lambda adapter: losses(1, 2, 3, 4)),
    "too few deltas": (AlignFedLiteral(), 2, lambda adapter: AlignedDeltas((), 1.0, 0.5, 0)),
    "too many deltas": (AlignFedLiteral(), 2, lambda adapter: AlignedDeltas((adapter(1),) * 2, 1.0, 0.5, 0)),
}


@pytest.mark.parametrize(("strategy", "updates", "said"), UNFITTING.values(), ids=UNFITTING)
def test_an_answer_that_does_not_fit_its_question_is_dropped(
    terms: MakeConfig,
    adapter: MakeAdapter,
    message: MakeMessage,
    strategy: Strategy,
    updates: int,
    said: Callable[[MakeAdapter], Answer],
) -> None:
    one_by_one = strategy.model_copy(update={"buffer_size": 1})
    sent = (message("a", 3, sequence=sequence) for sequence in range(updates))  # the second one is stale
    state, effects = play(terms(one_by_one), adapter(0), *sent)
    assert isinstance(effects[-1], AskModel)
    after, effects = step(state, answer(state, said(adapter)))
    assert [word.split(":")[0] for word in told(effects)] == ["dropped"]
    assert after.pending == state.pending


# --- a new process, new terms ---


def test_a_new_coordinator_asks_the_same_question_again(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, asked = play(terms(BOTH), adapter(0), message("a", 3), message("b", 3))
    state, effects = step(state, Started(9))
    assert effects == asked[-1:]
    state, asked = step(state, answer(state, anchor(adapter(3))))
    restarted, effects = step(state, Started(10))
    assert effects == asked
    assert (restarted.epoch, restarted.pending) == (2, state.pending)
    _, effects = step(restarted, answer(restarted, losses(3, 1, 2)))
    assert told(effects) == ["version 1", "aggregated", "aggregated"]
    assert published(effects).manifest.epoch == 2


def test_new_terms_put_a_version_in_the_making_back_among_what_waits(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = play(terms(ANCHORED), adapter(0), message("b", 3), message("c", 3), message("a", 9))
    state, effects = step(state, Configured(1, terms(ANCHORED.model_copy(update={"buffer_size": 4}))))
    assert (effects, state.pending) == ((), None)
    assert [update.node for update in state.buffer.updates] == ["a", "b", "c"]
    assert told(step(state, message("b", 3))[1]) == ["duplicate"]
    state, effects = step(state, message("d", 9))
    assert told(effects) == ["accepted", "TrainAnchor"]
    _, effects = step(state, answer(state, anchor(adapter(6))))
    assert [one.node for one in published(effects).manifest.inputs] == ["a", "b", "c", "d"]


def test_under_terms_that_ask_nothing_what_was_in_the_making_is_published_at_once(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = play(terms(ANCHORED), adapter(0), message("a", 3), message("b", 5))
    state, effects = step(state, Configured(1, terms(FedBuff(buffer_size=2))))
    assert told(effects) == ["version 1", "aggregated", "aggregated"]
    assert state.head.adapter == adapter(4)


def test_without_its_calibration_set_a_version_in_the_making_is_made_without(
    config: MakeConfig, terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = play(terms(ANCHORED), adapter(0), message("a", 3), message("b", 5))
    state, effects = step(state, Configured(1, config(ANCHORED)))
    assert told(effects) == ["version 1", "aggregated", "aggregated"]
    assert state.head.adapter == adapter(4)


def test_what_was_in_the_making_when_the_last_version_moved_is_answered(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = play(terms(ANCHORED), adapter(0), message("a", 3), message("b", 3))
    state, _ = step(state, answer(state, anchor(adapter(3))))
    for node in ("a", "b", "c"):
        state, _ = step(state, message(node, 3, 1, state.head.digest))
    state, effects = step(state, Configured(1, terms(ANCHORED, final_version=1)))
    assert told(effects) == ["stale", "stale", "stale"]
    assert (state.pending, state.buffer.groups, state.head.version) == (None, (), 1)


def test_what_waits_behind_the_last_version_is_answered_when_that_is_published(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = play(terms(ANCHORED, final_version=1), adapter(0), message("a", 3), message("b", 3), message("c", 3))
    state, effects = step(state, answer(state, anchor(adapter(3))))
    assert told(effects) == ["version 1", "aggregated", "aggregated", "stale"]
    assert state.buffer.groups == ()


def test_more_than_a_manifest_can_name_are_never_made_into_one_version(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = play(terms(ANCHORED), adapter(0), message("a", 3), message("b", 3))
    for sequence in range(MAX_INPUTS):
        state, _ = step(state, message("c", 3, sequence=sequence))
    waiting = MAX_INPUTS + 2
    state, effects = step(state, Configured(1, terms(FedBuff(buffer_size=2))))
    named = [len(effect.manifest.inputs) for effect in effects if isinstance(effect, PublishVersion)]
    assert max(named) <= MAX_INPUTS
    assert sum(named) + told(effects).count("stale") + len(state.buffer.updates) == waiting


# --- what became too old meanwhile ---


def test_in_a_synchronous_round_a_straggler_s_work_does_not_slip_into_the_next_one(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    rounds = FedAvg(nodes_per_round=2, anchor=AnchorStage())
    state, _ = play(terms(rounds), adapter(0), message("a", 3), message("b", 3))
    state, first = step(state, message("slow", 3))  # while the model thinks
    state, second = step(state, answer(state, anchor(adapter(3))))
    assert (told(first) + told(second)).count("stale") == 1
    assert state.buffer.groups == ()


@pytest.mark.parametrize(
    "strategy",
    [
        FedAsync(max_staleness=1, release=ReleaseStage(choose="gated")),
        FedEx(buffer_size=1, max_staleness=1, anchor=AnchorStage()),
        AlignFed(buffer_size=1, max_staleness=1, align="transplant"),
        AlignFedLiteral(buffer_size=1, max_staleness=1, anchor=AnchorStage()),
    ],
    ids=lambda strategy: strategy.name,
)
def test_an_update_whose_base_was_forgotten_while_the_model_thought_is_refused_as_stale(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, strategy: Strategy
) -> None:
    state, effects = play(terms(strategy), adapter(0), message("a", 3))
    state, effects = answer_all(state, effects)
    assert state.head.version == 1
    state, effects = step(state, message("b", 3, 1, state.head.digest))
    assert told(effects)[0] == "accepted"
    assert state.pending is not None
    state, taken = step(state, message("slow", 3))  # from version 0: one version old, which is allowed, for now
    state, effects = answer_all(state, effects)
    assert state.head.version == 2
    assert (told(taken) + told(effects)).count("stale") == 1


def answer_all(state: FederationState, effects: tuple[Effect, ...]) -> Step:
    """Answer question after question until there is none; the effects of all that."""
    while state.pending is not None:
        [question] = [effect.question for effect in effects if isinstance(effect, AskModel)]
        state, more = step(state, answer(state, likely(question)))
        effects = (*(effect for effect in effects if not isinstance(effect, AskModel)), *more)
    return state, effects


def likely(question: Question[Answer]) -> Answer:
    """The answer of a model that moves every adapter by its own length, and likes the last one best."""
    match question:
        case TrainAnchor(start):
            return anchor(start)
        case MeasureLosses(_, adapters):
            return losses(*(float(len(adapters) - i) for i in range(len(adapters))))
        case AlignDeltas(_, base, _, deltas):
            return AlignedDeltas(tuple(delta + base for delta in deltas), 2.0, 1.0, 0.25)
    raise AssertionError(f"nobody asks {question}")


# --- what is served ---


def test_an_average_is_published_with_its_version_when_the_gate_chooses_it(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = play(terms(GATED), adapter(0), message("a", 5), message("b", 5))
    state, effects = step(state, answer(state, losses(3, 2, 1)))
    version = published(effects)
    assert (version.adapter, version.average) == (adapter(5), adapter(3))
    assert version.manifest.average is not None
    assert version.manifest.average.sha256 == adapter(3).digest
    assert version.manifest.release == ReleaseReport(version=1, variant="average", head=2, average=1, before=3)
    assert state.served == Served(1, "average", adapter(3))
    assert state.head.adapter == adapter(5)


def test_what_was_served_before_goes_on_being_served_while_nothing_is_better(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, _ = play(terms(GATED), adapter(0), message("a", 5), message("b", 5))
    state, _ = step(state, answer(state, losses(3, 2, 1)))
    served = state.served
    for version in (2, 3):
        for node in ("a", "b"):
            state, effects = step(state, message(node, 5, version - 1, state.head.digest))
        assert isinstance(effects[-1], AskModel)
        assert effects[-1].question.adapters[0] == served.adapter
        state, effects = step(state, answer(state, losses(1, 2, 3)))
        assert state.served == served
        assert state.head.version == version
        said = published(effects)
        assert (said.manifest.average, said.average) == (None, None)
        assert (said.manifest.release.version, said.manifest.release.variant) == (1, "average")


def test_without_a_release_stage_every_head_is_served(
    config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    state, effects = found(config(), adapter(1), 0)
    assert state.served == Served(0, "head", adapter(1))
    assert published(effects).manifest.release == ReleaseReport(version=0, variant="head")
    state, effects = play(
        config(), adapter(1), message("a", 5, 0, adapter(1).digest), message("b", 5, 0, adapter(1).digest)
    )
    assert state.served == Served(1, "head", adapter(6))
    assert published(effects).manifest.release == ReleaseReport(version=1, variant="head")
    assert published(effects).manifest.average is None


def test_the_running_average_is_remembered_from_version_to_version_and_not_under_another_strategy(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    averaging = FedBuff(buffer_size=1, release=ReleaseStage(choose="average"))
    state, _ = play(terms(averaging), adapter(0), message("a", 5))
    assert state.served.adapter == adapter(0.4 * 0 + 0.6 * 5)
    state, _ = step(state, message("a", 5, 1, state.head.digest))
    assert state.served.adapter == adapter(0.5 * 3 + 0.5 * 10)
    same, _ = step(state, Configured(1, terms(averaging, limits=Limits(nodes=3))))
    assert same.memory == state.memory
    other, _ = step(state, Configured(1, terms(averaging.model_copy(update={"step": 2.0}))))
    assert other.memory == {}
    assert other.served == state.served


@pytest.mark.parametrize("strategy", [ANCHORED, BOTH], ids=["anchor", "anchor and gate"])
def test_an_anchor_that_makes_infinite_values_makes_no_version(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, strategy: Strategy
) -> None:
    far = strategy.model_copy(update={"step": 10.0})
    state, _ = play(terms(far), adapter(0), message("a", 1), message("b", 1))
    state, effects = step(state, answer(state, anchor(adapter(3e38))))
    state, effects = answer_all(state, effects)
    assert told(effects) == ["rejected", "rejected"]
    [reason, _] = [effect.receipt.reason for effect in effects if isinstance(effect, SendReceipt)]
    assert reason == "the updates of this buffer add up to infinite values"
    assert (state.head.version, state.pending, state.memory, state.served.version) == (0, None, {}, 0)
    state, _ = step(state, message("a", 1, sequence=1))
    _, effects = step(state, message("b", 1, sequence=1))
    assert told(effects) == ["accepted", "TrainAnchor"]
