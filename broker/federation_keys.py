"""A federation's keys on disk: made, enrolled, revoked, rotated and listed. `alignfed keys` is its face.

    offline/root.key            certifies the coordinator's key; is needed for `init` and `rotate` only
    authority/                  the certificate authority's key, and every certificate it has issued
    coordinator/, observer/, nodes/NODE/      a bundle each (bundle.py), to be given to whom it is for
    home-assistant/             the same, where Home Assistant is let in
    broker/                     the broker's certificate, mosquitto.conf, access rules, revoked certificates
    revoked/                    bundles of nodes that were revoked

Every step can be cut short and be done again; what is there is kept. No key is ever overwritten.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from filelock import FileLock

from broker.access import (
    COORDINATOR,
    HOME_ASSISTANT,
    OBSERVER,
    RESERVED,
    denied,
    federation_rules,
    home_assistant_rules,
)
from broker.bundle import (
    CA,
    CERTIFICATES,
    CLIENT_CERT,
    CLIENT_KEY,
    FEDERATION_FILE,
    KEY_RING,
    SIGNING_KEY,
    Membership,
    coordinator_key,
    load_online,
    load_ring,
    newest_certificate,
    read_membership,
)
from broker.certificates import (
    Authority,
    common_name,
    hosts_of,
    issue_client,
    issue_server,
    make_authority,
    read_authority,
    read_certificate,
    write_revocations,
)
from broker.config import TlsFiles, acl, deployment_config
from broker.key_files import (
    PRIVATE,
    KeyFileError,
    make_signing_key,
    new_signing_key,
    read_signing_key,
    write_file,
    write_new_file,
    write_signing_key,
)
from broker.settings import TLS_PORT
from schemas.messages import KeyCertificate, PublicKey
from schemas.signing import SigningKey, key_id, sign
from schemas.topics import GlobalKeys, route
from schemas.trust import KeyRing

RENEW_WITHIN = timedelta(days=30)
OFFLINE = """root.key says which key the coordinator signs with. Whoever has it can make every node take any adapter.

