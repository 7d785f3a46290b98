"""A certificate authority of one cluster, and certificates that its hosts show each other. Nothing else trusts it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from msgspec import Struct

_DAYS = 365
_CLOCKS_DIFFER = timedelta(hours=1)


class Identity(Struct, frozen=True):
    """A certificate and its private key, as PEM."""

    certificate: bytes
    key: bytes = b""

    def __repr__(self) -> str:
        return "Identity(...)"


class Credentials(Struct, frozen=True):
    """Of a cluster: whoever holds a token and an identity that `authority` signed belongs to it."""

    token: str
    authority: Identity

    def __repr__(self) -> str:
        return "Credentials(...)"


def generate() -> Credentials:
    """Fresh ones."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"longhaul cluster {secrets.token_hex(4)}")
    certificate = (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Credentials(secrets.token_hex(32), _pem(certificate, key))


def issue(authority: Identity, hosts: Sequence[str]) -> Identity:
    """An identity for hosts, by the names and addresses under which others reach them; loopback is always one."""
    parent = x509.load_pem_x509_certificate(authority.certificate)
    parent_key = serialization.load_pem_private_key(authority.key, None)
    assert isinstance(parent_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    names = [_general_name(host) for host in dict.fromkeys([*hosts, "127.0.0.1", "localhost"])]
    certificate = (
        _builder(_name(hosts[0][:64]), parent.subject, key)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(parent_key, hashes.SHA256())
    )
    return _pem(certificate, key)


def ends_at(certificate: bytes) -> datetime:
    """When it is no longer good."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def names_of(certificate: bytes) -> list[str]:
    """The names and addresses that it is for."""
    found = x509.load_pem_x509_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(name.value) for name in found.value]


def save(credentials: Credentials, folder: Path) -> None:
    """Into a folder that its owner alone can read."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, data in (
        ("token", credentials.token.encode()),
        ("authority.pem", credentials.authority.certificate),
        ("authority.key", credentials.authority.key),
    ):
        path = folder / name
        path.touch(mode=0o600)
        path.write_bytes(data)


def load(folder: Path) -> Credentials | None:
    """What `save` left there."""
    try:
        authority = Identity((folder / "authority.pem").read_bytes(), (folder / "authority.key").read_bytes())
        return Credentials((folder / "token").read_text().strip(), authority)
    except FileNotFoundError:
        return None


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + timedelta(days=_DAYS))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Identity:
    return Identity(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
