"""What is on the retained topics for a version, for which versions, and in which order."""

from collections.abc import Callable
from pathlib import Path

import pytest

from broker.events import Publication, QueueFull
from broker.events import Published as Answer
from coordinator.core import found, step
from coordinator.publisher import (
    PhasedPublisher,
    Stamp,
    average_of,
    bodies,
    deletions,
    head_pointer,
    kept_versions,
    release_pointer,
)
from coordinator.questions import MeasuredLosses, answer_to_bytes
from coordinator.registry import Registry
from coordinator.stages import ReleaseStage
from coordinator.state import Answered, CalibrationTerms, FederationConfig, PublishRelease, PublishVersion, Received
from coordinator.strategies import FedBuff
from schemas.adapter import Adapter
from schemas.chunks import describe, split
from schemas.messages import GlobalManifest, GlobalPointer, ReleaseReport
from schemas.topics import (
    GlobalAverageChunk,
    GlobalChunk,
    GlobalHead,
    GlobalManifestOf,
    GlobalRelease,
    parse,
)

MakeAdapter = Callable[..., Adapter]
MakeConfig = Callable[..., FederationConfig]
MakeMessage = Callable[..., Received]

TAKEN, TURNED_DOWN = True, False
Published = tuple[Registry, list[GlobalManifest], list[ReleaseReport]]


@pytest.fixture
def published(
    tmp_path: Path, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage, calibration: CalibrationTerms
) -> Callable[..., Published]:
    """Make version after version, the gate deciding as told; the registry, all manifests and all decisions."""

    def make(*verdicts: bool) -> Published:
        gated = FedBuff(buffer_size=1, release=ReleaseStage(choose="gated"))
        state, made = found(config(gated, calibration=calibration), adapter(0), 0)
        for version, verdict in enumerate(verdicts):
            state, effects = step(state, message("a", 1, version, state.head.digest))
            losses = answer_to_bytes(MeasuredLosses((2.0, 1.0 if verdict else 3.0), 0))
            state, decided = step(state, Answered(0, (version + 1, 0), losses))
            made = (*made, *effects, *decided)
        registry, manifests, reports = Registry(tmp_path / "adapters"), [], []
        for effect in made:
            if isinstance(effect, PublishVersion):
                registry.add(effect.manifest, effect.adapter)
                manifests.append(effect.manifest)
            if isinstance(effect, PublishRelease):
                registry.set_release(effect.report, effect.adapter)
                reports.append(effect.report)
        return registry, manifests, reports

    return make


def addresses(publications: object) -> list[object]:
    return [parse("test", one.topic) for one in publications]  # type: ignore[attr-defined]


def test_a_version_is_its_head_s_chunks_and_then_its_manifest(published: Callable[..., Published]) -> None:
    registry, [_, manifest], _ = published(TAKEN)
    said = list(bodies("test", registry, [manifest]))
    assert addresses(said) == [GlobalChunk(1, 0), GlobalManifestOf(1)]
    head, text = (one.payload for one in said)
    assert describe(head, "safetensors", inline=0) == manifest.body
    assert GlobalManifest.from_bytes(text) == manifest
    assert all(one.retain and one.qos == 1 for one in said)


def test_an_average_s_chunks_are_those_that_its_version_s_manifest_tells_of(
    published: Callable[..., Published],
) -> None:
    registry, [_, manifest], [_, report] = published(TAKEN)
    [chunk] = average_of("test", registry, report)
    assert addresses([chunk]) == [GlobalAverageChunk(1, 0)]
    assert describe(chunk.payload, "safetensors", inline=0) == manifest.average
    assert chunk.retain and chunk.qos == 1


def test_where_a_head_is_served_there_are_no_chunks_of_an_average(published: Callable[..., Published]) -> None:
    registry, _, [first, second] = published(TURNED_DOWN)
    assert [*average_of("test", registry, first), *average_of("test", registry, second)] == []


def test_a_deletion_takes_the_manifest_last(published: Callable[..., Published]) -> None:
    _, [first, second], _ = published(TAKEN)
    said = list(deletions("test", [first, second]))
    assert addresses(said) == [
        *(GlobalChunk(0, 0), GlobalManifestOf(0)),
        *(GlobalChunk(1, 0), GlobalAverageChunk(1, 0), GlobalManifestOf(1)),
    ]
    assert all(one.retain and one.payload == b"" for one in said)


