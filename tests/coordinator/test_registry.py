"""Versions on disk: a head, and an average where that is what nodes serve."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.core import found, step
from coordinator.registry import Registry, RegistryError
from coordinator.stages import ReleaseStage
from coordinator.state import FederationConfig, PublishVersion, Received
from coordinator.strategies import FedBuff
from schemas.adapter import Adapter, InvalidAdapter, Layout, LoraConfig

MakeAdapter = Callable[..., Adapter]
MakeConfig = Callable[..., FederationConfig]
MakeMessage = Callable[..., Received]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "adapters")


@pytest.fixture
def averaged(config: MakeConfig, adapter: MakeAdapter, message: MakeMessage) -> PublishVersion:
    """Version 1: its head is 5, and its average, 3, is what is served."""
    state, _ = found(config(FedBuff(buffer_size=1, release=ReleaseStage(choose="average"))), adapter(0), 0)
    _, effects = step(state, message("a", 5))
    [version] = [effect for effect in effects if isinstance(effect, PublishVersion)]
    return version


def test_head_and_average_are_two_files_under_their_digests(registry: Registry, averaged: PublishVersion) -> None:
    assert averaged.average is not None
    registry.add(averaged.manifest, averaged.adapter, averaged.average)
    files = sorted((registry.folder / "objects").iterdir())
    assert {path.stem for path in files} == {averaged.adapter.digest, averaged.average.digest}
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.stem for path in files)


def test_either_adapter_of_a_version_is_read_back(
    registry: Registry, averaged: PublishVersion, adapter: MakeAdapter, layout: Layout
) -> None:
    registry.add(averaged.manifest, averaged.adapter, averaged.average)
    assert registry.adapter(1, layout) == adapter(5)
    assert registry.adapter(1, layout, "average") == adapter(3)
    assert registry.versions() == [averaged.manifest]


def test_a_version_whose_head_is_served_has_no_average(
    registry: Registry, config: MakeConfig, adapter: MakeAdapter
) -> None:
    _, [version] = found(config(), adapter(1), 0)
    assert isinstance(version, PublishVersion)
    registry.add(version.manifest, version.adapter, version.average)
    with pytest.raises(RegistryError, match=r"version 0 .* has no average: its head is served"):
        registry.body(0, "average")


def test_a_version_is_there_only_when_it_is_this_very_one(registry: Registry, averaged: PublishVersion) -> None:
    assert not registry.has(averaged.manifest)
    registry.add(averaged.manifest, averaged.adapter, averaged.average)
    assert registry.has(averaged.manifest)
    assert not registry.has(averaged.manifest.model_copy(update={"epoch": 7}))
    assert not registry.has(averaged.manifest.model_copy(update={"version": 2}))


def test_a_version_is_whole_before_its_manifest_is_there(registry: Registry, averaged: PublishVersion) -> None:
    (registry.folder / "objects" / f"{averaged.manifest.average.sha256}.safetensors").mkdir(parents=True)  # type: ignore[union-attr]
    with pytest.raises(OSError):
        registry.add(averaged.manifest, averaged.adapter, averaged.average)
    assert not registry.has(averaged.manifest)
    assert registry.versions() == []


@pytest.mark.parametrize("variant", ["head", "average"])
def test_a_damaged_or_missing_adapter_is_told_by_its_name(
    registry: Registry, averaged: PublishVersion, variant: str
) -> None:
    registry.add(averaged.manifest, averaged.adapter, averaged.average)
    body = averaged.manifest.body if variant == "head" else averaged.manifest.average
    assert body is not None
    path = registry.folder / "objects" / f"{body.sha256}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(RegistryError, match=f"{body.sha256[:12]} of version 1 .* is damaged"):
        registry.body(1, variant)  # type: ignore[arg-type]
    path.unlink()
    with pytest.raises(RegistryError, match=f"{body.sha256[:12]} of version 1 is missing"):
        registry.body(1, variant)  # type: ignore[arg-type]


def test_an_adapter_of_another_layout_is_not_read(registry: Registry, averaged: PublishVersion) -> None:
    registry.add(averaged.manifest, averaged.adapter, averaged.average)
    other = Layout(lora=LoraConfig(rank=2), tensors=(("x.lora_A.weight", (2, 1)), ("x.lora_B.weight", (1, 2))))
    with pytest.raises(InvalidAdapter):
        registry.adapter(1, other)
