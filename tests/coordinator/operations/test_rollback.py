"""Back to an earlier version is a step forward: a new entry, above all before it, and recorded like any other."""

from dataclasses import replace
from pathlib import Path

import pytest

from broker.recording import Row, transaction
from coordinator.core import found, step
from coordinator.journal import event_of_row, open_journal, record, row_of_event, was_taken
from coordinator.recovery import restore
from coordinator.registry import Registry
from coordinator.replay.inside import replay_journal
from coordinator.replay.outside import replay_topics
from coordinator.state import Drop, Event, FederationState, PublishRelease, PublishVersion, Received, RolledBack
from coordinator.strategies import FedAsync, FedBuff
from coordinator.trust.verification import verify_chain
from schemas.adapter import Adapter


def back_to(version: int, adapter: Adapter, scope: str = "release", order: int = 1) -> RolledBack:
    return RolledBack(5, order, version, "head", scope, adapter.to_safetensors())  # type: ignore[arg-type]


@pytest.fixture
def state(config, adapter, message) -> FederationState:
    """Version 2, after versions of 0 and of 1."""
    state, _ = found(config(FedBuff(buffer_size=1)), adapter(0), 0)
    for number in range(2):
        update = message("a", 1, number, state.digests[number], sequence=number)
        state, _ = step(state, update)
    assert state.head.version == 2 and state.head.adapter == adapter(2)
    return state


def test_the_release_goes_back_with_a_higher_epoch_and_the_head_stays(state, adapter) -> None:
    after, effects = step(state, back_to(1, adapter(1)))
    assert after.epoch == state.epoch + 1
    assert after.head == state.head
    assert (after.served.version, after.served.adapter) == (1, adapter(1))
    [release] = effects
    assert isinstance(release, PublishRelease)
    assert (release.report.version, release.report.judged) == (1, 2)


def test_the_head_goes_back_as_a_new_version_that_says_so(state, adapter, message) -> None:
    after, effects = step(state, back_to(1, adapter(1), "head"))
    [version] = [effect for effect in effects if isinstance(effect, PublishVersion)]
    manifest = version.manifest
    assert (manifest.version, manifest.rolled_back_to, manifest.inputs) == (3, 1, ())
    assert (manifest.parent, manifest.digest) == (state.head.digest, adapter(1).digest)
    assert manifest.epoch == state.epoch + 1
    assert after.served.version == 3
    after, _ = step(after, message("a", 1, 3, after.head.digest, sequence=9))
    assert after.head.adapter == adapter(2)  # 1 and 1 more: nodes go on from there


def test_updates_that_wait_are_kept_for_the_version_after_it(config, adapter, message) -> None:
    state, _ = found(config(FedBuff(buffer_size=2)), adapter(0), 0)
    state, _ = step(state, message("a", 1))
    state, _ = step(state, back_to(0, adapter(0), "head"))
    assert [update.node for update in state.buffer.updates] == ["a"]
    state, _ = step(state, message("b", 3))
    assert state.head.version == 2


def test_what_became_too_old_by_it_is_refused(config, adapter, message) -> None:
    from coordinator.state import SendReceipt

    state, _ = found(config(FedAsync(max_staleness=1)), adapter(0), 0)
    state, _ = step(state, back_to(0, adapter(0), "head"))
    state, _ = step(state, back_to(0, adapter(0), "head", order=2))
    _, effects = step(state, message("a", 1))
    assert [effect.receipt.status for effect in effects if isinstance(effect, SendReceipt)] == ["stale"]


@pytest.mark.parametrize(
    "event",
    [
        RolledBack(5, 1, 1, "head", "release", b"no adapter"),
        RolledBack(5, 1, 1, "head", "head", b""),
    ],
)
def test_a_rollback_to_no_adapter_changes_nothing(state, event: Event) -> None:
    after, effects = step(state, event)
    assert (after.head, after.served, after.epoch) == (state.head, state.served, state.epoch)
    assert [type(effect) for effect in effects] == [Drop]


def test_a_rollback_to_a_version_that_is_not_there_yet_changes_nothing(state, adapter) -> None:
    after, _ = step(state, back_to(7, adapter(1)))
    assert after.served == state.served


def test_an_order_is_carried_out_once(state, adapter) -> None:
    once, _ = step(state, back_to(1, adapter(1)))
    twice, effects = step(once, back_to(0, adapter(0)))
    assert twice.served == once.served and [type(effect) for effect in effects] == [Drop]


def test_a_journal_from_before_rollbacks_were_numbered_replays(state, adapter) -> None:
    event = back_to(1, adapter(1), order=3)
    row = row_of_event(event)
    old = event_of_row(replace(row, topic=row.topic.replace("/3/", f"/{'0' * 32}/")))
    assert old == replace(event, number=None)
    assert step(state, old)[0].served == step(state, event)[0].served


def test_it_replays_and_a_restart_serves_what_was_rolled_back_to(tmp_path: Path, config, adapter, message) -> None:
    connection = open_journal(tmp_path / "journal.db")
    registry = Registry(tmp_path / "adapters")
    terms = config(FedBuff(buffer_size=1))
    state, _ = restore(connection, registry, terms, adapter(0), 0)
    events: list[Event] = [message("a", 1, 0), back_to(0, adapter(0)), back_to(0, adapter(0), "head", order=2)]
    for event in events:
        state, effects = step(state, event)
        row = Row(event.at_ns, event.topic, event.payload) if isinstance(event, Received) else row_of_event(event)
        with transaction(connection):
            record(connection, row, effects)
    assert [was_taken(connection, order) for order in (1, 2, 3, 12)] == [True, True, False, False]
    again, _ = restore(connection, registry, terms, adapter(0), 9)
    connection.close()
    assert (again.head, again.served) == (state.head, state.served)
    assert registry.release() == state.release
    assert replay_journal(tmp_path / "journal.db").agrees
    assert [version.fault for version in verify_chain(registry, None)] == [None, None, None]


def test_a_recording_of_topics_shows_it_as_an_earlier_version_over_again(tmp_path: Path, state, adapter) -> None:
    from broker.recording import write_recording
    from coordinator.publisher import Stamp, bodies, head_pointer, publication
    from schemas.topics import GlobalHead

    registry = Registry(tmp_path / "adapters")
    founded, effects = found(state.config, adapter(0), 0)
    after, more = step(founded, back_to(0, adapter(0), "head"))
    rows = []
    for effect in (*effects, *more):
        if isinstance(effect, PublishVersion):
            registry.add(effect.manifest, effect.adapter)
            published = [*bodies("test", registry, [effect.manifest]), head_pointer("test", effect.manifest, Stamp(1))]
            rows += [Row(0, one.topic, one.payload) for one in published]
    assert publication("test", GlobalHead(), b"").topic == rows[-1].topic
    write_recording(tmp_path / "topics.rec", rows)
    verdicts = [
        (version.version, version.verdict, version.reason)
        for version in replay_topics(tmp_path / "topics.rec").versions
    ]
    assert verdicts[1] == (1, "agrees", "version 0 over again, by the operator's word")
    assert after.head.version == 1
