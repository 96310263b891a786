"""A bundle: the folder of keys by which one member of a federation is known, as `alignfed keys` makes it.

federation.json   whose bundle it is, the federation, and the root's public key, which is believed in
ca.crt, client.crt, client.key     TLS: the authority, and a certificate whose common name is the member's
signing.key       a node's ed25519 key; the coordinator has signing-<id>.key, named by its newest certificate
certificates/, keyring.json        the coordinator's: the root's word for its keys, and the nodes that are enrolled
"""

from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from broker.events import Publication
from broker.key_files import KeyFileError, read_key_file, read_signing_key
from broker.settings import BrokerSettings
from schemas.messages import InvalidMessage, KeyCertificate, PublicKey
from schemas.signing import SigningKey, key_id, sign, verified
from schemas.topics import GlobalKeys, Name, parse, route
from schemas.trust import KeyRing

FEDERATION_FILE, SIGNING_KEY, KEY_RING, CERTIFICATES = "federation.json", "signing.key", "keyring.json", "certificates"
CA, CLIENT_CERT, CLIENT_KEY = "ca.crt", "client.crt", "client.key"


class Membership(BaseModel):
    """Whose bundle it is, and of which federation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    federation: Name
    name: Name
    root: PublicKey


@dataclass(frozen=True)
class Bundle:
    """One member's keys. `key` signs what it says; an observer, who says nothing, has none."""

    folder: Path
    federation: str
    name: str
    root: PublicKey
    key: SigningKey | None

    def signed(self, publication: Publication) -> Publication:
        """The publication with our signature, if its topic asks for one; what deletes a retained message has none."""
        address = parse(self.federation, publication.topic)
        if address is None or address.spec.signer in (None, "root") or not publication.payload:
            return publication
        if self.key is None:
            raise KeyFileError(f"{self.folder} has no signing key: {self.name} only looks on")
        return replace(publication, payload=sign(self.key, publication.topic, publication.payload))

    def reaches(self, broker: BrokerSettings) -> BrokerSettings:
        """How to reach the broker with this bundle's certificate, unless the settings name another."""
        if broker.ca_file is not None:
            return broker
        files = {name: self.folder / file for name, file in _TLS.items()}
        return broker.model_copy(update=files)


_TLS = {"ca_file": CA, "cert_file": CLIENT_CERT, "key_file": CLIENT_KEY}


@dataclass(frozen=True)
class Online:
    """The key that the coordinator signs with, and the root's word for it, as it is published on `global/keys`."""

    key: SigningKey
    certificate: KeyCertificate
    payload: bytes


def read_bundle(folder: Path) -> Bundle:
    """The bundle of any member, with its signing key if it has one that is always in force. Raises KeyFileError."""
    member, path = read_membership(folder), folder / SIGNING_KEY
    key = read_signing_key(path) if path.exists() else None
    return Bundle(folder, member.federation, member.name, member.root, key)


def load_node_bundle(folder: Path, federation: str, node: str) -> Bundle:
    """A node's bundle, of this federation and this node. Raises KeyFileError."""
    member = membership_in(folder, federation, node)
    key = read_signing_key(folder / SIGNING_KEY)
    return Bundle(folder, member.federation, member.name, member.root, key)


def load_coordinator_bundle(folder: Path, federation: str) -> tuple[Bundle, Online]:
    """The coordinator's bundle, and the key in force of it. Raises KeyFileError."""
    member = membership_in(folder, federation, "coordinator")
    online = load_online(folder, member)
    return Bundle(folder, member.federation, member.name, member.root, online.key), online


def load_online(folder: Path, member: Membership) -> Online:
    """The coordinator's newest certificate with its key. Raises KeyFileError."""
    payload = read_key_file(folder / CERTIFICATES / f"{newest_certificate(folder)}.signed")
    certificate = read_certificate_of_key(payload, member)
    return Online(read_signing_key(folder / coordinator_key(certificate.key)), certificate, payload)


def newest_certificate(folder: Path) -> int:
    """The number of the coordinator's newest certificate; 0 while there is none."""
    numbers = (path.stem for path in (folder / CERTIFICATES).glob("*.signed"))
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def read_certificate_of_key(payload: bytes, member: Membership) -> KeyCertificate:
    """A key's certificate, if the federation's root has signed it. Raises KeyFileError."""
    try:
        message = verified(member.root, route(member.federation, GlobalKeys()).topic, payload)
        return KeyCertificate.from_bytes(message)
    except InvalidMessage as error:
        raise KeyFileError(f"the certificate of the coordinator's key is not the root's: {error}") from None


def coordinator_key(key: PublicKey) -> str:
    """The name of the file of one of the coordinator's keys."""
    return f"signing-{key_id(key)}.key"


def load_ring(folder: Path) -> KeyRing:
    """The coordinator's key ring. Raises KeyFileError."""
    try:
        return KeyRing.from_bytes(read_key_file(folder / KEY_RING))
    except InvalidMessage as error:
        raise KeyFileError(f"{folder / KEY_RING}: {error}; restore it from a copy") from None


def read_membership(folder: Path) -> Membership:
    """Whose bundle a folder is. Raises KeyFileError."""
    path = folder / FEDERATION_FILE
    try:
        return Membership.model_validate_json(read_key_file(path))
    except ValidationError:
        raise KeyFileError(f"{path} is damaged; restore it from a copy") from None


def membership_in(folder: Path, federation: str, name: str) -> Membership:
    """The membership that a bundle is of, which has to be this one. Raises KeyFileError."""
    member = read_membership(folder)
    if member.federation != federation:
        raise KeyFileError(f"{folder} is of federation {member.federation}, the settings say {federation}")
    if member.name != name:
        raise KeyFileError(f"{folder} is the bundle of {member.name}, not of {name}: set security.keys to its own")
    return member