Move this folder to a medium that is connected to nothing, and keep a copy in another place. `alignfed keys rotate`
asks for it, and nothing else does. If it is lost, the coordinator's certificate cannot be renewed, and every node
needs a new bundle, of a new federation.
"""

DISCOVERY = "discovery-prefix"  # a file beside the access rules, which are made with it
_DAY_NS = 24 * 3600 * 10**9


@dataclass(frozen=True)
class Member:
    """One enrolled key and what is known of it, for people to read."""

    name: str
    key_id: str
    revoked: bool
    certificate_expires: datetime | None


@dataclass(frozen=True)
class Keys:
    """A federation's keys at a glance. `root_is_here` is True while the root's key lies where everything else is."""

    federation: str
    root: PublicKey
    root_is_here: bool
    coordinator_key_id: str
    certificate_number: int
    certificate_expires: datetime
    ring_number: int
    hosts: tuple[str, ...]
    discovery_prefix: str | None
    nodes: tuple[Member, ...]


def init(
    folder: Path, federation: str, hosts: Sequence[str], days: int, port: int = TLS_PORT, broker_at: Path | None = None
) -> Keys:
    """Make what is missing of a federation's keys. `broker_at` is where the broker will find its folder.

    Raises KeyFileError for a folder of another federation.
    """
    with _alone(folder):
        root = _root(folder, federation)
        authority = make_authority(
            folder / "authority" / CA, folder / "authority" / "ca.key", f"{federation} (alignfed)"
        )
        member = Membership(federation=federation, name=COORDINATOR, root=root)
        _bundle(folder, folder / COORDINATOR, member, authority, days)
        _bundle(folder, folder / OBSERVER, member.model_copy(update={"name": OBSERVER}), authority, days)
        if not (folder / COORDINATOR / KEY_RING).exists():
            write_new_file(folder / COORDINATOR / KEY_RING, KeyRing().to_bytes())
        if newest_certificate(folder / COORDINATOR) == 0:
            _certify(folder, member, _pending_key(folder / COORDINATOR), days)
        _equip_broker(folder, authority, hosts, days)
        _write_broker_config(folder, port, broker_at or folder / "broker")
        _write_access(folder, federation)
        return look(folder)


def enrol(folder: Path, node: str, days: int) -> Path:
    """Make a node's bundle and put its key on the ring; the folder to give to it. Renews a certificate that runs out.

    Raises KeyFileError where there are no keys yet, and for a name that no node may have.
    """
    if node in RESERVED:
        raise KeyFileError(f"no node may be called {node}: the federation itself uses that name")
    with _alone(folder):
        member = read_membership(folder / COORDINATOR).model_copy(update={"name": node})
        bundle, ring = folder / "nodes" / node, load_ring(folder / COORDINATOR)
        if node not in ring.enrolled:
            _put_aside_what_is_revoked(folder, node, ring)
        _bundle(folder, bundle, member, _authority(folder), days)
        key = make_signing_key(bundle / SIGNING_KEY)
        if key_id(key.public) not in ring.by_id:  # last: only now does it count
            write_file(folder / COORDINATOR / KEY_RING, ring.with_key(node, key.public).to_bytes(), PRIVATE)
        _write_access(folder, member.federation)
        return bundle


def let_in_home_assistant(folder: Path, prefix: str, days: int) -> Path:
    """Make Home Assistant's bundle, and the access rules by which it is told of nodes below this prefix.

    Raises KeyFileError where there are no keys yet.
    """
    with _alone(folder):
        member = read_membership(folder / COORDINATOR).model_copy(update={"name": HOME_ASSISTANT})
        _bundle(folder, folder / HOME_ASSISTANT, member, _authority(folder), days)
        write_file(folder / "broker" / DISCOVERY, prefix.encode() + b"\n")
        _write_access(folder, member.federation)
        return folder / HOME_ASSISTANT


def revoke(folder: Path, name: str) -> None:
    """Put a node's keys and certificates out of force, and its bundle aside; Home Assistant's, too.

    Raises KeyFileError for a name that nobody here has.
    """
    with _alone(folder):
        if name == HOME_ASSISTANT:
            _shut_out_home_assistant(folder)
        else:
            _revoke_node(folder, name)
        _write_access(folder, read_membership(folder / COORDINATOR).federation)


def rotate(folder: Path, days: int) -> Keys:
    """Give the coordinator a new key, certified by the root; nodes that have heard of it take nothing of the old one.

    Raises KeyFileError where the root's key is away.
    """
    with _alone(folder):
        member = read_membership(folder / COORDINATOR)
        old = load_online(folder / COORDINATOR, member).key
        _certify(folder, member, _pending_key(folder / COORDINATOR), days)
        (folder / COORDINATOR / coordinator_key(old.public)).unlink(missing_ok=True)  # a secret without a use
        return look(folder)


def look(folder: Path) -> Keys:
    """What there is. Raises KeyFileError."""
    member = read_membership(folder / COORDINATOR)
    online, ring = load_online(folder / COORDINATOR, member), load_ring(folder / COORDINATOR)
    return Keys(
        federation=member.federation,
        root=member.root,
        root_is_here=(folder / "offline" / "root.key").exists(),
        coordinator_key_id=key_id(online.certificate.key),
        certificate_number=online.certificate.number,
        certificate_expires=datetime.fromtimestamp(online.certificate.expires_at_ns // 10**9, UTC),
        ring_number=ring.number,
        hosts=hosts_of(read_certificate(folder / "broker" / "server.crt")),
        discovery_prefix=_discovery_prefix(folder) or None,
        nodes=tuple(
            Member(entry.node, key_id(entry.key), entry.revoked, _expiry(folder, entry.node, entry.revoked))
            for entry in ring.nodes
        ),
    )


def broker_files(folder: Path) -> TlsFiles:
    """The files that a broker with these keys needs, besides its access rules in `acl`."""
    return TlsFiles(folder / CA, folder / "server.crt", folder / "server.key", folder / "revoked.crl")


# --- the parts ---


def _root(folder: Path, federation: str) -> PublicKey:
    """The root's public key. It is made with the folder, and never again: bundles in the field know it."""
    if (folder / COORDINATOR / FEDERATION_FILE).exists():
        member = read_membership(folder / COORDINATOR)
        if member.federation != federation:
            raise KeyFileError(f"{folder} has the keys of federation {member.federation}: give {federation} its own")
        return member.root
    write_file(folder / "offline" / "README.txt", OFFLINE.encode())
    return make_signing_key(folder / "offline" / "root.key").public


