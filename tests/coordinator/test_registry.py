"""Versions on disk: a head, and an average where that is what nodes serve."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.whole_file import write_whole
from coordinator.core import found, step
from coordinator.registry import Registry, RegistryError
from coordinator.stages import ReleaseStage
from coordinator.state import FederationConfig, PublishRelease, PublishVersion, Received
from coordinator.strategies import FedBuff
from schemas.adapter import Adapter, InvalidAdapter, Layout, LoraConfig
from schemas.messages import GlobalManifest, ReleaseReport

MakeAdapter = Callable[..., Adapter]
MakeConfig = Callable[..., FederationConfig]
MakeMessage = Callable[..., Received]
Averaged = tuple[PublishVersion, PublishRelease]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "adapters")


@pytest.fixture
def averaged(config: MakeConfig, adapter: MakeAdapter, message: MakeMessage) -> Averaged:
    """Version 1: its head is 5, and its average, 3, is what is served."""
    state, _ = found(config(FedBuff(buffer_size=1, release=ReleaseStage(choose="average"))), adapter(0), 0)
    _, [_, version, release, _] = step(state, message("a", 5))
    assert isinstance(version, PublishVersion) and isinstance(release, PublishRelease)
    return version, release


def keep(registry: Registry, averaged: Averaged) -> GlobalManifest:
    """Keep both, as a coordinator does; the manifest."""
    version, release = averaged
    registry.add(version.manifest, version.adapter)
    registry.set_release(release.report, release.adapter)
    return version.manifest


def test_head_and_average_are_two_files_under_their_digests(registry: Registry, averaged: Averaged) -> None:
    keep(registry, averaged)
    files = sorted((registry.folder / "objects").iterdir())
    assert {path.stem for path in files} == {one.adapter.digest for one in averaged}
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.stem for path in files)


def test_either_adapter_of_a_version_is_read_back(
    registry: Registry, averaged: Averaged, adapter: MakeAdapter, layout: Layout
) -> None:
    manifest = keep(registry, averaged)
    assert registry.adapter(1, layout) == adapter(5)
    assert registry.adapter(1, layout, "average") == adapter(3)
    assert registry.versions() == [manifest]
    assert registry.release() == averaged[1].report


def test_a_version_of_a_strategy_that_serves_heads_has_no_average(
    registry: Registry, config: MakeConfig, adapter: MakeAdapter
) -> None:
    _, [version, _] = found(config(), adapter(1), 0)
    assert isinstance(version, PublishVersion)
    registry.add(version.manifest, version.adapter)
    with pytest.raises(RegistryError, match=r"version 0 .* has no average, only its head"):
        registry.body(0, "average")


def test_an_average_that_was_never_served_is_not_kept(registry: Registry, averaged: Averaged) -> None:
    version, _ = averaged
    registry.add(version.manifest, version.adapter)
    with pytest.raises(RegistryError, match="of version 1 is missing"):
        registry.body(1, "average")


def test_decisions_are_found_by_the_version_they_were_about(
    registry: Registry, averaged: Averaged, config: MakeConfig, adapter: MakeAdapter
) -> None:
    _, [version, first] = found(config(), adapter(0), 0)
    assert isinstance(version, PublishVersion) and isinstance(first, PublishRelease)
    registry.add(version.manifest, version.adapter)
    registry.set_release(first.report, first.adapter)
    keep(registry, averaged)
    turned_down = ReleaseReport(version=1, variant="average", judged=10, candidate=3.0, before=2.0)
    registry.set_release(turned_down, averaged[1].adapter)
    assert registry.decisions() == {0: first.report, 1: averaged[1].report, 10: turned_down}
    assert registry.release() == turned_down


def test_a_version_is_there_only_when_it_is_this_very_one(registry: Registry, averaged: Averaged) -> None:
    assert not registry.has(averaged[0].manifest)
    manifest = keep(registry, averaged)
    assert registry.has(manifest)
    assert not registry.has(manifest.model_copy(update={"epoch": 7}))
    assert not registry.has(manifest.model_copy(update={"version": 2}))


def test_a_version_is_whole_before_its_manifest_is_there(registry: Registry, averaged: Averaged) -> None:
    version, _ = averaged
    (registry.folder / "objects").mkdir(parents=True)
    (registry.folder / "objects" / f"{version.adapter.digest}.safetensors.unfinished").mkdir()
    with pytest.raises(OSError):
        registry.add(version.manifest, version.adapter)
    assert not registry.has(version.manifest)
    assert registry.versions() == []


@pytest.mark.parametrize("variant", ["head", "average"])
def test_a_damaged_or_missing_adapter_is_told_by_its_name(registry: Registry, averaged: Averaged, variant: str) -> None:
    manifest = keep(registry, averaged)
    body = manifest.body if variant == "head" else manifest.average
    assert body is not None
    path = registry.folder / "objects" / f"{body.sha256}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(RegistryError, match=f"{body.sha256[:12]} of version 1 .* is damaged"):
        registry.body(1, variant)  # type: ignore[arg-type]
    path.unlink()
    with pytest.raises(RegistryError, match=f"{body.sha256[:12]} of version 1 is missing"):
        registry.body(1, variant)  # type: ignore[arg-type]


def test_an_adapter_of_another_layout_is_not_read(registry: Registry, averaged: Averaged) -> None:
    keep(registry, averaged)
    other = Layout(lora=LoraConfig(rank=2), tensors=(("x.lora_A.weight", (2, 1)), ("x.lora_B.weight", (1, 2))))
    with pytest.raises(InvalidAdapter):
        registry.adapter(1, other)


def test_a_full_disk_is_told_with_the_file_that_has_no_room(tmp_path: Path) -> None:
    (tmp_path / "1.json.unfinished").symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/1.json'"):
        write_whole(tmp_path / "1.json", b"{}")
    assert not (tmp_path / "1.json").exists()
