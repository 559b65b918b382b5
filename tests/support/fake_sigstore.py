"""A Sigstore instance of its own on 127.0.0.1: Fulcio's API, a CT log's key, Rekor of both generations; real formats.

    with fake_sigstore() as sigstore:
        sigstore.config(folder)                           # the client trust config, as a file
        sigstore.token(folder, "https://ci.example", "https://ci.example/release.yml")   # an identity token, as a file
        sigstore.trusted_root                             # what root puts into the keyring

The CA issues for ten minutes to whoever brings a token that the instance's own identity provider signed; the log is a
Merkle tree of RFC 6962. ``generation=2`` needs ``stamps``, as that log gives no time. Each key can be given, so that an
attacker's instance differs in the one that is meant, and ``backdated`` and ``log_ahead`` bend the clocks.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import secrets
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from bundlectl.model.canonical import canonical

ISSUER_V1 = ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
ISSUER_V2 = ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
SCT_LIST = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
ORIGIN = "log.sigstore.test - 1193050959916656506"


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Give the public key in DER."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def b64(data: bytes) -> str:
    """Encode as the wire formats do."""
    return base64.b64encode(data).decode("ascii")


class Authority:
    """A root and an intermediate CA."""

    def __init__(self) -> None:
        self.root_key, self.key = new_key(), new_key()
        self.root = certificate_authority("sigstore-test", self.root_key, "sigstore-test", self.root_key, None)
        self.intermediate = certificate_authority(
            "sigstore-test-intermediate", self.key, "sigstore-test", self.root_key, 0
        )

    @property
    def chain(self) -> list[x509.Certificate]:
        """Intermediate, root."""
        return [self.intermediate, self.root]


class Stamps(Protocol):
    """A timestamp authority: see ``fake_timestamps.py``."""

    def answer(self, query: bytes) -> bytes:
        """Answer a query of RFC 3161."""

    def trusted(self, url: str) -> dict[str, Any]:
        """Give its entry of a trusted root."""


@dataclass
class FakeSigstore:
    """One instance. ``entries`` are the bodies in its log; ``asked`` counts requests by path."""

    authority: Authority = field(default_factory=Authority)
    ct: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    log: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    provider: str = field(default_factory=lambda: secrets.token_hex(32))
    backdated: timedelta = timedelta(0)
    lifetime: timedelta = timedelta(minutes=10)
    log_ahead: timedelta = timedelta(0)
    refuse: int = 0
    stall: float = 0
    two_names: str = ""
    audience: str = "sigstore"
    generation: int = 1
    stamps: Stamps | None = None
    entries: list[bytes] = field(default_factory=list)
    asked: dict[str, int] = field(default_factory=dict)
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def like(self, **changes: Any) -> FakeSigstore:
        """Give another instance with the same keys but for some."""
        same = {"authority": self.authority, "ct": self.ct, "log": self.log, "provider": self.provider}
        return FakeSigstore(**{**same, **changes})

    def token(self, folder: Path, issuer: str, subject: str, **claims: Any) -> Path:
        """Write an identity token; an issuer like GitHub's says in ``job_workflow_ref`` what the certificate names."""
        now = int(time.time())
        said = {"iss": issuer, "sub": subject, "aud": self.audience, "iat": now, "nbf": now - 5, "exp": now + 600}
        file = folder / f"token-{secrets.token_hex(4)}"
        file.write_text(jwt.encode({**said, **claims}, self.provider, algorithm="HS256") + "\n")
        return file

    @property
    def trusted_root(self) -> dict[str, Any]:
        """The trusted root: authority, CT log and log, each valid since long ago."""
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [_log(self.url or "http://127.0.0.1:9", self.log)],
            "certificateAuthorities": [
                {
                    "subject": {"organization": "sigstore.test", "commonName": "sigstore-test"},
                    "uri": self.url,
                    "certChain": {
                        "certificates": [{"rawBytes": b64(c.public_bytes(Encoding.DER))} for c in self.authority.chain]
                    },
                    "validFor": {"start": "2020-01-01T00:00:00Z"},
                }
            ],
            "ctlogs": [_log(f"{self.url}/ct", self.ct)],
            "timestampAuthorities": [self.stamps.trusted(self.url)] if self.stamps else [],
        }

    def config(self, folder: Path) -> Path:
        """Write the client trust config."""
        service = {"url": self.url, "majorApiVersion": 1, "operator": "test"}
        service["validFor"] = {"start": "2020-01-01T00:00:00Z"}
        signing = {
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": [service],
            "oidcUrls": [],
            "rekorTlogUrls": [{**service, "majorApiVersion": self.generation}],
            "rekorTlogConfig": {"selector": "ANY"},
            "tsaUrls": [{**service, "url": f"{self.url}/tsa"}] if self.stamps else [],
            "tsaConfig": {"selector": "ANY"},
        }
        document = {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": self.trusted_root,
            "signingConfig": signing,
        }
        file = folder / f"trust-config-{secrets.token_hex(4)}.json"
        file.write_text(json.dumps(document))
        return file

    def certify(self, token: str, request: x509.CertificateSigningRequest) -> list[x509.Certificate]:
        """Fulcio: issue to whom the token names; the chain, leaf first."""
        said = jwt.decode(token, self.provider, algorithms=["HS256"], audience=self.audience)
        key = request.public_key()
        start = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=5) - self.backdated
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.authority.intermediate.subject)
            .public_key(key)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + self.lifetime)
            .add_extension(key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)  # type: ignore[arg-type]
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.key.public_key()), critical=False
            )
            .add_extension(x509.SubjectAlternativeName(_names(said, self.two_names)), critical=True)
            .add_extension(x509.UnrecognizedExtension(ISSUER_V1, said["iss"].encode()), critical=False)
            .add_extension(x509.UnrecognizedExtension(ISSUER_V2, _utf8(said["iss"])), critical=False)
        )
        promised = builder.sign(self.authority.key, SHA256()).tbs_certificate_bytes
        leaf = builder.add_extension(x509.UnrecognizedExtension(SCT_LIST, self._sct(promised)), critical=False)
        return [leaf.sign(self.authority.key, SHA256()), *self.authority.chain]

    def _sct(self, tbs: bytes) -> bytes:
        """The CT log's promise over a precertificate: RFC 6962 3.2, in the list of 3.3."""
        at = int(time.time() * 1000)
        issuer = hashlib.sha256(spki(self.authority.key)).digest()
        signed = struct.pack("!BBQH", 0, 0, at, 1) + issuer + len(tbs).to_bytes(3, "big") + tbs + b"\0\0"
        signature = self.ct.sign(signed, ec.ECDSA(SHA256()))
        sct = struct.pack("!B32sQH", 0, hashlib.sha256(spki(self.ct)).digest(), at, 0)
        sct += struct.pack("!BBH", 4, 3, len(signature)) + signature
        listed = struct.pack("!H", len(sct)) + sct
        return _der(0x04, struct.pack("!H", len(listed)) + listed)

    def append(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """Rekor: take a hashedrekord whose signature holds; the entry with promise, proof and checkpoint."""
        spec = proposed["spec"]
        certificate = x509.load_pem_x509_certificate(base64.b64decode(spec["signature"]["publicKey"]["content"]))
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        found = bytes.fromhex(spec["data"]["hash"]["value"])
        key.verify(base64.b64decode(spec["signature"]["content"]), found, ec.ECDSA(Prehashed(SHA256())))
        body = canonical(proposed)
        index, leaves = self._grown(body)
        at = int((datetime.now(UTC) + self.log_ahead).timestamp())
        id_ = hashlib.sha256(spki(self.log)).hexdigest()
        promised = canonical({"body": b64(body), "integratedTime": at, "logID": id_, "logIndex": index})
        root = _root(leaves)
        entry = {
            "body": b64(body),
            "integratedTime": at,
            "logID": id_,
            "logIndex": index,
            "verification": {
                "signedEntryTimestamp": b64(self.log.sign(promised, ec.ECDSA(SHA256()))),
                "inclusionProof": {
                    "logIndex": index,
                    "treeSize": len(leaves),
                    "rootHash": root.hex(),
                    "hashes": [node.hex() for node in _path(index, leaves)],
                    "checkpoint": self._checkpoint(len(leaves), root),
                },
            },
        }
        return {leaves[index].hex(): entry}

    def append_tiled(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Rekor v2: take the same, answer with proof and checkpoint; no promise and no time."""
        found = asked["hashedRekordRequestV002"]
        data = {"algorithm": "SHA2_256", "digest": found["digest"]}
        spec = {"hashedRekordV002": {"data": data, "signature": found["signature"]}}
        body = canonical({"kind": "hashedrekord", "apiVersion": "0.0.2", "spec": spec})
        index, leaves = self._grown(body)
        root = _root(leaves)
        return {
            "logIndex": str(index),
            "logId": {"keyId": b64(hashlib.sha256(spki(self.log)).digest())},
            "kindVersion": {"kind": "hashedrekord", "version": "0.0.2"},
            "integratedTime": "0",
            "inclusionProof": {
                "logIndex": str(index),
                "rootHash": b64(root),
                "treeSize": str(len(leaves)),
                "hashes": [b64(node) for node in _path(index, leaves)],
                "checkpoint": {"envelope": self._checkpoint(len(leaves), root)},
            },
            "canonicalizedBody": b64(body),
        }

    def _grown(self, body: bytes) -> tuple[int, list[bytes]]:
        with self._lock:
            self.entries.append(body)
            return len(self.entries) - 1, [hashlib.sha256(b"\0" + entry).digest() for entry in self.entries]

    def _checkpoint(self, size: int, root: bytes) -> str:
        note = f"{ORIGIN}\n{size}\n{b64(root)}\n"
        signature = self.log.sign(note.encode(), ec.ECDSA(SHA256()))
        hint = hashlib.sha256(spki(self.log)).digest()[:4]
        return f"{note}\n— log.sigstore.test {b64(hint + signature)}\n"


@contextlib.contextmanager
def fake_sigstore(instance: FakeSigstore | None = None) -> Iterator[FakeSigstore]:
    """Run an instance on a free port."""
    sigstore = instance or FakeSigstore()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            """The CI system's endpoint that gives a job its identity token."""
            path = self.path.split("?")[0]
            sigstore.asked[path] = sigstore.asked.get(path, 0) + 1
            if self.headers.get("Authorization") != "bearer request-token":
                return self._answer(401, {"message": "who asks?"})
            return self._answer(200, {"value": base64.urlsafe_b64decode(path.removeprefix("/token/")).decode()})

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            sigstore.asked[self.path] = sigstore.asked.get(self.path, 0) + 1
            time.sleep(sigstore.stall)
            if sigstore.refuse:
                return self._answer(sigstore.refuse, {"code": sigstore.refuse, "message": "not today"})
            if self.path == "/tsa" and sigstore.stamps is not None:
                return self._send(200, sigstore.stamps.answer(sent), "application/timestamp-reply")
            data = json.loads(sent)
            if self.path == "/api/v2/signingCert":
                token = self.headers["Authorization"].removeprefix("Bearer ")
                request = x509.load_pem_x509_csr(base64.b64decode(data["certificateSigningRequest"]))
                try:
                    chain = sigstore.certify(token, request)
                except jwt.InvalidTokenError:
                    return self._answer(
                        401, {"code": 16, "message": "There was an error processing the identity token"}
                    )
                pems = [certificate.public_bytes(Encoding.PEM).decode() for certificate in chain]
                return self._answer(200, {"signedCertificateEmbeddedSct": {"chain": {"certificates": pems}}})
            if self.path == "/api/v1/log/entries":
                return self._answer(201, sigstore.append(data))
            if self.path == "/api/v2/log/entries":
                return self._answer(201, sigstore.append_tiled(data))
            return self._answer(404, {"code": 404, "message": self.path})

        def _answer(self, status: int, value: dict[str, Any]) -> None:
            self._send(status, json.dumps(value).encode(), "application/json")

        def _send(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    sigstore.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield sigstore
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def certificate_authority(
    name: str, key: ec.EllipticCurvePrivateKey, by: str, signer: ec.EllipticCurvePrivateKey, depth: int | None
) -> x509.Certificate:
    start = datetime.now(UTC) - timedelta(days=365)
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(by))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=depth), critical=True)
        .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    return builder.sign(signer, SHA256())


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def key_usage(**on: bool) -> x509.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    names += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{name: on.get(name, False) for name in names})


