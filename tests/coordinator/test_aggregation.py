"""A version in the making: the base model is asked, updates go on coming, and the answer publishes."""

from collections.abc import Callable

import pytest

from coordinator.core import found, next_deadline, step
from coordinator.questions import (
    AlignDeltas,
    AlignedDeltas,
    Answer,
    MeasuredLosses,
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
    PublishVersion,
    Received,
    SendReceipt,
    Started,
    Ticked,
)
from coordinator.strategies import (
    AlignFed,
    AlignFedLiteral,
    FedAvg,
    FedBuff,
    Strategy,
)
from schemas.adapter import Adapter
from schemas.chunks import describe, split
from schemas.messages import MAX_INPUTS, UpdateManifest, split_body, update_id
from schemas.topics import UpdateChunk, UpdateManifestOf, parse, route

MakeAdapter = Callable[..., Adapter]
MakeConfig = Callable[..., FederationConfig]
MakeMessage = Callable[..., Received]
Step = tuple[FederationState, tuple[Effect, ...]]

SECOND = 1_000_000_000
PLAIN: dict[str, object] = {
    "norm_limit": None,
    "participation": False,
    "anchor": None,
    "release": ReleaseStage(),
    "step": 1,
    "staleness_exponent": 0.5,
}
ALIGNING = AlignFed(buffer_size=2, align="semantic", **PLAIN)
LITERAL = AlignFedLiteral(buffer_size=2)


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


def answer(state: FederationState, said: Answer | None = None, at_ns: int = 0) -> Answered:
    """The answer to the question that a version waits for; unless said otherwise, it leaves the deltas alone."""
    assert state.pending is not None and state.pending.asked is not None
    question = state.pending.asked.question
    assert isinstance(question, AlignDeltas)
    return Answered(at_ns, state.pending.asked.id, answer_to_bytes(said or aligned(*question.deltas)))


def aligned(*deltas: Adapter) -> AlignedDeltas:
    return AlignedDeltas(deltas, 2.0, 1.0, seconds=0.25)


@pytest.fixture
def opening(message: MakeMessage) -> tuple[Received, Received]:
    """What makes version 1, so that updates from version 0 are stale and have to be aligned."""
    return message("x", 3), message("y", 3)


