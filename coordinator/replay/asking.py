"""Make the versions of a recording of topics again where the base model had a part in them, by asking it again.

The model's answers are on no topic, but when they came can be seen there: each manifest says which anchor is in the
version and what had been judged by then. So a question is asked when it comes up, and its answer taken in right before
the first version that shows it. What operators ordered is on no topic either: from the first version that one has gone
back to, nothing is made again.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from broker.recording import Row, read_rows
from coordinator.core import step
from coordinator.journal import event_of_row
from coordinator.model_process import ModelJob
from coordinator.questions import TrainAnchor
from coordinator.replay.chain import check_chain
from coordinator.replay.outside import ReplayedTopics, judged
from coordinator.replay.recomputing import Blocking
from coordinator.replay.source import NotReplayable, open_topics
from coordinator.replay.virtual_time import Turn, begin, with_ticks
from coordinator.state import Answered, Asked, FederationConfig, FederationState, PublishVersion
from schemas.messages import GlobalManifest, InvalidMessage
from schemas.reading import address_of, message_on
from schemas.topics import GlobalManifestOf

Shown = Mapping[int, GlobalManifest]


def replay_asking(path: Path, config: FederationConfig, job: ModelJob, until: int | None = None) -> ReplayedTopics:
    """Replay a recording of topics under the coordinator's terms, up to version `until`.

    The base model runs in a process of its own. The versions come out the same bit for bit where its answers do: on the
    machine, and with the versions of this program and PyTorch, on which they were made. Raises RecordingError,
    ModelProcessDied.
    """
    chain = [checked for checked in check_chain(path) if until is None or checked.version <= until]
    if not chain:
        raise NotReplayable(f"{path} has no version: there is nothing to compare with")
    source, shown = open_topics(path, config), _manifests(path)
    went_back = min((v for v, manifest in shown.items() if manifest.rolled_back_to is not None), default=None)
    first = begin(source)
    made, state = {0: first.state.head.digest}, first.state
    with closing(Blocking(job)) as model:
        for row in source.rows():
            for after in with_ticks(state, row, lambda before, one: _taken(before, one, shown, model)):
                state = after.state
                made |= {e.manifest.version: e.manifest.digest for e in after.effects if isinstance(e, PublishVersion)}
            if state.head.version + 1 == went_back or (until is not None and state.head.version >= until):
                break
    assumptions = ["the terms are those of the settings, and the base model was asked again"]
    if went_back is not None:
        assumptions.append(f"an operator went back at version {went_back}: nothing was made again from there on")
    versions = tuple(judged(checked, made.get(checked.version)) for checked in chain)
    return ReplayedTopics(versions, tuple(assumptions), state=state)


def _manifests(path: Path) -> dict[int, GlobalManifest]:
    """Every version's manifest, as published."""
    found: dict[int, GlobalManifest] = {}
    for row in read_rows(path):
        match address_of(row.topic):
            case (_, GlobalManifestOf(version) as address) if row.payload:
                try:
                    found[version] = message_on(address, row.payload)
                except InvalidMessage:
                    continue  # no node could follow it either
    return found


def _taken(state: FederationState, row: Row, shown: Shown, model: Blocking) -> Iterator[Turn]:
    """One row, after the answers that the version it makes shows, and before those that the version waits for."""
    event = event_of_row(row)
    while True:
        after = Turn(row, *step(state, event))
        owed = _owed(state, shown) if _begins_a_version(state, after) else None
        if owed is None:
            break
        answered = _answered(state, owed, row, model)
        yield answered
        state = answered.state
    yield after
    while (pending := after.state.pending) is not None and pending.asked is not None:
        after = _answered(after.state, pending.asked, row, model)
        yield after


def _begins_a_version(before: FederationState, after: Turn) -> bool:
    return any(isinstance(effect, PublishVersion) for effect in after.effects) or (
        before.pending is None and after.state.pending is not None
    )


def _owed(state: FederationState, shown: Shown) -> Asked | None:
    """The question in the background, if the next version shows that it was answered by then."""
    asked, manifest = state.background, shown.get(state.head.version + 1)
    if asked is None or manifest is None:
        return None
    if isinstance(asked.question, TrainAnchor):
        return asked if manifest.anchor is not None and manifest.anchor.base_version >= asked.id[0] else None
    return asked if manifest.release.judged >= asked.id[0] else None


def _answered(state: FederationState, asked: Asked, row: Row, model: Blocking) -> Turn:
    return Turn(row, *step(state, Answered(row.received_at_ns, asked.id, model.payload(asked))))
