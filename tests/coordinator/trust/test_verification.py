"""The chain of versions is checked without a broker: no signature, byte or link can be another without being named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from broker.bundle import CERTIFICATES
from broker.federation_keys import init, rotate
from broker.key_files import KeyFileError
from coordinator.core import found, step
from coordinator.registry import Registry
from coordinator.state import PublishRelease, PublishVersion
from coordinator.strategies import FedBuff
from coordinator.trust.seals import Seals
from coordinator.trust.verification import Certified, read_certified, verify_chain
from coordinator.trust.voice import CoordinatorKeys
from schemas.messages import ReleaseReport
from schemas.signing import SigningKey, sign
from schemas.topics import GlobalManifestOf, decision_name, route


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
    """Four signed versions, each with a signed decision; after the second the coordinator got a new key."""
    registry = Registry(tmp_path / "adapters")
    state, effects = found(config(FedBuff(buffer_size=1)), adapter(0), 0)
    for number in range(4):
        seals = Seals(registry, CoordinatorKeys(keys / "coordinator", "test"), "test")
        for effect in effects:
            if isinstance(effect, PublishVersion):
                registry.add(effect.manifest, effect.adapter)
                seals.seal(effect.manifest)
            elif isinstance(effect, PublishRelease):
                registry.set_release(effect.report, effect.adapter)
                seals.seal_decision(effect.report)
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


def test_what_is_missing_at_the_end_is_named_by_the_journal_beside_it(registry: Registry, keys: Path) -> None:
    known, recorded = read_certified(keys / "coordinator"), registry.versions()
    assert [v.fault for v in verify_chain(registry, known, recorded)] == [None] * 4
    for place in ("manifests/{}.json", "signatures/{}.signed", "decisions/{}.json", "signatures/decisions/{}.signed"):
        (registry.folder / place.format(3)).unlink()
    assert faults(registry, known) == {}  # it is a sound chain, only a shorter one
    [missing] = [v for v in verify_chain(registry, known, recorded) if v.fault is not None]
    assert (missing.version, missing.digest) == (3, recorded[3].digest)
    assert "missing" in (missing.fault or "")
    other = recorded[1].model_copy(update={"created_at_ns": 1})
    assert [v.version for v in verify_chain(registry, known, [recorded[0], other]) if v.fault is not None] == [1]


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


def test_a_key_that_was_replaced_signs_nothing_after_the_newer_one(registry: Registry, keys: Path) -> None:
    rotate(keys, days=100)
    newest = Seals(registry, CoordinatorKeys(keys / "coordinator", "test"), "test")
    newest.seal(registry.manifest(2))
    newest.seal_decision(registry.decision(2))
    known = read_certified(keys / "coordinator")
    assert faults(registry, known).keys() == {3}
    assert "had been replaced" in faults(registry, known)[3]
    newest.seal(registry.manifest(3))
    assert "had been replaced" in faults(registry, known)[3]  # what was decided on it
    newest.seal_decision(registry.decision(3))
    assert faults(registry, known) == {}


def test_a_false_certificate_is_not_read_over(keys: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(keys / "coordinator", tmp_path / "bundle"))
    path = bundle / CERTIFICATES / "1.signed"
    path.write_bytes(path.read_bytes().replace(b'"number":1', b'"number":3'))
    with pytest.raises(KeyFileError, match="not the root's"):
        read_certified(bundle)


def test_a_decision_that_was_changed_is_named(registry: Registry, keys: Path) -> None:
    path = registry.folder / "decisions" / "2.json"
    path.write_text(path.read_text().replace('"version":2', '"version":1'))
    assert "another decision" in faults(registry, read_certified(keys / "coordinator"))[2]
    assert faults(registry, None) == {}  # without keys nobody can tell


def test_a_decision_without_its_signature_a_signature_without_its_decision_and_one_on_nothing_are_named(
    registry: Registry, keys: Path
) -> None:
    known = read_certified(keys / "coordinator")
    decisions, signatures = registry.folder / "decisions", registry.folder / "signatures" / "decisions"
    shutil.copy(decisions / "3.json", decisions / "9.json")
    (decisions / "1.json").unlink()
    (signatures / "2.signed").unlink()
    found = faults(registry, known)
    assert found.keys() == {1, 2, 9}
    assert "missing" in found[1] and "never signed" in found[2] and "no such version" in found[9]
    (signatures / "1.signed").unlink()
    assert 1 not in faults(registry, known)  # so is a version that was passed over


def test_a_decision_is_not_that_on_another_version(registry: Registry, keys: Path) -> None:
    shutil.copy(registry.folder / "decisions" / "2.json", registry.folder / "decisions" / "3.json")
    signatures = registry.folder / "signatures" / "decisions"
    shutil.copy(signatures / "2.signed", signatures / "3.signed")
    assert decision_name("test", 3) in faults(registry, read_certified(keys / "coordinator"))[3]


def test_a_start_seals_what_was_never_sealed_and_nothing_that_was_changed(
    registry: Registry, keys: Path, config, adapter
) -> None:
    known = read_certified(keys / "coordinator")
    seals = Seals(registry, CoordinatorKeys(keys / "coordinator", "test"), "test")
    state, _ = found(config(FedBuff(buffer_size=1)), adapter(0), 0)
    state = replace(state, head=replace(state.head, version=3), release=registry.release())
    for kind, number in (("", 3), ("", 2), ("decisions", 3), ("decisions", 2), ("", 0)):
        (registry.folder / "signatures" / kind / f"{number}.signed").unlink()
    changed = registry.folder / "decisions" / "1.json"
    changed.write_text(changed.read_text().replace('"version":1', '"version":0'))
    seals.seal_what_is_open(state)
    found_then = faults(registry, known)
    assert found_then.keys() == {0, 1}
    assert "never signed" in found_then[0]  # whoever can take a signature away must not get another
    shutil.rmtree(registry.folder / "signatures")
    seals.seal_what_is_open(state)  # as if the federation had had no keys so far
    assert faults(registry, known) == {}


def test_a_start_seals_anew_what_a_rollback_decided_before_it_was_cut_short(
    registry: Registry, keys: Path, config, adapter
) -> None:
    back = ReleaseReport(version=1, variant="head", judged=3)
    state, _ = found(config(FedBuff(buffer_size=1)), adapter(0), 0)
    registry.set_release(back, adapter(1))
    Seals(registry, CoordinatorKeys(keys / "coordinator", "test"), "test").seal_what_is_open(
        replace(state, release=back)
    )
    assert faults(registry, read_certified(keys / "coordinator")) == {}