def _bundle(folder: Path, bundle: Path, member: Membership, authority: Authority, days: int) -> None:
    """What every member has: whom to believe, and a certificate. One that runs out soon is renewed for the same key."""
    if not (bundle / CA).exists():
        write_file(bundle / CA, (folder / "authority" / CA).read_bytes())
    if not (bundle / CLIENT_CERT).exists() or _runs_out(bundle / CLIENT_CERT):
        issued = issue_client(authority, bundle / CLIENT_CERT, bundle / CLIENT_KEY, member.name, days)
        _note_issued(folder, issued, bundle / CLIENT_CERT)
    if not (bundle / FEDERATION_FILE).exists():
        write_file(bundle / FEDERATION_FILE, member.model_dump_json().encode() + b"\n")


def _note_issued(folder: Path, certificate: x509.Certificate, file: Path) -> None:
    """A copy, so that the certificate can be revoked when its bundle is long gone."""
    name = f"{common_name(certificate)}-{certificate.serial_number:x}.crt"
    write_file(folder / "authority" / "issued" / name, file.read_bytes())


def _pending_key(bundle: Path) -> SigningKey:
    """A key for the next certificate; one that a cut-short attempt has left is used."""
    in_force = {coordinator_key(load_online(bundle, read_membership(bundle)).key.public)} if _has_key(bundle) else set()
    for path in sorted(bundle.glob("signing-*.key")):
        if path.name not in in_force:
            return read_signing_key(path)
    key = new_signing_key()
    write_signing_key(bundle / coordinator_key(key.public), key)
    return key


def _has_key(bundle: Path) -> bool:
    return newest_certificate(bundle) > 0


def _certify(folder: Path, member: Membership, key: SigningKey, days: int) -> None:
    path = folder / "offline" / "root.key"
    if not path.exists():
        raise KeyFileError(f"{path} is away: bring the medium that holds the root's key, and run this again")
    root, now_ns = read_signing_key(path), time.time_ns()
    if root.public != member.root:
        raise KeyFileError(f"{path} is not the root of federation {member.federation}: nodes would refuse it")
    number = newest_certificate(folder / COORDINATOR) + 1
    said = KeyCertificate(
        federation=member.federation,
        number=number,
        key=key.public,
        issued_at_ns=now_ns,
        expires_at_ns=now_ns + days * _DAY_NS,
    )
    payload = sign(root, route(member.federation, GlobalKeys()).topic, said.to_bytes())
    write_new_file(folder / COORDINATOR / CERTIFICATES / f"{number}.signed", payload, 0o644)


def _equip_broker(folder: Path, authority: Authority, hosts: Sequence[str], days: int) -> None:
    place = folder / "broker"
    if not (place / CA).exists():
        write_file(place / CA, (folder / "authority" / CA).read_bytes())
    before = hosts_of(read_certificate(place / "server.crt")) if (place / "server.crt").exists() else ()
    wanted = tuple(dict.fromkeys((*before, *hosts)))
    if wanted != before or _runs_out(place / "server.crt"):
        issue_server(authority, place / "server.crt", place / "server.key", wanted, days)
    if not (place / "revoked.crl").exists():
        write_revocations(authority, place / "revoked.crl", ())