def _names(said: dict[str, Any], also: str) -> list[x509.GeneralName]:
    if "email" in said:
        names: list[x509.GeneralName] = [x509.RFC822Name(said["email"])]
    elif "job_workflow_ref" in said:
        names = [x509.UniformResourceIdentifier(f"https://github.com/{said['job_workflow_ref']}")]
    else:
        names = [x509.UniformResourceIdentifier(said["sub"])]
    return [*names, x509.UniformResourceIdentifier(also)] if also else names


def _utf8(text: str) -> bytes:
    return _der(0x0C, text.encode())


def _der(tag: int, value: bytes) -> bytes:
    size = len(value)
    if size < 0x80:
        return bytes([tag, size]) + value
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + value


def _log(url: str, key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    return {
        "baseUrl": url,
        "hashAlgorithm": "SHA2_256",
        "publicKey": {
            "rawBytes": b64(spki(key)),
            "keyDetails": "PKIX_ECDSA_P256_SHA_256",
            "validFor": {"start": "2020-01-01T00:00:00Z"},
        },
        "logId": {"keyId": b64(hashlib.sha256(spki(key)).digest())},
    }


def _split(size: int) -> int:
    return 1 << ((size - 1).bit_length() - 1)


def _root(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    at = _split(len(leaves))
    return hashlib.sha256(b"\1" + _root(leaves[:at]) + _root(leaves[at:])).digest()


def _path(index: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    at = _split(len(leaves))
    if index < at:
        return [*_path(index, leaves[:at]), _root(leaves[at:])]
    return [*_path(index - at, leaves[at:]), _root(leaves[:at])]
