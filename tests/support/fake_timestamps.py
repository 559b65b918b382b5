"""A timestamp authority (RFC 3161) for ``fake_sigstore``: Debian's openssl answers, with keys of its own."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.support.fake_sigstore import b64, certificate_authority, key_usage, named, new_key

SETTINGS = """\
[ts]
serial = {folder}/serial
default_policy = 1.2.3.4.1
digests = sha256
signer_digest = sha256
accuracy = secs:1
ess_cert_id_alg = sha256
"""


class FakeTimestamps:
    """The authority's files, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root_key, self.key = new_key(), new_key()
        self.root = certificate_authority("tsa-root", self.root_key, "tsa-root", self.root_key, None)
        start = datetime.now(UTC) - timedelta(days=1)
        self.leaf = (
            x509.CertificateBuilder()
            .subject_name(named("tsa"))
            .issuer_name(self.root.subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.root_key.public_key()), critical=False
            )
            .sign(self.root_key, SHA256())
        )
        private = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / "key.pem").write_bytes(private)
        (folder / "leaf.pem").write_bytes(self.leaf.public_bytes(Encoding.PEM))
        (folder / "serial").write_text("01\n")
        (folder / "ts.cnf").write_text(SETTINGS.format(folder=folder))

    def answer(self, query: bytes) -> bytes:
        """Stamp a digest with the time of now."""
        (self.folder / "query").write_bytes(query)
        argv = ["openssl", "ts", "-reply", "-queryfile", "query", "-config", "ts.cnf", "-section", "ts"]
        argv += ["-signer", "leaf.pem", "-inkey", "key.pem", "-out", "reply"]
        subprocess.run(argv, cwd=self.folder, check=True, capture_output=True, timeout=60)
        return (self.folder / "reply").read_bytes()

    def trusted(self, url: str) -> dict[str, Any]:
        """Give what a trusted root says of it."""
        chain = [{"rawBytes": b64(one.public_bytes(Encoding.DER))} for one in (self.leaf, self.root)]
        return {
            "subject": {"organization": "sigstore.test", "commonName": "tsa"},
            "uri": url,
            "certChain": {"certificates": chain},
            "validFor": {"start": "2020-01-01T00:00:00Z"},
        }
