"""The head goes back to what nodes serve when the gate finds the newest average much worse; then comes probation.

The model is not on the critical path: versions come out while it judges, and a return is one more version.
"""

import math
from collections.abc import Callable

import pytest

from coordinator.core import found, step
from coordinator.questions import (
    AlignDeltas,
    MeasuredLosses,
    MeasureLosses,
    TrainAnchor,
    TrainedAnchor,
    answer_to_bytes,
)
from coordinator.stages import ReleaseStage
from coordinator.state import (
    Answered,
    CalibrationTerms,
    Effect,
    FederationConfig,
    PublishVersion,
    Received,
    SendReceipt,
)
from coordinator.strategies import AlignFed
from coordinator.trust.robust import HeadGuard
from schemas.adapter import Adapter

MakeAdapter = Callable[..., Adapter]
MakeConfig = Callable[..., FederationConfig]
MakeMessage = Callable[..., Received]

GUARDED = AlignFed(
    buffer_size=2,
    step=1,
    norm_limit=None,
    participation=False,
    release=ReleaseStage(choose="gated", decay=0, guard=HeadGuard(probation=2)),
)


class Play:
    """A federation of two nodes, and a base model that answers as told."""

    def __init__(self, config: FederationConfig, adapter: MakeAdapter, message: MakeMessage) -> None:
        self.adapter, self.message, self.number = adapter, message, 0
        self.state, self.effects = found(config, adapter(1), 0)

    def update(self, node: str, delta: float, base: int | None = None) -> None:
        base = self.state.head.version if base is None else base
        self.number += 1
        self.do(self.message(node, delta, base, self.state.digests[base], self.number))

    def answer(self, delta: float = 1.0, losses: tuple[float, float] = (2.0, 1.0)) -> None:
        (asked,) = self.state.open_questions
        match asked.question:
            case TrainAnchor():
                said: TrainedAnchor | MeasuredLosses = TrainedAnchor(self.adapter(delta), 2.0, 1.0, 1.0)
            case MeasureLosses():
                said = MeasuredLosses(losses, 1.0)
            case AlignDeltas():
                raise AssertionError("nothing is aligned here")
        self.do(Answered(self.number, asked.id, answer_to_bytes(said)))

    def do(self, event: Received | Answered) -> None:
        self.state, self.effects = step(self.state, event)

    def round(self, delta: float, losses: tuple[float, float], nodes: str = "ab") -> None:
        """Whatever is still asked, then a version of two updates, its anchor, and the judgement of its average."""
        while self.asked is not None:
            self.answer(losses=(1.0, 1.0))
        for node in nodes:
            self.update(node, delta)
        self.answer()
        self.answer(losses=losses)

    @property
    def asked(self) -> object:
        return self.state.open_questions[0].question if self.state.open_questions else None

    @property
    def version(self) -> PublishVersion | None:
        return next((effect for effect in self.effects if isinstance(effect, PublishVersion)), None)


@pytest.fixture
def play(config: MakeConfig, calibration: CalibrationTerms, adapter: MakeAdapter, message: MakeMessage) -> Play:
    return Play(config(GUARDED, calibration=calibration), adapter, message)


def receipts(effects: tuple[Effect, ...]) -> list[str]:
    return [effect.receipt.status for effect in effects if isinstance(effect, SendReceipt)]


def test_a_much_worse_average_takes_the_head_back_to_what_is_served_in_a_version_of_its_own(play: Play) -> None:
    play.round(3, losses=(2.0, 1.0))
    served = play.state.served
    assert served.version == 1
    play.round(-9, losses=(1.0, 9.0))
    assert play.version is not None
    said = play.version.manifest
    assert (said.version, said.inputs, said.digest) == (3, (), served.adapter.digest)
    assert said.returned is not None
    assert (said.returned.version, said.returned.candidate, said.returned.before) == (1, 9.0, 1.0)
    assert play.state.head.adapter == play.state.average == served.adapter
    assert play.state.served.version == 1


def test_an_average_that_is_a_little_worse_is_not_served_and_the_head_goes_on(play: Play) -> None:
    play.round(3, losses=(2.0, 1.0))
    play.round(2, losses=(1.0, 1.06))
    assert play.version is None
    assert (play.state.head.version, play.state.served.version) == (2, 1)


