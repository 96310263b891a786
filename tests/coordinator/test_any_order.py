"""Updates, answers, ticks, restarts and new terms in any order: the same fold twice, and no update lost or doubled."""

from collections.abc import Callable
from itertools import chain, pairwise

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from coordinator.core import found, step
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
    Effect,
    Event,
    FederationConfig,
    PublishRelease,
    PublishVersion,
    QuestionId,
    Received,
    SendReceipt,
    Started,
    Ticked,
)
from coordinator.strategies import (
    AlignFed,
    AlignFedLiteral,
    CalibrationOnly,
    FedAsync,
    FedAvg,
    FedBuff,
    FedEx,
    FLoRA,
    Strategy,
)
from schemas.adapter import Adapter

MakeAdapter = Callable[..., Adapter]
MakeConfig = Callable[..., FederationConfig]
MakeMessage = Callable[..., Received]

SECOND = 1_000_000_000

STRATEGIES: list[Strategy] = [
    FedBuff(buffer_size=2, anchor=AnchorStage(), release=ReleaseStage(choose="gated")),
    FedAsync(max_staleness=1, release=ReleaseStage(choose="gated")),
    FedAvg(nodes_per_round=2, anchor=AnchorStage(), timeout_s=20),
    FedEx(buffer_size=2, anchor=AnchorStage(), release=ReleaseStage(choose="average")),
    AlignFed(buffer_size=2),
    AlignFed(preset="patient", buffer_size=3, align="semantic", timeout_s=15),
    AlignFed(preset="unlabelled", buffer_size=2, align="transplant"),
    AlignFed(buffer_size=1, align="transplant", max_staleness=1),
    AlignFedLiteral(buffer_size=2),
    FLoRA(buffer_size=2, max_staleness=2),
    CalibrationOnly(buffer_size=2, release=ReleaseStage(choose="gated")),
]
DELTAS = st.sampled_from([-4, -1, 0, 0.1, 1 / 3, 1, 2, 7])
UPDATES = st.tuples(st.just("update"), st.sampled_from("abc"), DELTAS, st.integers(0, 2))
ANSWERS = st.tuples(st.just("answer"), DELTAS, st.permutations([1.0, 2.0, 3.0]))
DISTURBANCES = st.one_of(
    st.tuples(st.just("junk"), st.binary(max_size=40)),
    st.tuples(st.just("late answer"), st.integers(0, 2), st.integers(0, 3)),
    st.tuples(st.just("tick"), st.integers(1, 30)),
    st.tuples(st.just("restart")),
    st.tuples(st.just("configure"), st.sampled_from(STRATEGIES)),
)
TURNS = st.tuples(st.lists(UPDATES, max_size=3), st.lists(ANSWERS, max_size=3), st.lists(DISTURBANCES, max_size=1))


