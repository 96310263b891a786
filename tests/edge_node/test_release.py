"""Which adapter is served: the release, verified, from the head's bytes, from its own topics, or from disk."""

import math
from dataclasses import replace
from typing import Any

import pytest

from edge_node.core import initial_state
from edge_node.effects import (
    EndFetch,
    FetchPiece,
    KeepRelease,
    PublishMetrics,
    PublishState,
    RecallRelease,
    ServeAdapter,
    Warn,
)
from edge_node.events import AdapterTried, ReleaseRecalled, ServedMeasured
from schemas.chunks import describe, split
from schemas.codec import encode
from schemas.messages import GlobalPointer, ReleaseReport
from schemas.topics import GlobalAverageChunk, GlobalChunk, GlobalManifestOf, GlobalRelease

SERVING = {"serving": {"http": "127.0.0.1:8000"}}


@pytest.fixture
def server(start_node: Any, coordinator: Any) -> Any:
    """A connected node that serves and knows the terms."""
    node = start_node(**SERVING)
    node.joins(coordinator.terms())
    return node


def averaged(coordinator: Any, number: int, value: float = 1.0, average: float = 0.5, epoch: int = 1) -> Any:
    """A version that is served as its running average: (version, pointer to release, chunks of the average)."""
    body = encode(coordinator.adapter(average), "safetensors")
    entry = describe(body, "safetensors", 100, inline=0)
    release = ReleaseReport(version=number, variant="average", judged=number)
    version = coordinator.version(number, value, epoch, chunk_size=100, average=entry, release=release)
    pointer = GlobalPointer(
        epoch=epoch, version=number, digest=entry.sha256, parent=None, size=len(body), chunks=len(entry.chunks),
        variant="average",
    )  # fmt: skip
    return version, pointer, split(body, 100)


def served(effects: Any) -> list[tuple[int, str, float]]:
    """(version, variant, value) of every adapter that is to be served."""
    chosen = [effect for effect in effects if isinstance(effect, ServeAdapter)]
    return [(one.pointer.version, one.pointer.variant, float(one.adapter.values[0])) for one in chosen]


def tried(server: Any, effects: Any, fault: str | None = None) -> tuple[Any, ...]:
    """What comes of it when the adapters in these effects were tried."""
    done: tuple[Any, ...] = ()
    for one in effects:
        if isinstance(one, ServeAdapter):
            done += server.tell(AdapterTried(server.now, one.pointer, one.adapter, fault))
    return done


def test_a_node_that_does_not_serve_fetches_no_release(member: Any, coordinator: Any) -> None:
    assert member.hears(GlobalRelease(), coordinator.version(3).pointer) == ()


def test_a_release_that_is_the_head_is_served_without_being_sent_twice(server: Any, coordinator: Any) -> None:
    version = coordinator.version(3, 2.0, chunk_size=100)
    assert served(server.receives(version)) == []
    effects = server.hears(GlobalRelease(), version.pointer)
    assert served(effects) == [(3, "head", 2.0)]
    assert not any(isinstance(effect, FetchPiece | KeepRelease) for effect in effects)
    assert KeepRelease(version.pointer, coordinator.adapter(2.0)) in tried(server, effects)


def test_what_is_on_disk_already_is_not_written_again(server: Any, coordinator: Any) -> None:
    version = coordinator.version(3, 2.0)
    server.receives(version)
    effects = server.hears(GlobalRelease(), version.pointer)
    tried(server, effects)
    assert tried(server, effects) == ()


def test_a_release_that_does_not_answer_well_is_given_up_for_the_one_before(server: Any, coordinator: Any) -> None:
    good, bad = coordinator.version(3, 2.0), coordinator.version(4, 9.0)
    server.receives(good)
    tried(server, server.hears(GlobalRelease(), good.pointer))
    server.receives(bad)
    effects = server.hears(GlobalRelease(), bad.pointer)
    assert served(effects) == [(4, "head", 9.0)]
    effects = tried(server, effects, "it answers nonsense")
    assert [e.text for e in effects if isinstance(e, Warn)] == ["version 4 is not served: it answers nonsense"]
    assert not any(isinstance(effect, KeepRelease) for effect in effects)
    assert [e.state.serving for e in effects if isinstance(e, PublishState)] == [3]
    assert server.hears(GlobalRelease(), bad.pointer) == ()  # not again
    later = coordinator.version(5, 2.5)
    server.receives(later)
    assert served(server.hears(GlobalRelease(), later.pointer)) == [(5, "head", 2.5)]


