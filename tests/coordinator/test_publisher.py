"""What is on the retained topics for a version, for which versions, and in which order."""

from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.core import found, step
from coordinator.publisher import bodies, deletions, kept_versions, pointers
from coordinator.questions import MeasuredLosses, answer_to_bytes
from coordinator.registry import Registry
from coordinator.stages import ReleaseStage
from coordinator.state import Answered, CalibrationTerms, FederationConfig, PublishVersion, Received
from coordinator.strategies import FedBuff
from schemas.adapter import Adapter
from schemas.chunks import describe, split
from schemas.messages import GlobalManifest, GlobalPointer
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

LOSSES = {"average": (3.0, 2.0, 1.0), "head": (3.0, 1.0, 2.0), "before": (1.0, 2.0, 3.0)}


@pytest.fixture
def published(
    tmp_path: Path, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage, calibration: CalibrationTerms
) -> Callable[..., tuple[Registry, list[GlobalManifest]]]:
    """Make version after version, the gate choosing as told; the registry and the manifests, version 0 first."""

    def make(*choices: str) -> tuple[Registry, list[GlobalManifest]]:
        gated = FedBuff(buffer_size=1, release=ReleaseStage(choose="gated"))
        state, effects = found(config(gated, calibration=calibration), adapter(0), 0)
        made = list(effects)
        for version, choice in enumerate(choices):
            state, _ = step(state, message("a", 1, version, state.head.digest))
            losses = answer_to_bytes(MeasuredLosses(LOSSES[choice], 0))
            state, effects = step(state, Answered(0, (version + 1, 0), losses))
            made += effects
        registry, manifests = Registry(tmp_path / "adapters"), []
        for effect in made:
            if isinstance(effect, PublishVersion):
                registry.add(effect.manifest, effect.adapter, effect.average)
                manifests.append(effect.manifest)
        return registry, manifests

    return make


def addresses(publications: object) -> list[object]:
    return [parse("test", one.topic) for one in publications]  # type: ignore[attr-defined]


def test_a_version_is_its_head_s_chunks_its_average_s_chunks_and_then_its_manifest(
    published: Callable[..., tuple[Registry, list[GlobalManifest]]],
) -> None:
    registry, [_, manifest] = published("average")
    said = list(bodies("test", registry, [manifest]))
    assert addresses(said) == [GlobalChunk(1, 0), GlobalAverageChunk(1, 0), GlobalManifestOf(1)]
    head, average, text = (one.payload for one in said)
    assert manifest.average is not None
    assert describe(head, "safetensors", inline=0) == manifest.body
    assert describe(average, "safetensors", inline=0) == manifest.average
    assert GlobalManifest.from_bytes(text) == manifest
    assert all(one.retain and one.qos == 1 for one in said)


def test_a_version_whose_head_is_served_has_no_chunks_of_an_average(
    published: Callable[..., tuple[Registry, list[GlobalManifest]]],
) -> None:
    registry, [_, manifest] = published("head")
    assert addresses(bodies("test", registry, [manifest])) == [GlobalChunk(1, 0), GlobalManifestOf(1)]


def test_a_deletion_takes_the_manifest_last(
    published: Callable[..., tuple[Registry, list[GlobalManifest]]],
) -> None:
    _, [first, second] = published("average")
    said = list(deletions("test", [first, second]))
    assert addresses(said) == [
        *(GlobalChunk(0, 0), GlobalManifestOf(0)),
        *(GlobalChunk(1, 0), GlobalAverageChunk(1, 0), GlobalManifestOf(1)),
    ]
    assert all(one.retain and one.payload == b"" for one in said)


@pytest.mark.parametrize(
    ("choices", "served", "variant"),
    [
        (("head",), 1, "head"),
        (("average",), 1, "average"),
        (("before",), 0, "head"),
        (("average", "before"), 1, "average"),
        (("average", "before", "before"), 1, "average"),
        (("average", "before", "head"), 3, "head"),
    ],
)
def test_the_release_pointer_names_what_is_served_and_the_head_pointer_the_head(
    published: Callable[..., tuple[Registry, list[GlobalManifest]]],
    choices: tuple[str, ...],
    served: int,
    variant: str,
) -> None:
    registry, manifests = published(*choices)
    newest = manifests[-1]
    head, release = pointers("test", newest, registry.manifest(newest.release.version), epoch=3)
    assert addresses((head, release)) == [GlobalHead(), GlobalRelease()]
    to_train, to_serve = (GlobalPointer.from_bytes(one.payload) for one in (head, release))
    assert (to_train.version, to_train.variant, to_train.digest) == (newest.version, "head", newest.digest)
    assert (to_serve.version, to_serve.variant) == (served, variant)
    assert (to_train.epoch, to_serve.epoch) == (3, 3)
    body = registry.body(to_serve.version, to_serve.variant)
    described = describe(body, "safetensors", inline=0)
    assert (to_serve.digest, to_serve.size) == (described.sha256, described.size)
    assert to_serve.chunks == len(split(body))
    assert to_serve.parent == manifests[served].parent


def test_the_newest_versions_are_kept_and_the_served_one_however_old(
    published: Callable[..., tuple[Registry, list[GlobalManifest]]],
) -> None:
    _, manifests = published("average", "before", "before", "before", "head", "head")
    assert [kept_versions(manifest, 2) for manifest in manifests] == [
        {0},
        {0, 1},
        {1, 2},
        {1, 2, 3},
        {1, 3, 4},
        {4, 5},
        {5, 6},
    ]


def test_a_version_leaves_when_it_is_neither_new_nor_served_and_never_comes_back(
    published: Callable[..., tuple[Registry, list[GlobalManifest]]],
) -> None:
    _, manifests = published("before", "before", "average", "before", "head", "head")
    for keep in (1, 2, 3):
        kept = [kept_versions(manifest, keep) for manifest in manifests]
        for version in range(len(manifests)):
            there = [version in versions for versions in kept]
            first, last = there.index(True), len(there) - there[::-1].index(True)
            assert first == version
            assert all(there[first:last])
