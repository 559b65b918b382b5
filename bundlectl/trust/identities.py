"""Whether an OIDC identity made a signature: its certificate names it, and a Sigstore instance vouches for both.

Loaded only where a candidate is an identity and a signature brings a certificate. What needs sigstore-python is in
``sigstore_verifier.py`` and is loaded only when certificate and candidate agree: a reader of keys alone does without.
No network, no clock, no files: the trusted root is root's word in the keyring.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from hashlib import sha256

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from bundlectl.model.canonical import canonical
from bundlectl.model.errors import VerificationFailed
from bundlectl.model.keyring import Oidc
from bundlectl.model.sigstore import SignatureExtension, SigstoreInstance
from bundlectl.trust.instances import vouches
from bundlectl.trust.keys import P256, key_id, public_pem_of, scheme_of

_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_ISSUER_RAW = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_USER_NAME = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.7")
"""Fulcio's extensions: https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md."""
_UTF8_STRING = 0x0C


def certificate_of(extension: SignatureExtension) -> x509.Certificate:
    """Read the certificate.

    Raises:
        VerificationFailed: it is none, or its key is not on P-256.
    """
    try:
        certificate = x509.load_der_x509_certificate(base64.b64decode(extension.ext.certificate.rawBytes))
        scheme = scheme_of(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise VerificationFailed("The certificate of a signature cannot be read.", why=str(error)) from error
    if scheme != P256:
        raise VerificationFailed("The certificate of a signature holds a key that is not on P-256.")
    return certificate


def certified_key_id(certificate: x509.Certificate) -> str:
    """Give the id of the key that lived as long as the certificate."""
    key = certificate.public_key()
    assert scheme_of(key) == P256  # certificate_of saw to it
    return key_id(public_pem_of(key))  # type: ignore[arg-type]


def identity_of(certificate: x509.Certificate) -> Oidc | None:
    """Read whom a Fulcio certificate names; None where it names nobody, or more than one.

    The issuer stands in two extensions, the older one raw; where both are there they must agree. Exactly one subject
    alternative name: an e-mail address, a URI, or Fulcio's user name.
    """
    try:
        extensions = certificate.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return None
    issuers: set[str | None] = set()
    names: list[str | None] = []
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.SubjectAlternativeName):
            names += [_name(name) for name in value]
        elif isinstance(value, x509.UnrecognizedExtension) and extension.oid == _ISSUER:
            issuers.add(_utf8_string(value.value))
        elif isinstance(value, x509.UnrecognizedExtension) and extension.oid == _ISSUER_RAW:
            issuers.add(_text(value.value))
    issuer = next(iter(issuers)) if len(issuers) == 1 else None
    name = names[0] if len(names) == 1 else None
    return Oidc(issuer=issuer, subject=name) if issuer and name else None


def objection(
    identity: Oidc,
    extension: SignatureExtension,
    certificate: x509.Certificate,
    signature: bytes,
    message: bytes,
    instances: Sequence[SigstoreInstance],
) -> str | None:
    """Say why a signature, whose certificate names this identity, does not count as its; None when it does.

    Args:
        identity: as :func:`identity_of` read it.
        extension: certificate and log entry.
        certificate: as :func:`certificate_of` read it.
        signature: over the message.
        message: the bytes that were signed.
        instances: those that root trusts.

    Raises:
        VerificationFailed: it cannot be judged here, because the extra ``sigstore`` is not installed.
    """
    instance = vouches(instances, identity.issuer)
    if instance is None:
        return f"the keyring trusts no Sigstore instance for identities of {identity.issuer}"
    try:
        from bundlectl.trust.sigstore_verifier import judge
    except ImportError as error:
        raise VerificationFailed(
            f"A signature of {identity.subject} cannot be judged here, so it does not count.",
            why=f"It was made through Sigstore, and verifying it needs the extra 'sigstore': {error}",
            fix="Install it where releases are verified: pip install 'bundlectl[sigstore]'",
            details={"extra": "sigstore"},
        ) from error
    root, material = canonical(instance.trusted_root), canonical(extension.ext.form())
    return judge(root, material, signature, sha256(message).digest(), identity.issuer, identity.subject)


def _name(name: x509.GeneralName) -> str | None:
    if isinstance(name, x509.RFC822Name | x509.UniformResourceIdentifier):
        return name.value
    if isinstance(name, x509.OtherName) and name.type_id == _USER_NAME:
        return _utf8_string(name.value)
    return None


def _utf8_string(der: bytes) -> str | None:
    """Read a DER UTF8String of less than 64 KiB that is all there is."""
    if len(der) < 2 or der[0] != _UTF8_STRING:
        return None
    if der[1] < 0x80:
        size, start = der[1], 2
    elif der[1] in (0x81, 0x82) and len(der) > (start := 2 + der[1] - 0x80):
        size = int.from_bytes(der[2:start], "big")
        if size < (0x80 if start == 3 else 0x100):
            return None
    else:
        return None
    return _text(der[start:]) if len(der) == start + size else None


def _text(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None
