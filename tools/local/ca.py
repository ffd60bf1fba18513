"""The laptop's own certificate authority. Production settings refuse what it signs."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from chassis.settings import LAPTOP_ORGANISATION, RpcSettings
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

TRUST_DOMAIN = "laptop.sightline"
_LIFE = timedelta(days=30)


class LaptopCa:
    """Signs certificates for the local stack; everything lies in one folder and goes with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.certificate = folder / "ca.pem"
        self._key_file = folder / "ca.key"
        folder.mkdir(parents=True, exist_ok=True)
        if not self._key_file.exists():
            self._make()
        self._key = serialization.load_pem_private_key(self._key_file.read_bytes(), None)
        self._issuer = x509.load_pem_x509_certificate(self.certificate.read_bytes())

    def _make(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, LAPTOP_ORGANISATION), x509.NameAttribute(NameOID.COMMON_NAME, "laptop CA")]
        )
        certificate = (
            _builder(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        _write_key(self._key_file, key)
        self.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        agency: str,
        kind: str,
        name: str,
        *,
        trust_domain: str = TRUST_DOMAIN,
        expired: bool = False,
        dns: tuple[str, ...] = ("sightline", "localhost"),
    ) -> tuple[Path, Path]:
        """Certificate and key files of `spiffe://<trust domain>/agency/<agency>/<kind>/<name>`; made once, then reused."""
        folder = self._folder / trust_domain / agency / kind
        certificate_file, key_file = folder / f"{name}.pem", folder / f"{name}.key"
        if not certificate_file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            key = ec.generate_private_key(ec.SECP256R1())
            uri = x509.UniformResourceIdentifier(f"spiffe://{trust_domain}/agency/{agency}/{kind}/{name}")
            names = [uri, *map(x509.DNSName, dns)]
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{kind}/{name}"[:64])])
            builder = _builder(subject, self._issuer.subject, key.public_key(), expired=expired)
            usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            certificate = (
                builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
                .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
                .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
                .sign(self._key, hashes.SHA256())  # type: ignore[arg-type]
            )
            _write_key(key_file, key)
            certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return certificate_file, key_file

    def rpc(self, agency: str, kind: str, name: str) -> RpcSettings:
        """Settings of a client with such an identity."""
        certificate, key = self.issue(agency, kind, name)
        return RpcSettings(cert_file=certificate, key_file=key, ca_file=self.certificate)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, expired: bool = False) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    start, end = (now - 2 * _LIFE, now - _LIFE) if expired else (now - timedelta(hours=1), now + _LIFE)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