def test_without_one_before_the_base_model_is_served_again(server: Any, coordinator: Any) -> None:
    version = coordinator.version(3, 2.0)
    server.receives(version)
    tried(server, server.hears(GlobalRelease(), version.pointer), "it answers nonsense")
    assert server.state.served is None
    assert served(server.hears(GlobalRelease(), version.pointer)) == []


def test_after_a_refusal_nothing_older_is_followed_and_the_base_model_is_not_called_a_version(
    server: Any, coordinator: Any
) -> None:
    old, first, second = (coordinator.version(number, number) for number in (2, 3, 4))
    server.receives(first)
    effects = server.hears(GlobalRelease(), first.pointer)
    tried(server, effects)
    tried(server, effects, "at the next start it is worse than nothing")
    server.receives(second)
    tried(server, server.hears(GlobalRelease(), second.pointer), "so is this")
    assert (server.state.served, server.state.proven) == (None, None)
    (warning,) = server.hears(GlobalRelease(), old.pointer)
    assert "this node has epoch 1, version 4" in warning.text
    again = first.pointer.model_copy(update={"epoch": 2})  # the operator goes back to it
    server.receives(coordinator.version(3, 3, epoch=2))
    assert served(server.hears(GlobalRelease(), again)) == [(3, "head", 3.0)]


def serves(server: Any, version: Any) -> Any:
    """It takes up a release, which answers well."""
    server.receives(version)
    return tried(server, server.hears(GlobalRelease(), version.pointer))


def test_one_step_back_is_taken_from_disk_and_not_fetched(server: Any, coordinator: Any) -> None:
    first, second = coordinator.version(3, 2.0), coordinator.version(4, 9.0)
    serves(server, first)
    (kept,) = [effect for effect in serves(server, second) if isinstance(effect, KeepRelease)]
    assert kept.earlier == first.pointer
    back = first.pointer.model_copy(update={"epoch": 2})  # the operator goes back to it
    effects = server.hears(GlobalRelease(), back)
    assert RecallRelease(back) in effects and not any(isinstance(effect, FetchPiece) for effect in effects)
    effects = server.tell(ReleaseRecalled(server.now, back, coordinator.adapter(2.0)))
    assert served(effects) == [(3, "head", 2.0)]
    (kept,) = [effect for effect in tried(server, effects) if isinstance(effect, KeepRelease)]
    assert (kept.pointer, kept.earlier) == (back, second.pointer)
    assert server.state.earlier == second.pointer


def test_one_that_is_damaged_on_disk_is_fetched(server: Any, coordinator: Any) -> None:
    first = coordinator.version(3, 2.0)
    serves(server, first)
    serves(server, coordinator.version(4, 9.0))
    back = first.pointer.model_copy(update={"epoch": 2})
    server.hears(GlobalRelease(), back)
    assert FetchPiece(GlobalManifestOf(3)) in server.tell(ReleaseRecalled(server.now, back, None))


def test_what_was_read_from_disk_is_not_served_when_something_else_is_wanted_by_then(
    server: Any, coordinator: Any
) -> None:
    first, third = coordinator.version(3, 2.0), coordinator.version(5, 4.0)
    serves(server, first)
    serves(server, coordinator.version(4, 9.0))
    server.hears(GlobalRelease(), first.pointer.model_copy(update={"epoch": 2}))
    server.hears(GlobalRelease(), third.pointer.model_copy(update={"epoch": 3}))
    assert served(server.tell(ReleaseRecalled(server.now, first.pointer, coordinator.adapter(2.0)))) == []


def test_the_outcome_of_one_that_was_replaced_meanwhile_changes_nothing(server: Any, coordinator: Any) -> None:
    bad, good = coordinator.version(3, 2.0), coordinator.version(4, 9.0)
    server.receives(bad)
    first = server.hears(GlobalRelease(), bad.pointer)
    server.receives(good)
    second = server.hears(GlobalRelease(), good.pointer)
    (warning,) = tried(server, first, "it answers nonsense")
    assert isinstance(warning, Warn)
    assert server.state.served == good.pointer
    assert KeepRelease(good.pointer, coordinator.adapter(9.0)) in tried(server, second)


