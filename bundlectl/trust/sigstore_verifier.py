"""Judge a keyless signature with sigstore-python's own verifier, against a trusted root that the caller gives.

The verifier checks, in this order: a verified time (a log's promise, or a signed timestamp); the certificate's chain at
that time; its SCT; its usage and the identity; the log entry's inclusion proof, checkpoint and promise; that the time
lies in the certificate's life; the signature; and that the log entry is of this certificate, signature and digest. Here
is added what it leaves open: the authority and the logs must have been in force at that time by the trusted root's own
word, and the certificate must name one identity, exactly the one that is meant.

Nothing here asks the network: the client for a log that the verifier makes for itself is never called.
"""

from __future__ import annotations

import base64
import json
import struct
from datetime import UTC, datetime
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509 import (
    Certificate,
    DuplicateExtension,
    ExtensionNotFound,
    InvalidVersion,
    PrecertificateSignedCertificateTimestamps,
    UnsupportedGeneralNameType,
)
from sigstore.errors import Error, VerificationError
from sigstore.hashes import Hashed
from sigstore.models import Bundle, TrustedRoot
from sigstore.verify import Verifier
from sigstore_models.common.v1 import HashAlgorithm, TimeRange
from sigstore_models.trustroot.v1 import TrustedRoot as RootDocument

from bundlectl.model.keyring import Oidc
from bundlectl.trust.identities import identity_of

_BAD = (
    # What hostile input makes the libraries raise beside their own errors.
    Error,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    OSError,
    struct.error,
    InvalidSignature,
    UnsupportedAlgorithm,
    ExtensionNotFound,
    DuplicateExtension,
    InvalidVersion,
    UnsupportedGeneralNameType,
)


class _Exactly:
    """A policy: the certificate names this identity, and no other."""

    def __init__(self, identity: Oidc) -> None:
        self._identity = identity

    def verify(self, cert: Certificate) -> None:
        """Raise where it does not."""
        if identity_of(cert) != self._identity:
            raise VerificationError("the certificate names somebody else")


@lru_cache(maxsize=256)
def judge(root: bytes, material: bytes, signature: bytes, digest: bytes, issuer: str, subject: str) -> str | None:
    """Say why a signature is not the identity's; None when it is. What it depends on is what it is given.

    Args:
        root: the trusted root, as JSON.
        material: the verification material, as JSON.
        signature: ECDSA in DER.
        digest: SHA-256 of what was signed.
        issuer: of the identity.
        subject: of the identity.
    """
    try:
        bundle = Bundle.from_json(_bundle(material, signature, digest))
        verifier = Verifier(trusted_root=_in_force(_root(root), bundle))
        hashed = Hashed(algorithm=HashAlgorithm.SHA2_256, digest=digest)
        verifier.verify_artifact(hashed, bundle, _Exactly(Oidc(issuer=issuer, subject=subject)))
    except _BAD as error:
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None


def check_root(root: bytes) -> None:
    """Check that sigstore-python can use a trusted root.

    Raises:
        ValueError: it cannot; the message says why.
    """
    try:
        trusted = TrustedRoot(_root(root))
        Verifier(trusted_root=trusted)
        _ = trusted.get_timestamp_authorities()
    except _BAD as error:
        raise ValueError(str(error)) from error


def _bundle(material: bytes, signature: bytes, digest: bytes) -> str:
    content = {
        "messageDigest": {"algorithm": "SHA2_256", "digest": base64.b64encode(digest).decode("ascii")},
        "signature": base64.b64encode(signature).decode("ascii"),
    }
    media_type = Bundle.BundleType.BUNDLE_0_3.value
    return json.dumps(
        {"mediaType": media_type, "verificationMaterial": json.loads(material), "messageSignature": content}
    )


@lru_cache(maxsize=64)
def _root(root: bytes) -> RootDocument:
    return RootDocument.from_json(root)


def _in_force(root: RootDocument, bundle: Bundle) -> TrustedRoot:
    """Leave what was in force when it was signed: by every time that the bundle claims, verified or not yet."""
    entry = bundle.log_entry._inner
    claimed = [datetime.fromtimestamp(entry.integrated_time, tz=UTC)] if entry.integrated_time else []
    stamps = bundle.verification_material.timestamp_verification_data
    claimed += [reply.tst_info.gen_time for reply in stamps.rfc3161_timestamps] if stamps else []
    scts = bundle.signing_certificate.extensions.get_extension_for_class(PrecertificateSignedCertificateTimestamps)
    promised = [sct.timestamp.replace(tzinfo=UTC) for sct in scts.value]
    left = root.model_copy(
        update={
            "certificate_authorities": [ca for ca in root.certificate_authorities if _held(ca.valid_for, claimed)],
            "tlogs": [log for log in root.tlogs if _held(log.public_key.valid_for, claimed)],
            "ctlogs": [log for log in root.ctlogs if _held(log.public_key.valid_for, promised)],
        }
    )
    for what, found in (
        ("certificate authority", left.certificate_authorities),
        ("transparency log", left.tlogs),
        ("CT log", left.ctlogs),
    ):
        if not found:
            raise VerificationError(f"by the trusted root no {what} was in force when it was signed")
    return TrustedRoot(left)


def _held(span: TimeRange | None, times: list[datetime]) -> bool:
    return span is None or all(
        (span.start is None or span.start <= time) and (span.end is None or time <= span.end) for time in times
    )