def _write_broker_config(folder: Path, port: int, broker_at: Path) -> None:
    text = deployment_config(port, broker_at / "data", broker_files(broker_at), broker_at / "acl")
    write_file(folder / "broker" / "mosquitto.conf", text.encode())


def _write_access(folder: Path, federation: str) -> None:
    ring, prefix = load_ring(folder / COORDINATOR), _discovery_prefix(folder)
    gone = {entry.node for entry in ring.nodes} - ring.enrolled
    rules = federation_rules(federation)
    if prefix:
        rules += home_assistant_rules(federation, prefix)
    elif prefix is not None:
        gone |= {HOME_ASSISTANT}  # what everybody with a certificate may do is not for it
    write_file(folder / "broker" / "acl", (acl(rules) + denied(gone)).encode())


def _discovery_prefix(folder: Path) -> str | None:
    """Below which topic Home Assistant is told of nodes; empty once it was shut out, None before it was let in."""
    path = folder / "broker" / DISCOVERY
    return path.read_text().strip() if path.exists() else None


def _revoke_node(folder: Path, node: str) -> None:
    ring = load_ring(folder / COORDINATOR)
    if not any(entry.node == node for entry in ring.nodes):
        known = ", ".join(sorted(ring.enrolled)) or "none"
        raise KeyFileError(f"no node {node} is enrolled; there are: {known}")
    if node in ring.enrolled:  # first: the coordinator goes by it
        write_file(folder / COORDINATOR / KEY_RING, ring.without_node(node).to_bytes(), PRIVATE)
    _put_aside_what_is_revoked(folder, node, load_ring(folder / COORDINATOR))


def _shut_out_home_assistant(folder: Path) -> None:
    if _discovery_prefix(folder) is None:
        raise KeyFileError("Home Assistant was never let in: `alignfed keys home-assistant` would do so")
    write_file(folder / "broker" / DISCOVERY, b"")
    _revoke_certificates(folder, HOME_ASSISTANT)
    if (bundle := folder / HOME_ASSISTANT).exists():
        _put_aside(folder, bundle, f"{read_certificate(bundle / CLIENT_CERT).serial_number:x}")


def _put_aside_what_is_revoked(folder: Path, node: str, ring: KeyRing) -> None:
    """The certificates of a node without a key in force, and the bundle whose key was revoked; done before or not."""
    if not any(entry.node == node for entry in ring.nodes):
        return
    _revoke_certificates(folder, node)
    bundle = folder / "nodes" / node
    if (bundle / SIGNING_KEY).exists():
        name = key_id(read_signing_key(bundle / SIGNING_KEY).public)
        if name in ring.by_id:
            _put_aside(folder, bundle, name)


def _put_aside(folder: Path, bundle: Path, mark: str) -> None:
    (folder / "revoked").mkdir(mode=0o700, exist_ok=True)
    bundle.rename(folder / "revoked" / f"{bundle.name}-{mark}")


def _revoke_certificates(folder: Path, node: str) -> None:
    crl = x509.load_pem_x509_crl((folder / "broker" / "revoked.crl").read_bytes())
    serials = {revoked.serial_number for revoked in crl}
    serials |= {issued.serial_number for issued in _issued(folder) if common_name(issued) == node}
    write_revocations(_authority(folder), folder / "broker" / "revoked.crl", serials)


def _issued(folder: Path) -> Iterator[x509.Certificate]:
    for path in sorted((folder / "authority" / "issued").glob("*.crt")):
        yield read_certificate(path)


def _expiry(folder: Path, node: str, revoked: bool) -> datetime | None:
    ends = (c.not_valid_after_utc for c in _issued(folder) if common_name(c) == node)
    return None if revoked else max(ends, default=None)


def _authority(folder: Path) -> Authority:
    return read_authority(folder / "authority" / CA, folder / "authority" / "ca.key")


def _runs_out(cert_file: Path) -> bool:
    return read_certificate(cert_file).not_valid_after_utc < datetime.now(UTC) + RENEW_WITHIN


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One change at a time; the folder is for its owner alone."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(folder / ".lock"):
        yield