def test_a_release_whose_head_is_on_its_way_waits_for_it(server: Any, coordinator: Any) -> None:
    version = coordinator.version(3, 2.0, chunk_size=100)
    assert server.hears(GlobalRelease(), version.pointer) == (FetchPiece(GlobalManifestOf(3)),)
    assert served(server.receives(version)) == [(3, "head", 2.0)]


def test_a_release_older_than_the_head_is_fetched_beside_it(server: Any, coordinator: Any) -> None:
    older, head = coordinator.version(3, 2.0, chunk_size=100), coordinator.version(5, 4.0, chunk_size=100)
    server.receives(head)
    assert server.hears(GlobalRelease(), older.pointer) == (FetchPiece(GlobalManifestOf(3)),)
    effects = server.hears(GlobalManifestOf(3), older.manifest)
    for index, chunk in enumerate(older.chunks):
        effects += server.hears(GlobalChunk(3, index), chunk)
    assert served(effects) == [(3, "head", 2.0)]
    assert EndFetch(GlobalChunk(3, len(older.chunks) - 1)) in effects
    assert server.version_held() == 5


def test_an_average_is_served_from_chunks_of_its_own(server: Any, coordinator: Any) -> None:
    version, pointer, chunks = averaged(coordinator, 3, value=2.0, average=0.25)
    server.receives(version)
    assert server.hears(GlobalRelease(), pointer) == (FetchPiece(GlobalManifestOf(3)),)
    effects = server.hears(GlobalManifestOf(3), version.manifest)
    for index, chunk in reversed(list(enumerate(chunks))):
        effects += server.hears(GlobalAverageChunk(3, index), chunk)
    assert served(effects) == [(3, "average", 0.25)]
    assert FetchPiece(GlobalAverageChunk(3, 0)) in effects and EndFetch(GlobalAverageChunk(3, 0)) in effects
    assert float(server.state.held.adapter.values[0]) == 2.0


def test_chunks_of_the_head_are_not_taken_for_the_average(server: Any, coordinator: Any) -> None:
    version, pointer, _ = averaged(coordinator, 3)
    server.hears(GlobalRelease(), pointer)
    server.hears(GlobalManifestOf(3), version.manifest)
    for index, chunk in enumerate(version.chunks):
        assert served(server.hears(GlobalChunk(3, index), chunk)) == []
    assert server.state.release_fetch.assembly.held == 0


def test_head_and_average_of_one_version_are_fetched_at_the_same_time(server: Any, coordinator: Any) -> None:
    version, pointer, chunks = averaged(coordinator, 3, value=2.0, average=0.25)
    server.hears(GlobalRelease(), pointer)
    effects = server.receives(version)
    for index, chunk in enumerate(chunks):
        effects += server.hears(GlobalAverageChunk(3, index), chunk)
    assert served(effects) == [(3, "average", 0.25)]
    assert server.version_held() == 3


def test_a_false_chunk_is_not_served_and_the_true_one_still_counts(server: Any, coordinator: Any) -> None:
    version, pointer, chunks = averaged(coordinator, 3)
    server.hears(GlobalRelease(), pointer)
    server.hears(GlobalManifestOf(3), version.manifest)
    effects = server.hears(GlobalAverageChunk(3, 0), b"x" * 100)
    assert [type(effect) for effect in effects] == [Warn]
    for index, chunk in enumerate(chunks):
        effects += server.hears(GlobalAverageChunk(3, index), chunk)
    assert len(served(effects)) == 1


def test_bytes_that_are_not_an_adapter_are_not_served(server: Any, coordinator: Any) -> None:
    version = coordinator.version(3, chunk_size=100, content=b"x" * 300)
    server.hears(GlobalRelease(), version.pointer)
    effects = server.hears(GlobalManifestOf(3), version.manifest)
    for index, chunk in enumerate(version.chunks):
        effects += server.hears(GlobalChunk(3, index), chunk)
    assert served(effects) == []
    assert "refused to serve version 3" in next(e.text for e in effects if isinstance(e, Warn))
    assert server.state.release_fetch is None


def test_a_release_that_is_larger_than_any_adapter_is_not_fetched(server: Any, coordinator: Any) -> None:
    huge = coordinator.version(3).pointer.model_copy(update={"size": 10**9, "chunks": 4000})
    effects = server.hears(GlobalRelease(), huge)
    assert "more than the" in effects[0].text


