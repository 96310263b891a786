"""In a federation with keys an update counts if a key in force of its own node has signed it, and else not at all."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from broker.recording import Row, transaction
from coordinator.core import found, step
from coordinator.journal import open_journal, read_updates, record, row_of_event
from coordinator.recovery import FederationDiffers, restore
from coordinator.registry import Registry
from coordinator.replay.inside import replay_journal
from coordinator.replay.source import open_source
from coordinator.replay.what_if import Change, what_if
from coordinator.state import Drop, Effect, FederationState, KeysChanged, PublishVersion, Received, SendReceipt
from coordinator.strategies import FedBuff
from coordinator.trust.opened import opened_rows
from schemas.adapter import Adapter
from schemas.signing import SigningKey, sign
from schemas.topics import UpdateChunk, route
from schemas.trust import KeyRing

ROOT, KITCHEN, OFFICE, STRANGER = (SigningKey.from_bytes(bytes([number]) * 32) for number in range(4))
RING = KeyRing().with_key("kitchen", KITCHEN.public).with_key("office", OFFICE.public)


def signed(key: SigningKey, event: Received) -> Received:
    return replace(event, payload=sign(key, event.topic, event.payload))


@pytest.fixture
def state(config, adapter) -> FederationState:
    """A signed federation of two nodes that makes a version of every two updates."""
    founded, _ = found(config(FedBuff(buffer_size=2), root=ROOT.public), adapter(0), 0)
    return step(founded, KeysChanged(0, RING))[0]


def told(effects: tuple[Effect, ...]) -> list[tuple[str, str]]:
    return [(effect.node, effect.receipt.status) for effect in effects if isinstance(effect, SendReceipt)]


def test_a_signed_update_is_taken_and_its_copy_is_a_duplicate(state, message) -> None:
    update = signed(KITCHEN, message("kitchen", 1))
    state, effects = step(state, update)
    assert told(effects) == [("kitchen", "accepted")]
    assert told(step(state, update)[1]) == [("kitchen", "duplicate")]


def test_the_update_is_known_by_the_id_that_it_has_without_its_signature(state, message) -> None:
    event = message("kitchen", 1)
    state, _ = step(state, signed(KITCHEN, event))
    assert [update.update_id for update in state.buffer.updates] == [event.topic.split("/")[-2]]


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (None, "update that is not signed"),
        (STRANGER, "signature of an unknown key"),
        (ROOT, "signature of an unknown key"),
        (OFFICE, "signature of another node's key"),
    ],
)
def test_an_update_that_its_node_has_not_signed_is_counted_and_nobody_is_told(state, message, key, reason) -> None:
    event = message("kitchen", 1)
    after, effects = step(state, signed(key, event) if key else event)
    assert after == replace(state, dropped={reason: 1})
    assert [type(effect) for effect in effects] == [Drop]


def test_impersonation_of_sixteen_pairs_of_key_and_name_only_the_four_that_are_one_node_s_own_are_taken(
    config, adapter, message
) -> None:
    keys = {name: SigningKey.from_bytes(name.encode() * 32) for name in "abcd"}
    ring = KeyRing()
    for name, key in keys.items():
        ring = ring.with_key(name, key.public)
    state, _ = found(config(root=ROOT.public), adapter(0), 0)
    state, _ = step(state, KeysChanged(0, ring))
    outcomes = Counter(
        status
        for on_topic in keys
        for signer in keys
        for _, status in told(step(state, signed(keys[signer], message(on_topic, 1)))[1])
    )
    assert outcomes == {"accepted": 4}  # of sixteen, those where both are one


def test_an_old_update_of_another_federation_does_not_count_here(state, message) -> None:
    event = message("kitchen", 1)
    elsewhere = event.topic.replace("/test/", "/other/")
    moved = replace(event, payload=sign(KITCHEN, elsewhere, event.payload))
    _, effects = step(state, moved)
    assert [effect.reason for effect in effects if isinstance(effect, Drop)] == ["signature that does not fit"]


def test_an_update_cannot_be_sent_again_under_another_id(state, message) -> None:
    first, second = message("kitchen", 1), message("kitchen", 2)
    swapped = replace(second, payload=signed(KITCHEN, first).payload)
    _, effects = step(state, swapped)
    assert [effect.reason for effect in effects if isinstance(effect, Drop)] == ["signature that does not fit"]


def test_chunks_are_collected_of_enrolled_nodes_only(state) -> None:
    for node, count in (("kitchen", 1), ("cellar", 0)):
        topic = route("test", UpdateChunk(node, "a" * 32, 0)).topic
        after, _ = step(state, Received(0, topic, b"piece"))
        assert len(after.nodes) == count


def test_after_a_revocation_nothing_of_the_node_goes_into_a_version(state, message) -> None:
    state, _ = step(state, signed(KITCHEN, message("kitchen", 1)))
    state, effects = step(state, KeysChanged(1, RING.without_node("kitchen")))
    assert told(effects) == [("kitchen", "rejected")]
    assert not state.buffer.updates
    _, effects = step(state, signed(KITCHEN, message("kitchen", 2, sequence=1)))
    assert told(effects) == [("kitchen", "rejected")]


def test_a_node_that_is_enrolled_while_the_coordinator_runs_is_taken_at_once(state, message) -> None:
    update = signed(STRANGER, message("cellar", 1))
    assert told(step(state, update)[1]) == []
    state, _ = step(state, KeysChanged(1, RING.with_key("cellar", STRANGER.public)))
    assert told(step(state, update)[1]) == [("cellar", "accepted")]


def test_an_older_key_ring_brings_no_revoked_key_back(state) -> None:
    revoked, _ = step(state, KeysChanged(1, RING.without_node("kitchen")))
    after, effects = step(revoked, KeysChanged(2, RING))
    assert after.ring == revoked.ring
    assert [effect.reason for effect in effects if isinstance(effect, Drop)] == ["older key ring"]


def test_a_federation_without_a_root_asks_for_no_signature(config, adapter, message) -> None:
    state, _ = found(config(), adapter(0), 0)
    assert told(step(state, message("kitchen", 1))[1]) == [("kitchen", "accepted")]


# --- on disk ---


@pytest.fixture
def journal(tmp_path: Path, config, adapter, message) -> Path:
    """A journal of a signed federation: two versions, an intruder, and an enrolment and a revocation in between."""
    path = tmp_path / "journal.db"
    connection = open_journal(path)
    terms = config(FedBuff(buffer_size=2), root=ROOT.public)
    state, _ = restore(connection, Registry(tmp_path / "adapters"), terms, adapter(0), 0, RING)
    events = [
        signed(KITCHEN, message("kitchen", 1)),
        signed(STRANGER, message("cellar", 100)),
        signed(OFFICE, message("office", 3)),
        KeysChanged(1, RING.with_key("cellar", STRANGER.public).without_node("office")),
        signed(OFFICE, message("office", 100, sequence=1)),
        signed(STRANGER, message("cellar", 2, sequence=1)),
        signed(KITCHEN, message("kitchen", 2, sequence=1)),
    ]
    for event in events:
        state, effects = step(state, event)
        row = Row(event.at_ns, event.topic, event.payload) if isinstance(event, Received) else row_of_event(event)
        with transaction(connection):
            record(connection, row, effects)
    assert state.head.version == 2
    connection.close()
    return path


def test_a_journal_with_signatures_replays_bit_for_bit(journal: Path) -> None:
    replayed = replay_journal(journal)
    assert replayed.agrees and len(replayed.versions) == 3
    assert replayed.state is not None and replayed.state.ring.enrolled == {"kitchen", "cellar"}
    assert Counter(row.status for row in read_updates(journal)) == {"aggregated": 4}


def test_a_start_takes_up_the_ring_of_today_and_never_an_older_one(journal: Path, config, adapter) -> None:
    connection = open_journal(journal)
    terms = config(FedBuff(buffer_size=2), root=ROOT.public)
    registry = Registry(journal.parent / "adapters")
    state, _ = restore(connection, registry, terms, adapter(0), 10, RING)
    assert state.ring.enrolled == {"kitchen", "cellar"}
    newer = state.ring.without_node("cellar")
    state, _ = restore(connection, registry, terms, adapter(0), 11, newer)
    assert state.ring == newer
    connection.close()
    assert replay_journal(journal).agrees


def test_a_what_if_of_signed_updates_leaves_out_what_was_not_believed(journal: Path) -> None:
    nodes = [node for version in what_if(open_source(journal), Change()).versions for node in version.nodes]
    assert sorted(nodes) == ["cellar", "kitchen", "kitchen", "office"]
    assert what_if(open_source(journal), Change(without=("office",))).versions


def test_opened_rows_have_no_signature_and_no_key_ring(journal: Path) -> None:
    rows = list(opened_rows(journal))
    assert [row.topic for row in rows if row.topic.startswith("$journal/keys")] == []
    assert sum(row.topic.endswith("/manifest") for row in rows) == 4
    assert not any(row.payload.startswith(b'{"key"') for row in rows)


def test_keys_may_be_turned_on_in_a_federation_that_has_begun(tmp_path: Path, config, adapter, message) -> None:
    connection = open_journal(tmp_path / "journal.db")
    registry = Registry(tmp_path / "adapters")
    restore(connection, registry, config(), adapter(0), 0)
    state, _ = restore(connection, registry, config(root=ROOT.public), adapter(0), 1, RING)
    connection.close()
    assert told(step(state, message("kitchen", 1))[1]) == []
    assert told(step(state, signed(KITCHEN, message("kitchen", 1)))[1]) == [("kitchen", "accepted")]
    assert replay_journal(tmp_path / "journal.db").agrees


@pytest.mark.parametrize("root", [None, STRANGER.public])
def test_keys_are_not_turned_off_or_changed_by_a_slip(journal: Path, config, adapter, root) -> None:
    connection = open_journal(journal)
    with pytest.raises(FederationDiffers, match=r"set security\.keys"):
        restore(connection, Registry(journal.parent / "adapters"), config(root=root), adapter(0), 10)
    connection.close()


def test_versions_of_signed_updates_are_those_of_the_same_updates_unsigned(config, adapter, message) -> None:
    def versions(root: str | None, wrap) -> list[Adapter]:
        state, _ = found(config(FedBuff(buffer_size=2), root=root), adapter(0), 0)
        state, _ = step(state, KeysChanged(0, RING))
        made = []
        for event in (wrap(KITCHEN, message("kitchen", 1)), wrap(OFFICE, message("office", 3))):
            state, effects = step(state, event)
            made += [effect.adapter for effect in effects if isinstance(effect, PublishVersion)]
        return made

    assert versions(ROOT.public, signed) == versions(None, lambda _, event: event) != []