def in_chunks(whole: Received) -> list[Received]:
    """The same update in two chunks: its manifest, then these."""
    text, body = split_body(whole.payload)
    address = parse("test", whole.topic)
    assert isinstance(address, UpdateManifestOf)
    entry = describe(body, "fp32", len(body) // 2, inline=0)
    manifest = UpdateManifest.from_bytes(text).model_copy(update={"body": entry}).to_bytes()
    node, id_ = address.node, update_id(manifest)
    parts = enumerate(split(body, len(body) // 2))
    return [
        Received(0, route("test", UpdateManifestOf(node, id_)).topic, manifest),
        *(Received(0, route("test", UpdateChunk(node, id_, index)).topic, part) for index, part in parts),
    ]


def published(effects: tuple[Effect, ...]) -> PublishVersion:
    [version] = [effect for effect in effects if isinstance(effect, PublishVersion)]
    return version


# --- asking ---


def test_a_question_leaves_the_version_in_the_making(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, opening: tuple[Received, Received]
) -> None:
    state, effects = play(terms(ALIGNING), adapter(0), *opening, message("a", 3), message("b", 6))
    assert told(effects) == ["accepted", "AlignDeltas"]
    assert effects[-1] == AskModel((1, 0), AlignDeltas("semantic", adapter(0), adapter(3), (adapter(3), adapter(6))))
    assert state.pending is not None
    assert [update.node for update in state.pending.flush.buffer.updates] == ["a", "b"]
    assert (state.head.version, state.buffer.groups) == (1, ())


def test_the_answer_publishes_the_version_with_what_was_answered(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, opening: tuple[Received, Received]
) -> None:
    state, _ = play(terms(ALIGNING), adapter(0), *opening, message("a", 3), message("b", 6))
    state, effects = step(state, answer(state, aligned(adapter(1), adapter(2)), at_ns=7))
    assert told(effects) == ["version 2", "aggregated", "aggregated"]
    manifest = published(effects).manifest
    share = 2**-0.5 / 2  # one version old, one of two
    assert [one.weight for one in manifest.inputs] == pytest.approx([share, share])
    assert state.head.adapter.values == pytest.approx([3 + share * (1 + 2)] * 2)
    [group] = manifest.groups
    assert (group.residual_before, group.residual_after, group.seconds) == (2, 1, 0.25)
    assert (state.pending, manifest.created_at_ns) == (None, 7)


def test_a_version_that_waits_leaves_the_questions_in_the_background_alone(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, opening: tuple[Received, Received]
) -> None:
    both = AlignFed(buffer_size=2, align="semantic", participation=False, step=1)
    state, effects = play(terms(both), adapter(0), *opening)
    assert told(effects)[-3:] == ["version 1", "aggregated", "aggregated"]  # its anchor is still being trained
    state, _ = step(state, message("a", 3))
    state, effects = step(state, message("b", 3))
    assert told(effects) == ["accepted", "AlignDeltas"]
    trained = answer_to_bytes(TrainedAnchor(adapter(8), 2.5, 1.5, seconds=2.0))
    assert state.background is not None
    state, effects = step(state, Answered(0, state.background.id, trained))
    assert told(effects) == ["TrainAnchor"]
    state, effects = step(state, answer(state))
    assert told(effects) == ["version 2", "aggregated", "aggregated"]
    assert published(effects).manifest.anchor is None  # the flush had begun before the anchor was there
    assert state.anchor is not None


def test_updates_that_come_while_the_model_thinks_wait_for_the_version_after(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, opening: tuple[Received, Received]
) -> None:
    state, _ = play(terms(ALIGNING), adapter(0), *opening, message("a", 3), message("b", 3))
    for late in (message("c", 6), message("d", 6)):
        state, effects = step(state, late)
        assert told(effects) == ["accepted"]
    assert [update.node for update in state.buffer.updates] == ["c", "d"]
    state, effects = step(state, answer(state))
    assert told(effects) == ["version 2", "aggregated", "aggregated", "AlignDeltas"]
    assert [one.node for one in published(effects).manifest.inputs] == ["a", "b"]
    assert isinstance(effects[-1], AskModel)
    assert effects[-1].question_id == (2, 0)
    state, effects = step(state, answer(state))
    assert [one.node for one in published(effects).manifest.inputs] == ["c", "d"]


def test_time_does_not_close_a_buffer_while_the_model_thinks_and_does_when_it_has_answered(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, opening: tuple[Received, Received]
) -> None:
    strategy = ALIGNING.model_copy(update={"timeout_s": 60})
    state, _ = play(terms(strategy), adapter(0), *opening, message("a", 3), message("b", 3))
    state, _ = step(state, message("c", 3, at_ns=5 * SECOND))
    assert next_deadline(state) is None
    state, effects = step(state, Ticked(1000 * SECOND))
    assert effects == ()
    state, effects = step(state, answer(state, at_ns=1001 * SECOND))
    assert told(effects) == ["version 2", "aggregated", "aggregated", "AlignDeltas"]


def test_a_buffer_whose_time_has_not_come_waits_on_after_the_answer(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, opening: tuple[Received, Received]
) -> None:
    strategy = ALIGNING.model_copy(update={"timeout_s": 60})
    state, _ = play(terms(strategy), adapter(0), *opening, message("a", 3), message("b", 3))
    state, _ = step(state, message("c", 3, at_ns=5 * SECOND))
    state, effects = step(state, answer(state, at_ns=6 * SECOND))
    assert told(effects) == ["version 2", "aggregated", "aggregated"]
    assert next_deadline(state) == 65 * SECOND


def test_with_one_update_per_version_what_is_in_the_making_counts(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, opening: tuple[Received, Received]
) -> None:
    patient = AlignFed(preset="patient", buffer_size=2, align="semantic", **PLAIN)
    state, _ = play(terms(patient), adapter(0), *opening, message("a", 3), message("b", 3))
    assert state.pending is not None
    state, effects = step(state, message("a", 3, sequence=1))
    [refused] = [effect.receipt for effect in effects if isinstance(effect, SendReceipt)]
    assert refused.status == "stale"
    assert refused.reason == "version 2 has an update of this node already: wait for it"
    assert told(step(state, message("c", 3))[1]) == ["accepted"]


def test_a_copy_of_an_update_in_the_making_is_a_duplicate_without_a_version(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, opening: tuple[Received, Received]
) -> None:
    state, _ = play(terms(ALIGNING), adapter(0), *opening, message("a", 3), message("b", 3))
    _, [effect] = step(state, message("a", 3))
    assert isinstance(effect, SendReceipt)
    assert (effect.receipt.status, effect.receipt.version) == ("duplicate", None)


def test_more_than_a_manifest_can_name_do_not_wait(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, opening: tuple[Received, Received]
) -> None:
    state, _ = play(terms(ALIGNING), adapter(0), *opening, message("a", 3), message("b", 3))
    for sequence in range(MAX_INPUTS):
        state, effects = step(state, message("c", 3, sequence=sequence))
        assert told(effects) == ["accepted"]
    state, effects = step(state, message("d", 3))
    [refused] = [effect.receipt for effect in effects if isinstance(effect, SendReceipt)]
    assert (refused.status, refused.retry_after_s) == ("overloaded", 30)
    assert refused.reason == "500 updates wait for the base model on the coordinator: keep this one and come again"
    assert len(state.buffer.updates) == MAX_INPUTS
    state, effects = step(state, answer(state))
    assert told(effects)[-1] == "AlignDeltas"
    state, effects = step(state, answer(state))
    assert len(published(effects).manifest.inputs) == MAX_INPUTS
    assert told(step(state, message("d", 3, 3, state.head.digest))[1]) == ["accepted"]


# --- answers that are none ---


@pytest.mark.parametrize("question_id", [(0, 0), (1, 1), (2, 0), (1, -1)])
def test_an_answer_to_another_question_is_dropped(
    terms: MakeConfig,
    adapter: MakeAdapter,
    message: MakeMessage,
    question_id: tuple[int, int],
    opening: tuple[Received, Received],
) -> None:
    state, _ = play(terms(ALIGNING), adapter(0), *opening, message("a", 3), message("b", 3))
    after, effects = step(state, Answered(1, question_id, answer_to_bytes(aligned(adapter(3), adapter(3)))))
    assert told(effects) == ["dropped: answer to no question"]
    assert (after.pending, after.head) == (state.pending, state.head)


def test_an_answer_while_nothing_is_asked_is_dropped(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, opening: tuple[Received, Received]
) -> None:
    payload = answer_to_bytes(aligned(adapter(3), adapter(3)))
    state, effects = play(terms(ALIGNING), adapter(0), *opening, message("a", 3), Answered(1, (1, 0), payload))
    assert told(effects) == ["dropped: answer to no question"]
    assert (state.head.version, len(state.buffer.updates)) == (1, 1)


def test_an_answer_given_twice_counts_once(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, opening: tuple[Received, Received]
) -> None:
    several = ALIGNING.model_copy(update={"buffer_size": 3})
    state, _ = play(terms(several), adapter(0), *opening, message("z", 3), message("a", 3), message("b", 3))
    state, effects = step(state, message("c", 3))
    first = answer(state)
    state, effects = step(state, first)
    assert told(effects)[0] == "version 2"
    after, effects = step(state, first)
    assert told(effects) == ["dropped: answer to no question"]
    assert after.head == state.head


@pytest.mark.parametrize("payload", [b"", b"{}", b"\0" * 100, b'{"kind":"anchor"}\n', b"[" * 10_000])
def test_an_answer_that_cannot_be_read_is_dropped_and_the_true_one_still_counts(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, payload: bytes, opening: tuple[Received, Received]
) -> None:
    state, _ = play(terms(ALIGNING), adapter(0), *opening, message("a", 3), message("b", 3))
    after, effects = step(state, Answered(1, (1, 0), payload))
    assert told(effects) == ["dropped: answer that cannot be read"]
    assert after.pending == state.pending
    _, effects = step(after, answer(after))
    assert told(effects) == ["version 2", "aggregated", "aggregated"]


@pytest.mark.parametrize("kind", ["another kind", "too few deltas", "too many deltas"])
@pytest.mark.parametrize("strategy", [ALIGNING, LITERAL], ids=lambda strategy: strategy.name)
def test_an_answer_that_does_not_fit_its_question_is_dropped(
    terms: MakeConfig,
    adapter: MakeAdapter,
    message: MakeMessage,
    opening: tuple[Received, Received],
    strategy: Strategy,
    kind: str,
) -> None:
    said: dict[str, Answer] = {
        "another kind": MeasuredLosses((1.0, 2.0), 0),
        "too few deltas": aligned(adapter(1)),
        "too many deltas": aligned(adapter(1), adapter(1), adapter(1)),
    }
    state, effects = play(terms(strategy), adapter(0), *opening, message("a", 3), message("b", 3))
    assert isinstance(effects[-1], AskModel)
    after, effects = step(state, answer(state, said[kind]))
    assert told(effects) == ["dropped: answer that does not fit its question"]
    assert after.pending == state.pending


# --- a new process, new terms ---


def test_a_new_coordinator_asks_the_same_question_again(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, opening: tuple[Received, Received]
) -> None:
    state, asked = play(terms(ALIGNING), adapter(0), *opening, message("a", 3), message("b", 3))
    restarted, effects = step(state, Started(9))
    assert effects == asked[-1:]
    assert (restarted.epoch, restarted.pending) == (1, state.pending)
    _, effects = step(restarted, answer(restarted))
    assert told(effects) == ["version 2", "aggregated", "aggregated"]
    assert published(effects).manifest.epoch == 1


def test_a_version_of_groups_asks_about_one_after_the_other(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, opening: tuple[Received, Received]
) -> None:
    state, _ = play(terms(ALIGNING), adapter(0), *opening)
    one = state.head
    for node in ("x", "y"):
        state, _ = step(state, message(node, 3, 1, one.digest))
    state, _ = step(state, message("a", 3))
    state, effects = step(state, message("b", 3, 1, one.digest))
    assert effects[-1] == AskModel((2, 0), AlignDeltas("semantic", adapter(0), state.head.adapter, (adapter(3),)))
    state, effects = step(state, answer(state))
    assert effects == (AskModel((2, 1), AlignDeltas("semantic", one.adapter, state.head.adapter, (adapter(3),))),)
    _, effects = step(state, answer(state))
    assert told(effects) == ["version 3", "aggregated", "aggregated"]


def test_new_terms_put_a_version_in_the_making_back_among_what_waits(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, opening: tuple[Received, Received]
) -> None:
    state, _ = play(terms(ALIGNING), adapter(0), *opening, message("b", 3), message("c", 3), message("a", 9))
    state, effects = step(state, Configured(1, terms(ALIGNING.model_copy(update={"buffer_size": 4}))))
    assert (effects, state.pending) == ((), None)
    assert [update.node for update in state.buffer.updates] == ["a", "b", "c"]
    assert told(step(state, message("b", 3))[1]) == ["duplicate"]
    state, effects = step(state, message("d", 9))
    assert told(effects) == ["accepted", "AlignDeltas"]
    _, effects = step(state, answer(state))
    assert [one.node for one in published(effects).manifest.inputs] == ["a", "b", "c", "d"]


def test_under_terms_that_ask_nothing_what_was_in_the_making_is_published_at_once(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, opening: tuple[Received, Received]
) -> None:
    state, _ = play(terms(ALIGNING), adapter(0), *opening, message("a", 3), message("b", 5))
    state, effects = step(state, Configured(1, terms(FedBuff(buffer_size=2, staleness_exponent=0))))
    assert told(effects) == ["version 2", "aggregated", "aggregated"]
    assert state.head.adapter == adapter(3 + 4)


def test_without_its_calibration_set_a_version_in_the_making_is_made_without(
    config: MakeConfig,
    terms: MakeConfig,
    adapter: MakeAdapter,
    message: MakeMessage,
    opening: tuple[Received, Received],
) -> None:
    state, _ = play(terms(ALIGNING), adapter(0), *opening, message("a", 3), message("b", 5))
    state, effects = step(state, Configured(1, config(ALIGNING)))
    assert told(effects) == ["version 2", "aggregated", "aggregated"]
    assert state.head.adapter.values == pytest.approx([3 + 2**-0.5 * 4] * 2)


def test_what_was_in_the_making_when_the_last_version_moved_is_answered(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, opening: tuple[Received, Received]
) -> None:
    state, _ = play(terms(ALIGNING), adapter(0), *opening, message("a", 3), message("b", 3))
    state, _ = step(state, answer(state))
    for node in ("a", "b", "c"):
        state, _ = step(state, message(node, 3, 0, sequence=1))
    assert state.pending is not None
    state, effects = step(state, Configured(1, terms(ALIGNING, final_version=2)))
    assert told(effects) == ["stale", "stale", "stale"]
    assert (state.pending, state.buffer.groups, state.head.version) == (None, (), 2)


def test_what_waits_behind_the_last_version_is_answered_when_that_is_published(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, opening: tuple[Received, Received]
) -> None:
    state, _ = play(
        terms(ALIGNING, final_version=2), adapter(0), *opening, message("a", 3), message("b", 3), message("c", 3)
    )
    state, effects = step(state, answer(state))
    assert told(effects) == ["version 2", "aggregated", "aggregated", "stale"]
    assert state.buffer.groups == ()


def test_more_than_a_manifest_can_name_are_never_made_into_one_version(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, opening: tuple[Received, Received]
) -> None:
    state, _ = play(terms(ALIGNING), adapter(0), *opening, message("a", 3), message("b", 3))
    for sequence in range(MAX_INPUTS):
        state, _ = step(state, message("c", 3, sequence=sequence))
    waiting = MAX_INPUTS + 2
    state, effects = step(state, Configured(1, terms(FedBuff(buffer_size=2))))
    named = [len(effect.manifest.inputs) for effect in effects if isinstance(effect, PublishVersion)]
    assert max(named) <= MAX_INPUTS
    assert sum(named) + told(effects).count("stale") + len(state.buffer.updates) == waiting


def test_what_there_is_no_room_for_is_put_off_held_against_nobody_and_taken_later(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, opening: tuple[Received, Received]
) -> None:
    state, _ = play(terms(ALIGNING), adapter(0), *opening, message("a", 3), message("b", 3))
    for sequence in range(MAX_INPUTS):
        state, _ = step(state, message("c", 3, sequence=sequence))
    state, effects = step(state, message("d", 3))
    assert told(effects) == ["overloaded"]
    assert "d" not in state.nodes and state.dropped == {"overloaded": 1}
    state, _ = step(state, answer(state))  # the version is made, and all that waits is begun as the next
    _, effects = step(state, message("d", 3))
    assert told(effects)[0] == "accepted"


def test_the_chunks_of_what_is_put_off_may_stay_and_are_not_asked_for(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage, opening: tuple[Received, Received]
) -> None:
    state, _ = play(terms(ALIGNING), adapter(0), *opening, message("a", 3), message("b", 3))
    for sequence in range(MAX_INPUTS - 1):
        state, _ = step(state, message("c", 3, sequence=sequence))
    manifest, *chunks = in_chunks(message("d", 3))
    state, _ = step(state, manifest)
    state, _ = step(state, message("c", 3, sequence=MAX_INPUTS))
    for chunk in chunks:
        state, effects = step(state, chunk)
    assert told(effects) == ["overloaded"]
    state, effects = step(state, Ticked(60 * SECOND))
    assert told(effects) == []
    state, _ = step(state, answer(state))
    _, effects = step(state, manifest)
    assert told(effects)[0] == "accepted"


# --- what became too old meanwhile ---


@pytest.mark.parametrize("strategy", [ALIGNING, LITERAL], ids=lambda strategy: strategy.name)
def test_an_update_whose_base_was_forgotten_while_the_model_thought_is_refused_as_stale(
    terms: MakeConfig,
    adapter: MakeAdapter,
    message: MakeMessage,
    opening: tuple[Received, Received],
    strategy: Strategy,
) -> None:
    forgetful = strategy.model_copy(update={"max_staleness": 1})
    state, _ = play(terms(forgetful), adapter(0), *opening, message("a", 3), message("b", 3))
    state, taken = step(state, message("slow", 3))  # from version 0: one version old, which is allowed, for now
    state, effects = step(state, answer(state))
    assert state.head.version == 2
    assert (told(taken) + told(effects)).count("stale") == 1
    assert state.buffer.groups == ()


def test_in_a_synchronous_round_a_straggler_s_work_does_not_slip_into_the_next_one(
    terms: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    rounds = FedAvg(nodes_per_round=2, anchor=AnchorStage())
    state, _ = play(terms(rounds), adapter(0), message("a", 3), message("b", 3))
    state, effects = step(state, message("slow", 3))
    assert told(effects) == ["stale"]
    assert state.buffer.groups == ()
