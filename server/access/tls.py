"""HTTPS: a certificate from files, or one made here for this machine's own names and addresses."""

import datetime
import hashlib
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.errors import SettingsError
from server.settings import Settings, TlsSettings
from server.state_files import read_private, state_folder, write_private

# Apple's devices take no certificate that is good for longer.
GOOD_FOR = datetime.timedelta(days=397)
RENEW_BEFORE = datetime.timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Tls:
    """What the listener needs, and what to compare when a browser asks whether to trust it."""

    context: ssl.SSLContext
    fingerprint: str
    self_signed: bool


def is_on(settings: TlsSettings) -> bool:
    if settings.tls == "auto":
        return bool(settings.tls_certificate)
    return settings.tls == "self-signed"


def make_tls(settings: Settings, addresses: Sequence[str]) -> Tls | None:
    """The context of the settings; None where they want plain HTTP.

    `addresses` are this machine's, for the certificate that is made here.
    """
    if not is_on(settings.tls):
        return None
    if settings.tls.tls == "self-signed":
        file = state_folder(settings.auth) / "self-signed.pem"
        if not _still_fits(read_private(file, "tls"), addresses):
            write_private(file, self_signed_pem(addresses), "tls")
        return Tls(_context(file, None), _fingerprint(file), self_signed=True)
    certificate = Path(settings.tls.tls_certificate)
    key = Path(settings.tls.tls_key) if settings.tls.tls_key else None
    return Tls(_context(certificate, key), _fingerprint(certificate), self_signed=False)


def self_signed_pem(addresses: Sequence[str]) -> str:
    """A new key and its certificate, for this machine's name and these addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Sightline on this machine")])
    begins = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    names = x509.SubjectAlternativeName(
        [x509.DNSName(text) for text in _host_names()]
        + [x509.IPAddress(ipaddress.ip_address(text)) for text in _with_loopback(addresses)]
    )
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + GOOD_FOR)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return (private + certificate.public_bytes(serialization.Encoding.PEM)).decode()


def _still_fits(pem: str | None, addresses: Sequence[str]) -> bool:
    """Whether a kept certificate is good for a while and for every address there is now.

    A kept one spares people from trusting a new one after each start.
    """
    if pem is None:
        return False
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    named = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    now = datetime.datetime.now(datetime.UTC)
    lasts = certificate.not_valid_after_utc - RENEW_BEFORE > now
    return lasts and named.issuperset(_with_loopback(addresses))


def _with_loopback(addresses: Sequence[str]) -> list[str]:
    texts = ["127.0.0.1", "::1", *(text.partition("%")[0] for text in addresses)]
    return [str(address) for address in dict.fromkeys(map(ipaddress.ip_address, texts))]


def _host_names() -> list[str]:
    own = socket.gethostname()
    fits = own.isascii() and own.replace("-", "").replace(".", "").isalnum()
    return list(dict.fromkeys(["localhost", own, f"{own}.local"] if fits else ["localhost"]))


def _context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise SettingsError(f"tls_certificate: {certificate} cannot be used: {reason}") from None
    return context


def _no_password() -> str:
    # Without this OpenSSL would ask on the terminal, and a service would hang at start.
    raise ValueError("its key is encrypted; give one that is not")


def _fingerprint(certificate: Path) -> str:
    """SHA-256 of the certificate, as browsers show it."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    text = certificate.read_text(encoding="utf-8")
    pem = text[text.index(begin) : text.index(end) + len(end)]
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest().upper()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))