def test_without_a_guard_the_head_goes_on_whatever_the_gate_finds(
    config: MakeConfig, calibration: CalibrationTerms, adapter: MakeAdapter, message: MakeMessage
) -> None:
    unguarded = GUARDED.model_copy(update={"release": ReleaseStage(choose="gated", decay=0)})
    play = Play(config(unguarded, calibration=calibration), adapter, message)
    play.round(3, losses=(2.0, 1.0))
    play.round(-9, losses=(1.0, math.inf))
    assert (play.version, play.state.head.version) == (None, 2)


def test_after_a_return_the_anchor_is_trained_from_the_good_head_and_that_of_the_bad_one_is_forgotten(
    play: Play,
) -> None:
    play.round(3, losses=(2.0, 1.0))
    play.round(-9, losses=(1.0, 9.0))
    assert play.state.anchor is None
    assert isinstance(play.asked, TrainAnchor) and play.asked.start == play.state.served.adapter


def test_on_probation_an_update_against_the_anchor_is_refused_and_its_node_told_why(play: Play) -> None:
    play.round(3, losses=(2.0, 1.0), nodes="ab")
    play.round(3, losses=(1.0, 0.9), nodes="cd")
    play.round(-9, losses=(0.9, 9.0), nodes="xy")
    play.answer(delta=1.0)
    play.update("a", 1)
    play.update("z", -1)
    refused = [e.receipt for e in play.effects if isinstance(e, SendReceipt) and e.receipt.status == "rejected"]
    assert len(refused) == 1 and "turns against" in str(refused[0].reason)
    assert play.version is not None and [given.node for given in play.version.manifest.inputs] == ["a"]


def test_updates_from_a_version_that_was_taken_back_are_still_taken_as_stale_ones(play: Play) -> None:
    play.round(3, losses=(2.0, 1.0))
    play.round(-9, losses=(1.0, 9.0))
    play.update("a", 1, base=2)
    assert receipts(play.effects) == ["accepted"]


def test_probation_ends_after_its_versions(play: Play) -> None:
    play.round(3, losses=(2.0, 1.0))
    play.round(-9, losses=(1.0, 9.0))
    assert play.state.probation_until == 3 + 2
    for _ in range(2):
        play.round(1, losses=(1.0, 1.0))
    assert play.state.head.version == play.state.probation_until


def test_a_second_return_soon_after_the_first_doubles_the_probation(play: Play) -> None:
    play.round(3, losses=(2.0, 1.0))
    play.round(-9, losses=(1.0, 9.0))
    play.round(1, losses=(1.0, 9.0))
    assert play.version is not None and play.version.manifest.returned is not None
    assert (play.state.returns, play.state.probation_until) == (2, play.state.head.version + 4)


def test_a_finished_federation_does_not_go_back(
    config: MakeConfig, calibration: CalibrationTerms, adapter: MakeAdapter, message: MakeMessage
) -> None:
    play = Play(config(GUARDED, calibration=calibration, final_version=2), adapter, message)
    play.round(3, losses=(2.0, 1.0))
    play.answer() if isinstance(play.asked, TrainAnchor) else None
    play.update("a", -9)
    play.update("b", -9)
    play.answer(losses=(1.0, 9.0))
    assert (play.state.head.version, play.state.served.version) == (2, 1)


def test_a_node_that_turns_against_the_anchor_is_left_out_and_told_so(play: Play) -> None:
    told: list[str] = []
    for partner in "abab":
        while play.asked is not None:
            play.answer(losses=(2.0, 2.0))
        play.update(partner, 2)
        play.update("x", -1)
        told += receipts(play.effects)
    assert told.count("rejected") == 4  # it points straight backwards
    assert play.state.nodes["x"].refusals == {"distrusted": 4}
    standing = play.state.nodes["x"].standing
    assert standing is not None and standing.agreement == pytest.approx(-1)


def test_a_buffer_of_which_nothing_is_trusted_makes_no_version_without_an_anchor(play: Play) -> None:
    for nodes in ("ab", "cd"):
        play.round(3, losses=(2.0, 2.0), nodes=nodes)
    play.round(-1, losses=(2.0, 2.0), nodes="xy")
    before = play.state.head.version
    play.update("x", -1)  # this version's anchor is used up by the next one
    play.update("a", 1)
    assert play.version is not None
    play.update("x", -1, base=before)
    play.update("y", -1, base=before)
    assert play.version is None and receipts(play.effects) == ["accepted", "rejected", "rejected"]
    assert play.state.head.version == before + 1 and play.state.buffer.updates == ()
