"""The chain of versions is checked without a broker: no signature, byte or link can be another without being named."""

import json
import shutil
from pathlib import Path

import pytest

from broker.bundle import CERTIFICATES, load_coordinator_bundle
from broker.federation_keys import init, rotate
from broker.key_files import KeyFileError
from coordinator.core import found, step
from coordinator.publisher import publication
from coordinator.registry import Registry
from coordinator.state import PublishRelease, PublishVersion
from coordinator.strategies import FedBuff
from coordinator.trust.verification import Certified, read_certified, verify_chain
from schemas.signing import SigningKey, sign
from schemas.topics import GlobalManifestOf, route


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "keys"
    init(folder, "test", ("127.0.0.1",), days=100)
    return folder


@pytest.fixture
def certified(keys: Path) -> Certified:
    return read_certified(keys / "coordinator")


@pytest.fixture
def registry(tmp_path: Path, keys: Path, config, adapter, message) -> Registry:
    """Four signed versions; after the second the coordinator got a new key."""
    registry = Registry(tmp_path / "adapters")
    state, effects = found(config(FedBuff(buffer_size=1)), adapter(0), 0)
    for number in range(4):
        bundle, _ = load_coordinator_bundle(keys / "coordinator", "test")
        for effect in effects:
            if isinstance(effect, PublishVersion):
                manifest = effect.manifest
                registry.add(manifest, effect.adapter)
                unsigned = publication("test", GlobalManifestOf(manifest.version), manifest.to_bytes())
                registry.seal(manifest.version, bundle.signed(unsigned).payload)
            elif isinstance(effect, PublishRelease):
                registry.set_release(effect.report, effect.adapter)
        if number == 1:
            rotate(keys, days=100)
        state, effects = step(state, message("a", 1, number, state.digests[number], sequence=number))
    return registry


def faults(registry: Registry, certified: Certified | None) -> dict[int, str]:
    return {v.version: v.fault for v in verify_chain(registry, certified) if v.fault is not None}


def test_a_chain_over_two_keys_of_the_coordinator_is_sound(registry: Registry, keys: Path) -> None:
    versions = list(verify_chain(registry, read_certified(keys / "coordinator")))
    assert [version.fault for version in versions] == [None] * 4
    assert len({version.signed_by for version in versions}) == 2


def test_a_manifest_that_was_changed_is_named(registry: Registry, keys: Path) -> None:
    path = registry.folder / "manifests" / "2.json"
    path.write_text(path.read_text().replace('"weight":1.0', '"weight":0.5'))
    assert "another manifest" in faults(registry, read_certified(keys / "coordinator"))[2]
    assert faults(registry, None) == {}  # without keys nobody can tell


def test_every_bit_of_an_adapter_counts(registry: Registry, keys: Path) -> None:
    path = registry.folder / "objects" / f"{registry.manifest(1).digest}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "damaged" in faults(registry, read_certified(keys / "coordinator"))[1]


def test_a_missing_version_a_missing_adapter_and_a_missing_signature_are_named(registry: Registry, keys: Path) -> None:
    known = read_certified(keys / "coordinator")
    (registry.folder / "signatures" / "3.signed").unlink()
    assert "never signed" in faults(registry, known)[3]
    (registry.folder / "objects" / f"{registry.manifest(2).digest}.safetensors").unlink()
    assert "missing" in faults(registry, known)[2]
    (registry.folder / "manifests" / "1.json").unlink()
    assert "version 1 is missing" in faults(registry, known)[2]


def test_the_chain_of_another_history_does_not_join(registry: Registry, keys: Path) -> None:
    path = registry.folder / "manifests" / "2.json"
    forged = json.loads(path.read_text()) | {"parent": "0" * 64}
    path.write_text(json.dumps(forged, separators=(",", ":")))
    assert faults(registry, None)[2] == "its parent is not the version before"


def test_a_key_that_the_root_has_not_certified_signs_nothing(registry: Registry, keys: Path) -> None:
    stranger = SigningKey.from_bytes(bytes(32))
    topic = route("test", GlobalManifestOf(3)).topic
    registry.seal(3, sign(stranger, topic, registry.manifest(3).to_bytes()))
    assert "has not certified" in faults(registry, read_certified(keys / "coordinator"))[3]


def test_a_false_certificate_is_not_read_over(keys: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(keys / "coordinator", tmp_path / "bundle"))
    path = bundle / CERTIFICATES / "1.signed"
    path.write_bytes(path.read_bytes().replace(b'"number":1', b'"number":3'))
    with pytest.raises(KeyFileError, match="not the root's"):
        read_certified(bundle)