def test_what_is_served_never_falls_back_without_a_higher_epoch(server: Any, coordinator: Any) -> None:
    for version in (coordinator.version(5, 5.0), coordinator.version(6, 6.0)):
        server.receives(version)
        server.hears(GlobalRelease(), version.pointer)
    (ignored,) = server.hears(GlobalRelease(), coordinator.version(5, 5.0).pointer)
    assert "this node has epoch 1, version 6" in ignored.text
    back = coordinator.version(5, 5.0, epoch=2)
    effects = server.hears(GlobalRelease(), back.pointer) + server.hears(GlobalManifestOf(5), back.manifest)
    assert served(effects) == [(5, "head", 5.0)]


def test_a_second_body_of_the_served_version_is_ignored(server: Any, coordinator: Any) -> None:
    version = coordinator.version(5, 5.0)
    server.receives(version)
    server.hears(GlobalRelease(), version.pointer)
    (ignored,) = server.hears(GlobalRelease(), coordinator.version(5, 7.0).pointer)
    assert "second, different release" in ignored.text


def test_a_version_may_be_served_first_as_head_then_as_average(server: Any, coordinator: Any) -> None:
    version, pointer, chunks = averaged(coordinator, 3, value=2.0, average=0.25)
    server.receives(version)
    server.hears(GlobalRelease(), version.pointer)
    effects = server.hears(GlobalRelease(), pointer) + server.hears(GlobalManifestOf(3), version.manifest)
    for index, chunk in enumerate(chunks):
        effects += server.hears(GlobalAverageChunk(3, index), chunk)
    assert served(effects) == [(3, "average", 0.25)]


def test_a_restarted_coordinator_makes_nobody_fetch_what_is_served(server: Any, coordinator: Any) -> None:
    version = coordinator.version(3)
    server.receives(version)
    server.hears(GlobalRelease(), version.pointer)
    assert server.hears(GlobalRelease(), coordinator.version(3, epoch=2).pointer) == ()
    assert server.state.served.epoch == 2


def test_a_newer_release_supersedes_a_fetch(server: Any, coordinator: Any) -> None:
    server.hears(GlobalRelease(), coordinator.version(3).pointer)
    assert server.hears(GlobalRelease(), coordinator.version(4).pointer) == (
        EndFetch(GlobalManifestOf(3)),
        FetchPiece(GlobalManifestOf(4)),
    )


def test_a_release_that_stays_away_is_asked_for_again(server: Any, coordinator: Any) -> None:
    version = coordinator.version(3, 2.0)
    server.hears(GlobalRelease(), version.pointer)
    asked = [type(effect) for _ in range(60) for effect in server.waits(1)]
    assert [kind for kind in asked if kind in (EndFetch, FetchPiece)][:2] == [EndFetch, FetchPiece]
    assert served(server.hears(GlobalManifestOf(3), version.manifest)) == [(3, "head", 2.0)]


def test_a_node_serves_what_it_has_on_disk_before_it_hears_anything(start_node: Any, coordinator: Any) -> None:
    base = start_node(**SERVING).state
    terms, layout = coordinator.terms(), coordinator.adapter(1.0).layout
    state, effects = initial_state(base.identity, base.memory, 0.0, (), terms, layout, None, coordinator.held(4, 3.0))
    assert served(effects) == [(4, "head", 3.0)]
    node = replace(start_node(**SERVING), state=state)
    node.connects()
    assert node.hears(GlobalRelease(), state.served) == ()


def test_how_well_what_is_served_does_here_is_published_with_its_version(server: Any, coordinator: Any) -> None:
    version = coordinator.version(3, 2.0)
    server.receives(version)
    server.hears(GlobalRelease(), version.pointer)
    (told,) = [e.metrics for e in server.tell(ServedMeasured(server.now, version.pointer, 7, 1.5)) if is_metrics(e)]
    assert (told.served_loss_version, told.served_loss, told.served_loss_examples) == (3, 1.5, 7)


@pytest.mark.parametrize(("number", "loss"), [(4, 1.0), (3, math.nan), (3, math.inf)])
def test_what_is_not_served_or_not_a_number_is_not_published(
    server: Any, coordinator: Any, number: int, loss: float
) -> None:
    version = coordinator.version(3, 2.0)
    server.receives(version)
    server.hears(GlobalRelease(), version.pointer)
    server.tell(ServedMeasured(server.now, coordinator.version(number, number - 1.0).pointer, 7, loss))
    assert server.state.served_held_out is None


def is_metrics(effect: Any) -> bool:
    return isinstance(effect, PublishMetrics)