@pytest.mark.parametrize(
    ("verdicts", "served", "variant"),
    [
        ((TAKEN,), 1, "average"),
        ((TURNED_DOWN,), 0, "head"),
        ((TAKEN, TURNED_DOWN), 1, "average"),
        ((TAKEN, TURNED_DOWN, TURNED_DOWN), 1, "average"),
        ((TAKEN, TURNED_DOWN, TAKEN), 3, "average"),
    ],
)
def test_the_release_pointer_names_what_is_served_and_the_head_pointer_the_head(
    published: Callable[..., Published], verdicts: tuple[bool, ...], served: int, variant: str
) -> None:
    registry, manifests, reports = published(*verdicts)
    newest, report = manifests[-1], reports[-1]
    head = head_pointer("test", newest, Stamp(3))
    release = release_pointer("test", registry.manifest(report.version), report, Stamp(3))
    assert addresses((head, release)) == [GlobalHead(), GlobalRelease()]
    to_train, to_serve = (GlobalPointer.from_bytes(one.payload) for one in (head, release))
    assert (to_train.version, to_train.variant, to_train.digest) == (newest.version, "head", newest.digest)
    assert (to_serve.version, to_serve.variant) == (served, variant)
    assert (to_train.judged, to_serve.judged) == (None, len(verdicts))
    assert (to_train.epoch, to_serve.epoch) == (3, 3)
    body = registry.body(to_serve.version, to_serve.variant)
    described = describe(body, "safetensors", inline=0)
    assert (to_serve.digest, to_serve.size) == (described.sha256, described.size)
    assert to_serve.chunks == len(split(body))
    assert to_serve.parent == manifests[served].parent


@pytest.mark.parametrize(
    ("head", "served", "keep", "kept"),
    [(0, 0, 2, {0}), (1, 1, 2, {0, 1}), (3, 1, 2, {1, 2, 3}), (4, 1, 2, {1, 3, 4}), (4, 4, 1, {4}), (5, 4, 1, {4, 5})],
)
def test_the_newest_versions_are_kept_and_the_served_one_however_old(
    head: int, served: int, keep: int, kept: set[int]
) -> None:
    assert kept_versions(head, served, keep) == kept


class Wire:
    """Notes what is handed to it; the broker's answers are the test's."""

    def __init__(self) -> None:
        self.topics: list[str] = []
        self.is_full = False

    def publish(self, publication: Publication) -> int:
        if self.is_full:
            raise QueueFull("others wait for the broker")
        self.topics.append(publication.topic)
        return len(self.topics)


def test_nothing_goes_out_before_all_that_is_retained_is_said_again() -> None:
    wire = Wire()
    publisher = PhasedPublisher(wire)
    publisher.add([Publication("pointer", b"")])
    assert wire.topics == []
    publisher.start_over([Publication("body", b"")], [Publication("pointer", b"")])
    assert wire.topics == ["body"]
    publisher.on_published(Answer(1, None))
    assert wire.topics == ["body", "pointer"]


def test_after_a_lost_connection_it_waits_with_all_that_is_new_until_it_starts_over() -> None:
    wire = Wire()
    publisher = PhasedPublisher(wire)
    publisher.start_over([Publication("body", b"")], [Publication("pointer", b"")])
    publisher.pause()
    publisher.on_published(Answer(1, None))  # what was under way may still be answered for
    publisher.add([Publication("newer pointer", b"")])
    assert wire.topics == ["body"]
    publisher.start_over([Publication("body", b"")])
    assert wire.topics == ["body", "body"]


def test_what_finds_no_room_goes_out_in_its_order_when_the_broker_has_taken_something() -> None:
    wire = Wire()
    publisher = PhasedPublisher(wire)
    wire.is_full = True
    publisher.start_over([Publication("body", b""), Publication("manifest", b"")], [Publication("pointer", b"")])
    assert wire.topics == [] and not publisher.is_done
    wire.is_full = False
    publisher.on_published(Answer(99, None))  # somebody else's
    assert wire.topics == ["body", "manifest"]
    publisher.on_published(Answer(1, None))
    publisher.on_published(Answer(2, None))
    assert wire.topics == ["body", "manifest", "pointer"]
