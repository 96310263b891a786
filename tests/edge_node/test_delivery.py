"""From the outbox to the receipt."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from edge_node.core import next_deadline, node_metrics
from edge_node.effects import DropUpdate, Note, OfferUpdate, SendChunks, SendUpdate, SettleUpdate, StoreUpdate, Warn
from edge_node.events import BrokerLost
from edge_node.state import WaitingUpdate
from schemas.messages import Receipt
from schemas.topics import CoordinatorStateOf, GlobalHead, ReceiptFor


@pytest.fixture
def learner(start_node: Any, coordinator: Any) -> Any:
    """A node that trains on version 3; its outbox has room for six updates."""
    node = start_node(outbox_updates=6, resend_after_s=30)
    node.joins(coordinator.terms())
    node.receives(coordinator.version(3))
    return node


def sent(effects: Any) -> list[str]:
    return [effect.update_id for effect in effects if isinstance(effect, SendUpdate | OfferUpdate)]


def comes_back(node: Any, version: Any) -> Any:
    """Connected again, and the head heard: what the node does then."""
    return (*node.connects(), *node.hears(GlobalHead(), version.pointer))


def on_disk(node: Any) -> Any:
    """The outbox as a later process finds it."""
    return tuple(
        WaitingUpdate(waiting.update_id, waiting.sequence, waiting.size, waiting.base_version, is_new=False)
        for waiting in node.state.outbox
    )


def test_an_update_is_on_disk_before_it_is_sent(learner: Any) -> None:
    effects = learner.finishes(2.0)
    kinds = [type(effect) for effect in effects]
    assert kinds.index(StoreUpdate) < kinds.index(SendUpdate)


@pytest.mark.parametrize("status", ["accepted", "aggregated", "duplicate"])
def test_an_update_is_forgotten_and_counted_once_it_is_safe(learner: Any, status: str) -> None:
    update = learner.learns(2.0)
    effects = learner.is_told(update, status)
    assert SettleUpdate(update.update_id) in effects
    assert Note(f"update {update.update_id[:8]} accepted", update.update_id) in effects
    assert learner.state.outbox == ()
    assert (learner.state.memory.participation, learner.state.updates_accepted) == (1, 1)


@pytest.mark.parametrize("status", ["stale", "rejected"])
def test_an_update_that_nobody_wants_is_forgotten_and_the_log_says_why(learner: Any, status: str) -> None:
    update = learner.learns(2.0)
    effects = learner.is_told(update, status, reason="train on a newer version")
    assert DropUpdate(update.update_id) in effects
    assert Warn(f"update {update.update_id[:8]} {status}: train on a newer version", update.update_id) in effects
    assert (learner.state.memory.participation, learner.state.updates_rejected) == (0, 1)


def test_an_update_that_is_thrown_away_after_it_was_accepted_is_in_the_log(learner: Any) -> None:
    update = learner.learns(2.0)
    learner.is_told(update, "accepted")
    warning, *_ = learner.is_told(update, "rejected", reason="too large")
    assert warning == Warn(
        f"update {update.update_id[:8]} was accepted, and now is rejected: too large", update.update_id
    )
    assert learner.state.updates_rejected == 1


def test_a_second_receipt_changes_nothing_but_tells_where_the_update_went(learner: Any) -> None:
    update = learner.learns(2.0)
    learner.is_told(update, "accepted")
    before = learner.state
    assert learner.is_told(update, "accepted") == ()
    assert learner.is_told(update, "aggregated", version=4) == (
        Note(f"update {update.update_id[:8]} went into version 4", update.update_id, 4),
    )
    assert learner.state == replace(before, settled=())
    assert learner.is_told(update, "aggregated", version=5) == ()  # what was said once is not said again


def test_a_receipt_for_another_node_or_an_unknown_update_settles_nothing(learner: Any) -> None:
    update = learner.learns(2.0)
    stray = Receipt(update_id=update.update_id, status="accepted")
    learner.hears(ReceiptFor("home-2"), stray)
    learner.hears(ReceiptFor(learner.name), stray.model_copy(update={"update_id": "0" * 32}))
    assert [waiting.update_id for waiting in learner.state.outbox] == [update.update_id]


def test_chunks_that_the_coordinator_misses_are_sent_again_at_once(learner: Any) -> None:
    update = learner.learns(2.0)
    learner.hands_over(update)
    effects = learner.is_told(update, "incomplete", missing=(1, 4))
    assert SendChunks(update.update_id, (1, 4)) in effects


def test_a_coordinator_that_never_has_enough_cannot_make_a_node_send_without_end(learner: Any) -> None:
    update = learner.learns(2.0)
    answers = []
    for _ in range(100):
        learner.hands_over(update)
        answers.append(learner.is_told(update, "incomplete", missing=(0,)))
    assert sum(any(isinstance(effect, SendChunks) for effect in effects) for effects in answers) == 3


def test_an_update_without_a_receipt_is_sent_again_ever_more_rarely(learner: Any) -> None:
    update = learner.learns(2.0)
    begun, sent_at = learner.now, []
    learner.hands_over(update)
    while learner.now < begun + 1000:
        if update.update_id in sent(learner.waits(1)):
            sent_at.append(learner.now - begun)
            learner.hands_over(update)
    assert 22 <= sent_at[0] <= 39
    pauses = [later - earlier for earlier, later in pairwise(sent_at)]
    assert pauses == sorted(pauses)
    assert 4 <= len(sent_at) <= 6


def test_two_updates_are_not_sent_again_in_step(learner: Any) -> None:
    for value in (2.0, 3.0):
        learner.hands_over(learner.learns(value, seconds=0.0))
    first, second = learner.state.outbox
    assert first.again_at != second.again_at


def test_at_most_four_updates_are_in_flight(learner: Any) -> None:
    updates = [learner.learns(float(value)) for value in range(2, 7)]
    assert [waiting.attempts for waiting in learner.state.outbox] == [1, 1, 1, 1, 0]
    effects = learner.is_told(updates[0], "accepted")
    assert sent(effects) == [updates[4].update_id]


# --- a coordinator that has more than it can take ---


def test_an_update_that_is_put_off_is_kept_and_sent_again_no_sooner_than_asked(learner: Any) -> None:
    update = learner.learns(2.0)
    learner.hands_over(update)
    effects = learner.is_told(update, "overloaded", reason="come again", retry_after_s=30)
    assert not any(isinstance(effect, DropUpdate | SettleUpdate) for effect in effects)
    assert "put off: come again. Next try in " in next(e.text for e in effects if isinstance(e, Warn))
    assert learner.state.updates_rejected == 0
    assert sent(learner.waits(30)) == []
    deadline = next_deadline(learner.state)
    assert deadline is not None
    assert sent(learner.waits(deadline - learner.now)) == [update.update_id]
    assert learner.state.updates_sent == 1


def pauses_of(node: Any, times: int) -> list[float]:
    """How long a node waits each time when it is put off so often in a row."""
    update, pauses = node.learns(2.0), []
    for _ in range(times):
        node.is_told(update, "overloaded", retry_after_s=30)
        pauses.append(node.state.quiet_until - node.now)
        assert update.update_id in sent(node.waits(pauses[-1]))
    return pauses


def test_each_pause_is_longer_than_the_last_up_to_a_bound_until_one_is_taken(learner: Any) -> None:
    pauses = pauses_of(learner, 10)
    assert pauses[:5] == sorted(pauses[:5]) and pauses[4] > 100
    assert max(pauses) <= 30 + 600 * 1.25
    learner.is_told(learner.learns(3.0), "accepted")
    assert pauses_of(learner, 1) == pauses[:1]


def test_two_nodes_that_are_put_off_do_not_come_back_in_step(start_node: Any, coordinator: Any) -> None:
    pauses = []
    for name in ("home-1", "home-2"):
        node = start_node(node=name)
        node.joins(coordinator.terms())
        node.receives(coordinator.version(3))
        pauses.append(pauses_of(node, 3))
    assert all(one != other for one, other in zip(*pauses, strict=True))


def test_answers_to_all_that_was_on_its_way_are_one_pause(learner: Any) -> None:
    updates = [learner.learns(float(value)) for value in (2, 3, 4)]
    learner.is_told(updates[0], "overloaded", retry_after_s=30)
    until = learner.state.quiet_until
    for update in updates[1:]:
        assert learner.is_told(update, "overloaded", retry_after_s=30) == ()
    assert learner.state.quiet_until == until


def test_nothing_is_trained_during_a_pause_and_then_the_newest_goes_first(learner: Any, coordinator: Any) -> None:
    old = [learner.learns(float(value)) for value in (2, 3, 4, 5)]
    learner.is_told(old[0], "overloaded", retry_after_s=30)
    for update in old[1:]:
        learner.is_told(update, "overloaded", retry_after_s=30)
    learner.receives(coordinator.version(4))
    new = [learner.learns(6.0)]  # was under way, from version 3
    assert learner.state.training is None and node_metrics(learner.state, learner.now).idle == "resting"
    effects = learner.waits(learner.state.quiet_until - learner.now)
    assert learner.state.training.job.start.pointer.version == 4
    assert sent(effects) == [update.update_id for update in old]  # as old as the new one, and made before it
    for update in old:
        learner.is_told(update, "overloaded", retry_after_s=30)
    new.append(learner.learns(7.0))
    first = sent(learner.waits(learner.state.quiet_until - learner.now))[0]
    assert (first, new[1].base_version) == (new[1].update_id, 4)


def test_a_broker_or_a_head_that_comes_back_does_not_end_a_pause(learner: Any, coordinator: Any) -> None:
    update = learner.learns(2.0)
    learner.is_told(update, "overloaded", retry_after_s=30)
    learner.tell(BrokerLost(learner.now, "the broker is away"))
    assert sent(comes_back(learner, coordinator.version(3))) == []
    assert sent(learner.receives(coordinator.version(4))) == []


def test_nothing_is_sent_while_the_broker_is_away(learner: Any, coordinator: Any) -> None:
    learner.tell(BrokerLost(learner.now, "the broker is away"))
    update = learner.learns(2.0)
    assert sent(learner.waits(1000)) == []
    assert sent(comes_back(learner, coordinator.version(3))) == [update.update_id]


def test_a_broker_that_keeps_the_head_to_itself_is_waited_for_a_moment_only(learner: Any) -> None:
    learner.tell(BrokerLost(learner.now, "the broker is away"))
    update = learner.learns(2.0)
    assert sent(learner.connects()) == []
    deadline = next_deadline(learner.state)
    assert deadline is not None
    assert sent(learner.waits(deadline - learner.now)) == [update.update_id]


def test_what_waited_on_disk_is_offered_in_its_order_after_a_restart(
    learner: Any, start_node: Any, coordinator: Any
) -> None:
    updates = [learner.learns(float(value)) for value in range(2, 7)]
    node = start_node(outbox=on_disk(learner))
    effects = comes_back(node, coordinator.version(3))
    assert [e for e in effects if isinstance(e, OfferUpdate)] == [OfferUpdate(u.update_id) for u in updates[:4]]
    assert not any(isinstance(effect, SendUpdate) for effect in effects)


def test_what_is_from_the_newest_base_is_sent_first(learner: Any, start_node: Any, coordinator: Any) -> None:
    updates = []
    for version in (4, 5, 6):
        learner.receives(coordinator.version(version))
        updates += [learner.learns(float(version)), learner.learns(float(version) + 0.5)]
    assert [update.base_version for update in updates] == [3, 4, 4, 5, 5, 6]
    node = start_node(outbox=on_disk(learner))
    assert sent(comes_back(node, coordinator.version(6))) == [updates[i].update_id for i in (5, 3, 4, 1)]


def test_a_node_that_was_away_for_days_drops_what_nobody_would_take(
    learner: Any, start_node: Any, coordinator: Any
) -> None:
    updates = []
    for version in (4, 90, 100):
        learner.receives(coordinator.version(version))
        updates.append(learner.learns(float(version)))
    assert [update.base_version for update in updates] == [3, 4, 90]
    node = start_node(outbox=on_disk(learner), terms=coordinator.terms(max_staleness=20))
    effects = comes_back(node, coordinator.version(110))
    assert sent(effects) == [updates[2].update_id]
    assert [e.update_id for e in effects if isinstance(e, DropUpdate)] == [updates[0].update_id, updates[1].update_id]
    why = f"update {updates[0].update_id[:8]} dropped, too old to be taken: it is from version 3, the newest is 110"
    assert any(isinstance(effect, Warn) and effect.text.startswith(why) for effect in effects)


def test_a_federation_that_does_not_say_what_it_takes_is_sent_everything(
    learner: Any, start_node: Any, coordinator: Any
) -> None:
    update = learner.learns(2.0)
    node = start_node(outbox=on_disk(learner), terms=coordinator.terms())
    assert sent(comes_back(node, coordinator.version(999))) == [update.update_id]


def test_an_update_whose_receipt_may_be_on_its_way_is_not_dropped_however_old_it_got(
    learner: Any, coordinator: Any
) -> None:
    learner.hears(CoordinatorStateOf(), coordinator.terms(max_staleness=0))
    update = learner.learns(2.0)
    learner.hands_over(update)
    effects = learner.receives(coordinator.version(4))
    assert not any(isinstance(effect, DropUpdate) for effect in effects)
    assert DropUpdate(update.update_id) in learner.waits(100)


def test_a_half_sent_update_that_has_become_too_old_meanwhile_is_given_up(learner: Any, coordinator: Any) -> None:
    learner.hears(CoordinatorStateOf(), coordinator.terms(max_staleness=20))
    update = learner.learns(2.0)
    learner.tell(BrokerLost(learner.now, "the link is cut"))
    learner.waits(3 * 24 * 3600)
    assert DropUpdate(update.update_id) in comes_back(learner, coordinator.version(100))


def test_a_link_that_takes_hours_for_one_update_is_not_given_the_update_twice(learner: Any) -> None:
    update = learner.learns(2.0)
    assert sent(learner.waits(10_000)) == []
    assert learner.is_told(update, "incomplete", missing=(7,)) == ()
    learner.hands_over(update)
    assert sent(learner.waits(15)) == []
    assert sent(learner.waits(60)) == [update.update_id]


def test_a_coordinator_that_returns_gets_time_to_answer_and_then_everything_again(
    learner: Any, coordinator: Any
) -> None:
    update = learner.learns(2.0)
    learner.hands_over(update)
    learner.hears(CoordinatorStateOf(), coordinator.terms(online=False))
    learner.waits(500)
    learner.hands_over(update)
    learner.hears(CoordinatorStateOf(), coordinator.terms(boot_id="c1" * 16, epoch=2))
    assert sent(learner.waits(15)) == []
    assert sent(learner.waits(30)) == [update.update_id]


def test_an_outbox_over_its_bytes_drops_the_oldest_base_and_keeps_the_newest(start_node: Any, coordinator: Any) -> None:
    small = 1 << 20
    node = start_node(outbox_bytes=small)
    node.joins(coordinator.terms())
    node.receives(coordinator.version(3))
    first = node.learns(2.0)
    (waiting,) = node.state.outbox
    node.state = replace(node.state, outbox=(replace(waiting, size=small),))
    effects = node.finishes(3.0)
    assert DropUpdate(first.update_id) in effects
    assert Warn(f"update {first.update_id[:8]} dropped: the outbox is full", first.update_id) in effects
    assert len(node.state.outbox) == 1


def test_an_outbox_that_was_made_smaller_is_trimmed_at_the_start(learner: Any, start_node: Any) -> None:
    for value in range(2, 7):
        learner.learns(float(value))
    node = start_node(outbox=learner.state.outbox, outbox_updates=2)
    assert [waiting.sequence for waiting in node.state.outbox] == [3, 4]


def test_the_node_sleeps_exactly_until_the_next_thing_is_due(learner: Any, coordinator: Any) -> None:
    learner.hears(CoordinatorStateOf(), coordinator.terms(finished=True))
    assert next_deadline(learner.state) is None
    learner.hears(CoordinatorStateOf(), coordinator.terms(one_update_per_version=True))
    update = learner.learns(2.0)
    assert next_deadline(learner.state) is None  # the broker has not taken it yet
    learner.hands_over(update)
    deadline = next_deadline(learner.state)
    assert deadline == learner.state.outbox[0].again_at
    assert sent(learner.waits(deadline - learner.now - 0.001)) == []
    assert len(sent(learner.waits(0.002))) == 1