class Story:
    """Turns what may happen into events that can: updates from versions there were, answers to what was asked."""

    def __init__(self, config: FederationConfig, first: Adapter, message: MakeMessage, adapter: MakeAdapter) -> None:
        self.config, self.first = config, first
        self.message, self.adapter = message, adapter
        self.state, effects = found(config, first, 0)
        self.events: list[Event] = []
        self.told = list(effects)
        self.now = 0
        self.asked: dict[QuestionId, Question[Answer]] = {}
        self._note(effects)

    def act(self, kind: str, *how: object) -> None:
        self.now += SECOND
        if event := getattr(self, f"_{kind.replace(' ', '_')}")(*how):
            self.events.append(event)
            self.state, effects = step(self.state, event)
            self.told += effects
            self._note(effects)

    def _note(self, effects: tuple[Effect, ...]) -> None:
        self.asked |= {effect.question_id: effect.question for effect in effects if isinstance(effect, AskModel)}

    def _update(self, node: str, delta: float, age: int) -> Event:
        version = max(self.state.digests, default=0) - age
        version = version if version in self.state.digests else self.state.head.version
        return self.message(node, delta, version, self.state.digests[version], len(self.events), at_ns=self.now)

    def _answer(self, delta: float, order: list[float]) -> Event | None:
        if not (waiting := self._open()):
            return None
        match self.asked[waiting[0]]:
            case TrainAnchor():
                said: Answer = TrainedAnchor(self.adapter(delta), 2.5, 1.5, seconds=2)
            case MeasureLosses():
                said = MeasuredLosses(tuple(order[:2]), seconds=1)
            case AlignDeltas(deltas=deltas):
                said = AlignedDeltas(tuple(one * delta for one in deltas), *order[:2], seconds=1)
        return Answered(self.now, waiting[0], answer_to_bytes(said))

    def _open(self) -> list[QuestionId]:
        """What waits for its answer: a version's question before one in the background."""
        return [one.id for one in self.state.open_questions]

    def _junk(self, payload: bytes) -> Event | None:
        return Answered(self.now, (self._open() or [(1, 0)])[0], payload)

    def _late_answer(self, version: int, index: int) -> Event | None:
        asked = (self.state.head.version - version, index)
        if asked in self._open():
            return None
        return Answered(self.now, asked, answer_to_bytes(MeasuredLosses((1.0, 2.0), seconds=1)))

    def _tick(self, seconds: int) -> Event:
        self.now += seconds * SECOND
        return Ticked(self.now)

    def _restart(self) -> Event:
        return Started(self.now)

    def _configure(self, strategy: Strategy) -> Event:
        return Configured(self.now, self.state.config.model_copy(update={"strategy": strategy}))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(strategy=st.sampled_from(STRATEGIES), turns=st.lists(TURNS, min_size=3, max_size=15))
def test_whatever_happens_in_any_order_a_second_fold_agrees_and_no_update_is_lost_or_counted_twice(
    config: MakeConfig,
    calibration: CalibrationTerms,
    adapter: MakeAdapter,
    message: MakeMessage,
    strategy: Strategy,
    turns: list[tuple[list[tuple[object, ...]], ...]],
) -> None:
    story = Story(config(strategy, calibration=calibration), adapter(1), message, adapter)
    for kind, *how in chain.from_iterable(chain.from_iterable(turns)):
        story.act(str(kind), *how)
    agrees(story)
    nothing_lost(story)


def agrees(story: Story) -> None:
    """Folding the events again gives the same state and the same effects."""
    state, effects = found(story.config, story.first, 0)
    again = list(effects)
    for event in story.events:
        state, effects = step(state, event)
        again += effects
    assert state == story.state
    assert again == story.told


def nothing_lost(story: Story) -> None:
    """Every accepted update is in one version, or refused, or still waits; versions follow each other."""
    state, receipts = story.state, [effect for effect in story.told if isinstance(effect, SendReceipt)]
    manifests = [effect.manifest for effect in story.told if isinstance(effect, PublishVersion)]
    assert [manifest.version for manifest in manifests] == list(range(state.head.version + 1))
    for before, after in pairwise(manifests):
        assert after.parent == before.digest
    releases = [effect.report for effect in story.told if isinstance(effect, PublishRelease)]
    for earlier, later in pairwise(releases):
        assert earlier.judged < later.judged <= state.head.version
        assert later.version in (earlier.version, later.judged)
    accepted = [effect.receipt.update_id for effect in receipts if effect.receipt.status == "accepted"]
    aggregated = [one.update_id for manifest in manifests for one in manifest.inputs]
    in_the_making = state.pending.flush.buffer.updates if state.pending else ()
    waiting = [update.update_id for update in (*in_the_making, *state.buffer.updates)]
    refused = [effect.receipt.update_id for effect in receipts if effect.receipt.status in ("stale", "rejected")]
    assert len(set(accepted)) == len(accepted)
    assert sorted(accepted) == sorted([*aggregated, *waiting, *(one for one in refused if one in accepted)])
