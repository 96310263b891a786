"""What the base model does while updates come in: train the next version's anchor, judge what may be served. Pure.

No version waits for this. An anchor that comes late counts for less; a version that was not judged in time is passed
over for the newest one. One question is under way at a time, and where the model is slow anchors and judgements take
turns.
"""

import math
from dataclasses import replace

from coordinator.intake import Step
from coordinator.questions import Answer, Fold, MeasuredLosses, MeasureLosses, TrainAnchor, TrainedAnchor
from coordinator.stages import finite, passes_gate
from coordinator.state import Asked, AskModel, FederationState, PublishRelease
from coordinator.trust.robust import newest
from coordinator.updates import AnchorUpdate, Served
from schemas.messages import MAX_CHUNK_SIZE, MAX_CHUNKS, ReleaseReport

LARGEST_AVERAGED = MAX_CHUNKS * MAX_CHUNK_SIZE // 10  # parameters: a manifest must name both bodies' chunks


def ask_in_background(state: FederationState) -> Step:
    """Ask what is due, unless a question is under way."""
    question = _due(state)
    if state.background is not None or question is None:
        return state, ()
    asked = state.asking(question)
    return replace(state, background=asked, questions=state.questions + 1), (AskModel(asked.id, question),)


def take_background(state: FederationState, asked: Asked, answer: Answer) -> Step:
    """Keep an anchor for the next version, or decide what is served."""
    version, state = asked.id[0], replace(state, background=None)
    if isinstance(answer, TrainedAnchor):
        anchor = AnchorUpdate(version, answer.delta, answer.loss_before, answer.loss_after, answer.seconds)
        kept = state.config.strategy.kept_anchors
        anchors = newest({**state.anchors, version: answer.delta}, kept) if kept else {}
        return replace(state, anchor=anchor, anchored=version, anchors=anchors), ()
    assert isinstance(answer, MeasuredLosses) and isinstance(asked.question, MeasureLosses)
    _, judged = asked.question.adapters
    turned_down = 0 if passes_gate(answer) else state.turned_down + 1
    is_taken = turned_down == 0 or _nodes_overrule(state, turned_down, answer)
    served = Served(version, "average", judged) if is_taken else state.served
    state = replace(state, turned_down=0 if is_taken else turned_down)
    before, candidate = map(finite, answer.losses)
    return serve(
        state,
        served,
        ReleaseReport(
            version=served.version,
            variant=served.variant,
            judged=version,
            candidate=candidate,
            before=before,
            seconds=answer.seconds,
        ),
    )


def _nodes_overrule(state: FederationState, turned_down: int, answer: MeasuredLosses) -> bool:
    """Whether a candidate is served that the gate has just turned down, as it did so many in a row with this one."""
    fall_back, (_, candidate) = state.config.strategy.release.fall_back, answer.losses
    if fall_back is None or not math.isfinite(candidate):
        return False
    counts = state.ring.enrolled if state.config.root is not None else state.nodes.keys()
    reports = [ledger.held_out for node, ledger in state.nodes.items() if node in counts and not ledger.quarantine]
    return fall_back.overrules(turned_down, state.served.version, reports)


def alarms(state: FederationState, answer: MeasuredLosses) -> bool:
    """Whether the judgement just made is so bad that the head must go back to what nodes serve."""
    guard = state.config.strategy.release.guard
    before, candidate = answer.losses
    is_over = state.finished or state.release.is_taken
    return guard is not None and not is_over and guard.alarms(before, candidate)


def serve_newest(state: FederationState) -> Step:
    """Have the newest version served, its average where there is one, because the strategy serves every version."""
    served = Served(state.head.version, "head", state.head.adapter)
    if state.average is not None:
        served = Served(state.head.version, "average", state.average)
    return serve(state, served, unjudged(served))


def unjudged(served: Served) -> ReleaseReport:
    """The report on an adapter that is served because the strategy serves every version."""
    return ReleaseReport(version=served.version, variant=served.variant, judged=served.version)


def is_judged(state: FederationState) -> bool:
    """Whether the base model decides what is served; it judges averages alone."""
    return keeps_average(state) and state.config.strategy.release.asks(_folds(state))


def keeps_average(state: FederationState) -> bool:
    """Whether there is to be a running average: where the strategy serves it, and a manifest can name both bodies."""
    config = state.config
    return config.strategy.release.variant == "average" and config.layout.size <= LARGEST_AVERAGED


def serve(state: FederationState, served: Served, report: ReleaseReport) -> Step:
    """Have nodes serve this, for the reasons in the report."""
    return replace(state, served=served, release=report), (PublishRelease(report, served.adapter),)


def _due(state: FederationState) -> TrainAnchor | MeasureLosses | None:
    newest, judged = state.head.version, state.release.judged
    average = state.average if is_judged(state) and judged < newest else None
    may_train = (
        state.config.strategy.anchor is not None
        and _folds(state).get("anchor", 0) > 0
        and state.anchored < newest
        and not state.finished
    )
    if average is not None and (not may_train or judged < state.anchored):
        return MeasureLosses("gate", (state.served.adapter, average))
    return TrainAnchor(state.head.adapter, seed=newest) if may_train else None


def _folds(state: FederationState) -> dict[Fold, int]:
    calibration = state.config.calibration
    return dict(calibration.folds) if calibration else {}
