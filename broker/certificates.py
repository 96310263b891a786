"""X.509: the federation's own certificate authority, and what it signs for the broker and its clients.

A client's common name is its user name on the broker, so whose certificate it is decides what it may publish. Elliptic
curve P-256 throughout, which every TLS library in the field takes. Where the files lie is the caller's knowledge.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broker.key_files import KeyFileError, read_key_file, write_file, write_new_file

AUTHORITY_DAYS = 3650
CLOCK_SKEW = timedelta(hours=1)  # devices whose clock is behind must still find a new certificate valid


@dataclass(frozen=True)
class Authority:
    """A certificate authority: its certificate, and the key that signs others."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_authority(cert_file: Path, key_file: Path, name: str) -> Authority:
    """The authority in these files; what is missing of it is made."""
    key = _make_key(key_file)
    if not cert_file.exists():
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, subject, key.public_key(), AUTHORITY_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        write_file(cert_file, _pem(builder.sign(key, hashes.SHA256())))
    return Authority(read_certificate(cert_file), key)


def read_authority(cert_file: Path, key_file: Path) -> Authority:
    """The authority in these files. Raises KeyFileError."""
    return Authority(read_certificate(cert_file), _read_key(key_file))


def issue_client(authority: Authority, cert_file: Path, key_file: Path, name: str, days: int) -> x509.Certificate:
    """A certificate with the common name `name`, for the key in `key_file`, which is made where it is missing."""
    key = _make_key(key_file)
    builder = _leaf(authority, key, name, days, ExtendedKeyUsageOID.CLIENT_AUTH)
    return _sign(authority, builder, cert_file)


def issue_server(
    authority: Authority, cert_file: Path, key_file: Path, hosts: Sequence[str], days: int
) -> x509.Certificate:
    """The broker's certificate, for every name and address under which its clients know it."""
    key = _make_key(key_file)
    names = x509.SubjectAlternativeName([_host(host) for host in hosts])
    builder = _leaf(authority, key, "broker", days, ExtendedKeyUsageOID.SERVER_AUTH)
    return _sign(authority, builder.add_extension(names, critical=False), cert_file)


def write_revocations(authority: Authority, crl_file: Path, serials: Iterable[int]) -> None:
    """The authority's list of revoked certificates. It stays valid as long as the authority."""
    now = datetime.now(UTC)
    builder = x509.CertificateRevocationListBuilder().issuer_name(authority.certificate.subject)
    # a list past its next update makes a broker refuse everybody
    builder = builder.last_update(now - CLOCK_SKEW).next_update(authority.certificate.not_valid_after_utc)
    for serial in sorted(serials):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - CLOCK_SKEW)
        builder = builder.add_revoked_certificate(entry.build())
    signed = builder.sign(authority.key, hashes.SHA256())
    write_file(crl_file, signed.public_bytes(serialization.Encoding.PEM))


def read_certificate(path: Path) -> x509.Certificate:
    """The certificate in a PEM file. Raises KeyFileError."""
    try:
        return x509.load_pem_x509_certificate(read_key_file(path))
    except ValueError as error:
        if isinstance(error, KeyFileError):
            raise
        raise KeyFileError(f"{path} holds no certificate: {error}; restore it from a copy") from None


def common_name(certificate: x509.Certificate) -> str:
    """Whose certificate it is: on the broker, the user name."""
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The names and addresses that a server's certificate is for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(str(name.value) for name in names)


def _leaf(
    authority: Authority, key: ec.EllipticCurvePrivateKey, name: str, days: int, purpose: x509.ObjectIdentifier
) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = _builder(subject, authority.certificate.subject, key.public_key(), days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = builder.add_extension(issuer, critical=False)
    return builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - CLOCK_SKEW).not_valid_after(now + timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _sign(authority: Authority, builder: x509.CertificateBuilder, cert_file: Path) -> x509.Certificate:
    certificate = builder.sign(authority.key, hashes.SHA256())
    write_file(cert_file, _pem(certificate))
    return certificate


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _make_key(path: Path) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        made = ec.generate_private_key(ec.SECP256R1())
        pem = made.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_new_file(path, pem)
    return _read_key(path)


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    content = read_key_file(path)
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise KeyFileError(f"{path} holds no private key: {error}; restore it from a copy") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyFileError(f"{path} holds another kind of key than this authority uses: restore it from a copy")
    return key


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
