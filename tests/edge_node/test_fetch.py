"""From the head pointer to a version in hand."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from edge_node.core import step
from edge_node.effects import (
    DropPieces,
    EndFetch,
    FetchPiece,
    KeepPieces,
    KeepVersion,
    Note,
    RememberMark,
    Train,
    VerifyArrived,
    Warn,
)
from edge_node.events import BrokerLost, Heard, VersionArrived
from edge_node.state import Memory
from schemas.adapter import Adapter
from schemas.chunks import describe
from schemas.topics import GlobalChunk, GlobalHead, GlobalManifestOf, GlobalRelease, route


def kinds(effects: Any) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def written(effects: Any) -> list[KeepPieces]:
    return [effect for effect in effects if isinstance(effect, KeepPieces)]


def test_a_node_fetches_what_the_head_names(member: Any, coordinator: Any) -> None:
    assert FetchPiece(GlobalManifestOf(3)) in member.hears(GlobalHead(), coordinator.version(3).pointer)
    assert member.version_held() is None


def test_a_version_is_held_once_its_manifest_and_all_chunks_are_here(member: Any, coordinator: Any) -> None:
    version = coordinator.version(3, value=2.5, chunk_size=100)
    assert len(version.chunks) > 2
    member.receives(version)
    assert member.state.held.adapter == coordinator.adapter(2.5)
    assert KeepVersion(version.pointer) in member.asked
    assert RememberMark((1, 3)) in member.asked
    assert EndFetch(GlobalManifestOf(3)) in member.asked
    assert EndFetch(GlobalChunk(3, len(version.chunks) - 1)) in member.asked
    assert Note("version 3 held", version=3) in member.asked


def test_a_small_version_comes_with_its_manifest(member: Any, coordinator: Any) -> None:
    member.receives(coordinator.version(3, value=2.5))
    assert member.state.held.adapter == coordinator.adapter(2.5)


def test_chunks_may_come_in_any_order_and_before_the_manifest(member: Any, coordinator: Any) -> None:
    version = coordinator.version(3, chunk_size=100)
    member.hears(GlobalHead(), version.pointer)
    for index in reversed(range(len(version.chunks))):
        member.hears(GlobalChunk(3, index), version.chunks[index])
    assert member.version_held() is None
    member.hears(GlobalManifestOf(3), version.manifest)
    assert member.state.held.pointer == version.pointer


def test_what_comes_out_of_turn_goes_to_disk_in_its_turn(member: Any, coordinator: Any) -> None:
    version = coordinator.version(3, chunk_size=100)
    first, second, third = version.chunks[:3]
    member.hears(GlobalHead(), version.pointer)
    member.hears(GlobalChunk(3, 2), third)
    assert not written(member.hears(GlobalManifestOf(3), version.manifest))
    assert not written(member.hears(GlobalChunk(3, 1), second))
    effects = member.hears(GlobalChunk(3, 0), first)
    assert written(effects) == [KeepPieces(version.pointer, 0, (first, second, third))]
    assert not written(member.hears(GlobalChunk(3, 1), second))  # again


def test_nothing_is_held_before_the_disk_has_said_that_the_whole_is_true(member: Any, coordinator: Any) -> None:
    version = coordinator.version(3, 2.5, chunk_size=100)
    member.receives(replace(version, chunks=version.chunks[:-1]))
    last = route("home", GlobalChunk(3, len(version.chunks) - 1)).topic
    state, effects = step(member.state, Heard(member.now, last, version.chunks[-1]))
    assert VerifyArrived(version.pointer, coordinator.adapter(0).layout) in effects
    assert state.held is None and KeepVersion(version.pointer) not in effects
    state, effects = step(state, VersionArrived(member.now, version.pointer, coordinator.adapter(2.5)))
    assert state.held.adapter == coordinator.adapter(2.5) and KeepVersion(version.pointer) in effects


def test_chunks_that_are_true_one_by_one_and_false_together_are_refused(member: Any, coordinator: Any) -> None:
    version, other = coordinator.version(3, 1.0, chunk_size=100), coordinator.version(3, 2.0, chunk_size=100)
    lie = describe(other.body, "safetensors", 100, inline=0).model_copy(update={"sha256": version.pointer.digest})
    effects = member.receives(
        replace(other, pointer=version.pointer, manifest=coordinator.version(3, body=lie, chunk_size=100).manifest)
    )
    assert not any(isinstance(effect, KeepVersion) for effect in member.asked)
    assert any(isinstance(effect, Warn) and effect.text.startswith("refused version 3") for effect in effects)
    assert DropPieces(version.pointer) in effects
    member.receives(version)
    assert member.state.held.adapter == coordinator.adapter(1.0)


def test_another_list_of_chunks_for_the_same_body_begins_it_again(member: Any, coordinator: Any) -> None:
    version, other = coordinator.version(3, 1.0, chunk_size=100), coordinator.version(3, 2.0, chunk_size=100)
    lie = describe(other.body, "safetensors", 100, inline=0).model_copy(update={"sha256": version.pointer.digest})
    member.hears(GlobalHead(), version.pointer)
    member.hears(GlobalManifestOf(3), coordinator.version(3, body=lie, chunk_size=100).manifest)
    for index, chunk in enumerate(other.chunks[:-1]):
        member.hears(GlobalChunk(3, index), chunk)
    member.receives(version)
    assert member.state.held.adapter == coordinator.adapter(1.0)


def test_a_version_that_is_not_wanted_any_more_leaves_nothing_on_disk(member: Any, coordinator: Any) -> None:
    older, newer = coordinator.version(3, 3.0, chunk_size=100), coordinator.version(4, 4.0, chunk_size=100)
    member.hears(GlobalHead(), older.pointer)
    member.hears(GlobalManifestOf(3), older.manifest)
    member.hears(GlobalChunk(3, 0), older.chunks[0])
    assert DropPieces(older.pointer) in member.hears(GlobalHead(), newer.pointer)
    member.receives(newer)
    assert member.version_held() == 4
    assert member.pieces.kept == {}


def test_a_false_chunk_is_ignored_and_the_true_one_still_counts(member: Any, coordinator: Any) -> None:
    version = coordinator.version(3, chunk_size=100)
    member.hears(GlobalHead(), version.pointer)
    member.hears(GlobalManifestOf(3), version.manifest)
    effects = member.hears(GlobalChunk(3, 0), b"x" * 100)
    assert kinds(effects) == ["Warn"]
    for index, chunk in enumerate(version.chunks):
        member.hears(GlobalChunk(3, index), chunk)
    assert member.version_held() == 3


def test_no_more_is_kept_before_the_manifest_than_the_pointer_announced(member: Any, coordinator: Any) -> None:
    version = coordinator.version(3, chunk_size=100)
    member.hears(GlobalHead(), version.pointer)
    for index in range(len(version.chunks)):
        member.hears(GlobalChunk(3, index), b"x" * 100_000)
    assert member.state.fetch.assembly.held <= version.pointer.size


def test_a_newer_head_supersedes_a_fetch(member: Any, coordinator: Any) -> None:
    member.hears(GlobalHead(), coordinator.version(3).pointer)
    effects = member.hears(GlobalHead(), coordinator.version(4).pointer)
    assert effects == (EndFetch(GlobalManifestOf(3)), FetchPiece(GlobalManifestOf(4)))
    member.hears(GlobalManifestOf(3), coordinator.version(3).manifest)
    assert member.version_held() is None
    member.hears(GlobalManifestOf(4), coordinator.version(4).manifest)
    assert member.version_held() == 4


def test_an_older_head_does_not_disturb_a_fetch_that_goes_well(member: Any, coordinator: Any) -> None:
    member.hears(GlobalHead(), coordinator.version(4).pointer)
    assert member.hears(GlobalHead(), coordinator.version(3).pointer) == ()
    assert member.state.fetch.pointer.version == 4


def test_a_false_head_without_a_version_behind_it_keeps_nobody_for_long(member: Any, coordinator: Any) -> None:
    member.hears(GlobalHead(), coordinator.version(999_999_999, epoch=10**12).pointer)
    member.waits(60)
    member.receives(coordinator.version(4))
    assert member.version_held() == 4


def test_what_is_held_never_falls_back(member: Any, coordinator: Any) -> None:
    member.receives(coordinator.version(5, epoch=2))
    for older in (coordinator.version(4, epoch=2), coordinator.version(9, epoch=1)):
        effects = member.receives(older)
        assert "this node has seen epoch 2, version 5" in effects[0].text
        assert member.version_held() == 5


def test_what_is_held_never_falls_back_after_a_restart(start_node: Any, coordinator: Any) -> None:
    node = start_node(memory=Memory(mark=(2, 5)))
    node.joins(coordinator.terms())
    node.receives(coordinator.version(4, epoch=2))
    assert node.version_held() is None
    node.receives(coordinator.version(5, epoch=2))
    assert node.version_held() == 5


def test_a_rollback_is_an_older_version_in_a_newer_epoch(member: Any, coordinator: Any) -> None:
    member.receives(coordinator.version(5, value=5.0))
    member.receives(coordinator.version(3, value=3.0, epoch=2))
    assert member.state.held.adapter == coordinator.adapter(3.0)
    assert member.state.memory.mark == (2, 3)


def test_a_restarted_coordinator_that_names_the_same_version_causes_no_fetch(member: Any, coordinator: Any) -> None:
    member.receives(coordinator.version(5))
    effects = member.hears(GlobalHead(), coordinator.version(5, epoch=2).pointer)
    assert effects == (RememberMark((2, 5)),)
    assert member.state.held.pointer.epoch == 2


def test_a_second_body_under_the_same_version_is_ignored(member: Any, coordinator: Any) -> None:
    member.receives(coordinator.version(5, value=1.0))
    (warning,) = member.hears(GlobalHead(), coordinator.version(5, value=2.0).pointer)
    assert "a second, different version 5" in warning.text


@pytest.mark.parametrize(
    ("lie", "named"),
    [
        ({"version": 4}, "version"),
        ({"base_model": "0" * 64}, "base model"),
        ({"layout": "0" * 64}, "layout"),
        ({"body": describe(b"other", "safetensors")}, "digest"),
    ],
)
def test_a_manifest_that_does_not_fit_the_pointer_or_the_model_is_ignored(
    member: Any, coordinator: Any, lie: dict[str, Any], named: str
) -> None:
    effects = member.receives(coordinator.version(3, **lie))
    assert any(isinstance(effect, Warn) and f"has {named} " in effect.text for effect in effects)
    assert member.version_held() is None
    member.hears(GlobalManifestOf(3), coordinator.version(3).manifest)
    assert member.version_held() == 3


def test_a_version_that_is_not_finite_is_never_held(member: Any, coordinator: Any) -> None:
    layout = coordinator.adapter(0.0).layout
    values = np.zeros(layout.size, dtype=np.float32)
    values[3] = math.nan
    effects = member.receives(coordinator.version(3, content=Adapter(layout, values).to_safetensors()))
    assert Warn("refused version 3: the adapter holds NaN or infinite values", version=3) in effects
    assert EndFetch(GlobalManifestOf(3)) in effects
    assert member.version_held() is None


def test_a_version_larger_than_the_model_can_need_is_not_even_fetched(member: Any, coordinator: Any) -> None:
    pointer = coordinator.version(3).pointer.model_copy(update={"size": 100_000_000, "chunks": 1000})
    effects = member.hears(GlobalHead(), pointer)
    assert kinds(effects) == ["Warn"]
    assert "100000000 bytes" in effects[0].text


def test_a_version_that_stays_away_is_asked_for_again_ever_more_rarely(member: Any, coordinator: Any) -> None:
    member.hears(GlobalHead(), coordinator.version(3).pointer)
    asked_at = []
    while member.now < 600:
        asked_at += [member.now for effect in member.waits(1) if effect == FetchPiece(GlobalManifestOf(3))]
    assert member.asked.count(EndFetch(GlobalManifestOf(3))) == len(
        asked_at
    )  # some brokers repeat nothing to who is subscribed
    pauses = np.diff([0, *asked_at])
    assert 15 <= pauses[0] <= 26
    assert 3 <= len(asked_at) <= 6
    assert all(later > earlier for earlier, later in pairwise(pauses))


def test_nothing_is_asked_for_again_while_the_broker_is_away(member: Any, coordinator: Any) -> None:
    member.hears(GlobalHead(), coordinator.version(3).pointer)
    member.tell(BrokerLost(member.now, "the broker is away"))
    assert member.waits(1000) == ()


def test_a_head_heard_before_the_terms_is_followed_once_they_are_known(node: Any, coordinator: Any) -> None:
    node.connects()
    assert node.hears(GlobalHead(), coordinator.version(3).pointer) == ()
    assert FetchPiece(GlobalManifestOf(3)) in node.joins(coordinator.terms())


def test_a_node_notes_the_release_it_was_told(member: Any, coordinator: Any) -> None:
    pointer = coordinator.version(2).pointer.model_copy(update={"variant": "average", "judged": 3})
    member.hears(GlobalRelease(), pointer)
    assert member.state.release == pointer


def test_a_deleted_version_is_no_news(member: Any, coordinator: Any) -> None:
    member.receives(coordinator.version(3))
    for address in (GlobalHead(), GlobalManifestOf(3), GlobalChunk(3, 0)):
        assert member.hears(address, b"") == ()


def test_training_does_not_begin_on_an_old_version_while_a_newer_one_is_on_its_way(
    start_node: Any, coordinator: Any
) -> None:
    node = start_node(terms=coordinator.terms(), held=coordinator.held(3))
    node.connects()
    node.hears(GlobalHead(), coordinator.version(4).pointer)
    assert node.state.training is None
    effects = node.hears(GlobalManifestOf(4), coordinator.version(4).manifest)
    assert [effect.job.start.pointer.version for effect in effects if isinstance(effect, Train)] == [4]


def test_a_version_that_stays_away_does_not_hold_up_training_for_long(start_node: Any, coordinator: Any) -> None:
    node = start_node(terms=coordinator.terms(), held=coordinator.held(3))
    node.connects()
    node.hears(GlobalHead(), coordinator.version(4).pointer)
    effects = node.waits(10)
    assert [effect.job.start.pointer.version for effect in effects if isinstance(effect, Train)] == [3]
