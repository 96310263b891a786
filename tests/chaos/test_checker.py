"""The checker finds each kind of harm in ledgers that were doctored, and none in sound ones."""

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from broker.recording import append, transaction
from coordinator.journal import row_of_event
from coordinator.state import Poisoned

OTHER = "0" * 32


def test_sound_ledgers_have_no_fault(left_behind: Any) -> None:
    found = left_behind.findings
    assert found.is_sound and found.because == ()
    assert (found.updates, found.versions, found.control_lost) == (6, 4, 0)


def test_a_receipted_update_that_the_journal_does_not_have_is_lost(left_behind: Any) -> None:
    id_ = left_behind.versions[2][0]
    left_behind.sql("coordinator/journal.db", "DELETE FROM updates WHERE update_id = ?", id_)
    assert left_behind.findings.lost == 1 and id_ in left_behind.findings.because[0]


def test_a_receipted_update_that_the_coordinator_calls_refused_is_lost(left_behind: Any) -> None:
    statement = "UPDATE updates SET status = 'rejected' WHERE update_id = ?"
    left_behind.sql("coordinator/journal.db", statement, left_behind.versions[2][0])
    assert left_behind.findings.lost == 1


def test_an_update_that_is_not_in_the_version_it_should_be_in_is_lost(left_behind: Any) -> None:
    left_behind.change_manifest(2, lambda manifest: manifest["inputs"].pop())
    assert left_behind.findings.lost == 1


def test_accepted_updates_that_no_version_takes_are_lost(left_behind: Any) -> None:
    left_behind.sql("coordinator/journal.db", "UPDATE updates SET status = 'accepted' WHERE version = 3")
    assert left_behind.findings.lost == 2


def test_an_update_that_left_the_outbox_without_an_answer_is_lost(left_behind: Any) -> None:
    left_behind.sql("load-0/a/outbox.db", "DELETE FROM updates")
    assert left_behind.findings.lost == 1


def test_an_update_in_the_outbox_is_not_lost_and_one_refused_is_answered(left_behind: Any) -> None:
    witness = left_behind.witness("b")
    witness.say("b", "stored", OTHER)
    assert left_behind.findings.lost == 1
    witness.say("b", "dropped", OTHER)
    assert left_behind.findings.lost == 0 and left_behind.findings.dropped == 1


def test_receipts_that_a_node_counts_beyond_what_was_taken_are_lost_updates(left_behind: Any) -> None:
    (left_behind.folder / "witness" / "b.jsonl").unlink()  # a node of which only the outbox is known
    assert left_behind.findings.lost == 0 and left_behind.findings.updates == 6
    left_behind.sql("load-0/b/outbox.db", "UPDATE memory SET participation = 4")
    assert left_behind.findings.lost == 1


def test_an_update_in_two_versions_is_found_in_journal_and_registry(left_behind: Any) -> None:
    again = {"node": "a", "update_id": left_behind.versions[1][0], "base_version": 0, "examples": 1, "weight": 0.5}
    left_behind.change_manifest(3, lambda manifest: manifest["inputs"].append(again))
    assert left_behind.findings.used_twice == 2


@pytest.mark.parametrize("version", [1, 2])
def test_a_version_that_is_missing_is_a_gap(left_behind: Any, version: int) -> None:
    (left_behind.folder / "coordinator" / "adapters" / "manifests" / f"{version}.json").unlink()
    assert left_behind.findings.gaps >= 1


def test_a_version_of_the_journal_that_the_registry_lacks_at_its_end_is_a_gap(left_behind: Any) -> None:
    (left_behind.folder / "coordinator" / "adapters" / "manifests" / "3.json").unlink()
    assert left_behind.findings.gaps == 1


def test_a_version_with_another_parent_is_a_gap(left_behind: Any) -> None:
    left_behind.change_manifest(3, lambda manifest: manifest.update(parent="f" * 64))
    assert left_behind.findings.gaps == 2  # in journal and registry


def test_two_pointers_to_one_version_with_different_digests_are_a_fork(left_behind: Any) -> None:
    left_behind.witness("a").say("a", "heard", epoch=1, version=2, digest="f" * 64)
    assert left_behind.findings.forks == 1


def test_a_manifest_that_is_not_the_one_that_was_signed_is_found(left_behind: Any) -> None:
    left_behind.change_manifest(3, lambda manifest: manifest.update(strategy="another"))
    assert left_behind.findings.chain_faults == 1


def test_a_journal_that_makes_another_version_when_it_is_replayed_is_found(left_behind: Any) -> None:
    left_behind.change_manifest(3, lambda manifest: manifest["body"].update(sha256="f" * 64))
    assert left_behind.findings.replay_faults == 1


def test_an_honest_message_that_was_taken_for_poison_is_found(left_behind: Any) -> None:
    assert left_behind.findings.poisoned == 0
    with closing(sqlite3.connect(left_behind.folder / "coordinator" / "journal.db")) as journal, transaction(journal):
        append(journal, row_of_event(Poisoned(10**18, "alignfed/v1/chaos/update/a/0/manifest", b"")))
    assert left_behind.findings.poisoned == 1 and not left_behind.findings.is_sound


def test_a_pointer_of_a_coordinator_that_was_frozen_is_found(left_behind: Any) -> None:
    witness = left_behind.witness("a")
    left_behind.fault("freeze", 0.0, woke_at=0.0, code=1, epochs=1)
    left_behind.fault("freeze is over", 1e12)
    witness.say("a", "heard", epoch=2, version=3)
    assert left_behind.findings.published_frozen == 0
    witness.say("a", "heard", epoch=1, version=3)
    assert left_behind.findings.published_frozen == 1


def test_a_frozen_coordinator_that_goes_on_is_found(left_behind: Any) -> None:
    left_behind.fault("freeze", 0.0, woke_at=0.0, code=None, epochs=1)
    assert left_behind.findings.published_frozen == 1


def test_the_control_has_lost_what_only_the_broker_knew(left_behind: Any) -> None:
    witness = left_behind.witness("control-0")
    witness.say("control-0", "puback", OTHER)
    witness.say("control-0", "puback", left_behind.versions[1][0])
    assert (left_behind.findings.control_updates, left_behind.findings.control_lost) == (2, 1)
    assert left_behind.findings.is_sound  # what the control loses is no fault of the product
