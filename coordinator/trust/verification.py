"""Check all that a coordinator has published, without a broker: hashes, order, and signatures from the root down.

Needs the registry and, for the signatures, the root's public key with its certificates, which are public. It believes
nothing that is not signed, and believes no file to be what its name says.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from broker.bundle import CERTIFICATES, Membership, read_certificate_of_key, read_membership
from broker.key_files import KeyFileError
from coordinator.registry import Registry, RegistryError
from schemas.messages import GlobalManifest, InvalidMessage, KeyCertificate
from schemas.signing import key_id, take_apart, verified
from schemas.topics import GlobalManifestOf, decision_name, route

NO_DIGEST = None


@dataclass(frozen=True)
class VerifiedVersion:
    """One version: its digest, the key that signed it, and the first thing that is wrong with it, if any is."""

    version: int
    digest: str | None
    signed_by: str | None
    fault: str | None


@dataclass(frozen=True)
class Certified:
    """The federation's root, and by their ids the keys that it has certified."""

    member: Membership
    certificates: Mapping[str, KeyCertificate]


def read_certified(bundle: Path) -> Certified:
    """Every key that the root has certified, from a coordinator's bundle. Raises KeyFileError for a false one."""
    member = read_membership(bundle)
    found = (read_certificate_of_key(path.read_bytes(), member) for path in (bundle / CERTIFICATES).glob("*.signed"))
    certificates = {key_id(certificate.key): certificate for certificate in found}
    if not certificates:
        raise KeyFileError(f"there is no certificate in {bundle / CERTIFICATES}: name the coordinator's bundle")
    return Certified(member, certificates)


def verify_chain(
    registry: Registry, certified: Certified | None, recorded: Iterable[GlobalManifest] = ()
) -> Iterator[VerifiedVersion]:
    """Each version, oldest first. Without `certified` signatures are not looked at.

    `recorded` are the manifests in the journal, where it is at hand: a chain that was cut off at its end is sound.
    """
    in_journal = {manifest.version: manifest for manifest in recorded}
    parent: str | None = NO_DIGEST
    epoch, expected, used = 0, 0, dict[str, int]()
    newest_key = 0  # number of the newest certificate so far: who has a key that was replaced can still sign with it
    for version in registry.numbers():
        manifest: GlobalManifest | None = None
        signed_by = None
        try:
            manifest = registry.manifest(version)
            if certified is not None:
                certificate = _signer(registry, manifest, certified, newest_key)
                signed_by, newest_key = key_id(certificate.key), certificate.number
                _check_decision(registry, version, certified, newest_key)
            fault = _fault(registry, manifest, version, expected, parent, epoch, used)
            if fault is None and in_journal.get(version, manifest) != manifest:
                fault = "the journal has another version of this number"
        except (RegistryError, InvalidMessage) as error:
            fault = str(error)
        yield VerifiedVersion(version, manifest.digest if manifest else None, signed_by, fault)
        expected = version + 1
        if manifest is not None:
            parent, epoch = manifest.digest, max(epoch, manifest.epoch)
            used |= {given.update_id: version for given in manifest.inputs}
    for version in sorted(set(registry.decided()) - set(registry.numbers())):
        yield VerifiedVersion(version, None, None, "something was decided on it, and there is no such version")
    for version in sorted(in_journal.keys() - set(registry.numbers())):
        yield VerifiedVersion(version, in_journal[version].digest, None, "it is in the journal, and missing here")


def _fault(
    registry: Registry,
    manifest: GlobalManifest,
    version: int,
    expected: int,
    parent: str | None,
    epoch: int,
    used: Mapping[str, int],
) -> str | None:
    """What is wrong with a version in its place; RegistryError for bytes that are not what the manifest names."""
    if version != expected:
        return f"version {expected} is missing before it"
    if manifest.version != version:
        return f"its manifest is that of version {manifest.version}"
    if manifest.parent != parent:
        return "its parent is not the version before"
    if manifest.epoch < epoch:
        return f"its epoch {manifest.epoch} is lower than {epoch}, the one before"
    if twice := next((given for given in manifest.inputs if given.update_id in used), None):
        return f"update {twice.update_id[:8]} of {twice.node} is in version {used[twice.update_id]} already"
    registry.body(version)
    decision = registry.decision(version)
    if decision is not None:
        registry.body(decision.version, decision.variant)
    return None


def _signer(registry: Registry, manifest: GlobalManifest, certified: Certified, at_least: int) -> KeyCertificate:
    """The certificate, not below a number, of the key that has signed this manifest: InvalidMessage, RegistryError."""
    payload = registry.seal_of(manifest.version)
    if payload is None:
        raise RegistryError(f"version {manifest.version} was never signed; starting the coordinator with keys signs it")
    topic = route(certified.member.federation, GlobalManifestOf(manifest.version)).topic
    certificate, message = _opened(topic, payload, certified, at_least)
    if message != manifest.to_bytes():
        raise InvalidMessage("what was signed is another manifest")
    if manifest.created_at_ns > certificate.expires_at_ns:
        raise InvalidMessage(f"it was made after the certificate of key {key_id(certificate.key)} had expired")
    return certificate


def _check_decision(registry: Registry, version: int, certified: Certified, at_least: int) -> None:
    """Raise InvalidMessage or RegistryError unless the decision on a version, if there is one, is as it was signed."""
    decision, payload = registry.decision(version), registry.seal_of_decision(version)
    if decision is None and payload is None:  # it was passed over
        return
    if payload is None:
        raise RegistryError("the decision on it was never signed; starting the coordinator with keys signs it")
    _, message = _opened(decision_name(certified.member.federation, version), payload, certified, at_least)
    if decision is None:
        raise RegistryError("the decision on it is missing; its signature is there")
    if message != decision.to_bytes():
        raise InvalidMessage("what was signed is another decision on it")


def _opened(name: str, payload: bytes, certified: Certified, at_least: int) -> tuple[KeyCertificate, bytes]:
    """What a certified key, its certificate not below a number, has signed for this name. Raises InvalidMessage."""
    signer = take_apart(payload).key_id
    if (certificate := certified.certificates.get(signer)) is None:
        raise InvalidMessage(f"key {signer} signed it, which the root has not certified")
    if certificate.number < at_least:
        raise InvalidMessage(f"key {signer} signed it, which had been replaced before: somebody has it who should not")
    return certificate, verified(certificate.key, name, payload)
