"""Public keys: how they are read, named and used to verify. Two schemes: ed25519, and ECDSA on P-256 with SHA-256.

A key's id is the digest of its SubjectPublicKeyInfo in DER, written again by us: one key has one id whatever
PEM it came in (line lengths, a compressed point).
"""

from __future__ import annotations

from functools import lru_cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from bundlectl.model.canonical import digest
from bundlectl.model.errors import VerificationFailed
from bundlectl.model.keyring import PublicKey

ED25519 = "ed25519"
P256 = "ecdsa-p256-sha256"
SCHEMES = (ED25519, P256)

AnyPublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
AnyPrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey

_SMALL_ORDER = frozenset(
    bytes.fromhex(point)
    for point in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)
"""Ed25519 points of small order, sign bit cleared: for such a "key" anyone can make signatures, and one signature
can hold for several of them. OpenSSL takes them (as RFC 8032 lets it)."""

_ONE_OF_TWO = "Keys are ed25519, or ECDSA on the curve P-256."


def scheme_of(key: object) -> str | None:
    """Give the scheme of a loaded private or public key; None for a kind that we do not use."""
    if isinstance(key, ed25519.Ed25519PublicKey | ed25519.Ed25519PrivateKey):
        return ED25519
    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return P256
    return None


@lru_cache(maxsize=1024)
def load_public_key(public_pem: str) -> AnyPublicKey:
    """Read a SubjectPublicKeyInfo PEM.

    Raises:
        VerificationFailed: it is none, or of a kind that we do not use.
    """
    try:
        key = load_pem_public_key(public_pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise VerificationFailed("A public key cannot be read.", why=str(error), fix=_ONE_OF_TWO) from error
    if scheme_of(key) is None:
        raise VerificationFailed(
            f"A public key is of a kind that is not used here: {type(key).__name__}.", fix=_ONE_OF_TWO
        )
    assert isinstance(key, ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey)
    return key


def public_pem_of(key: AnyPublicKey) -> str:
    """Write a public key as SubjectPublicKeyInfo PEM."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@lru_cache(maxsize=1024)
def key_id(public_pem: str) -> str:
    """Give ``sha256:<hex>`` of the key's SubjectPublicKeyInfo in DER.

    Raises:
        VerificationFailed: the PEM is no public key of ours.
    """
    return digest(load_public_key(public_pem).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def check_public_key(key: PublicKey) -> str:
    """Check that a keyring's public key can be read, is of the scheme it says and not weak; give its id.

    Raises:
        VerificationFailed: it is not.
    """
    loaded = load_public_key(key.public)
    found = scheme_of(loaded)
    if isinstance(loaded, ed25519.Ed25519PublicKey):
        raw = loaded.public_bytes_raw()
        if raw[:31] + bytes([raw[31] & 0x7F]) in _SMALL_ORDER:
            raise VerificationFailed("A public key is of small order: anyone can sign in its name.")
    if found != key.scheme:
        raise VerificationFailed(f"A public key says that its scheme is {key.scheme}, and it is {found}.")
    return key_id(key.public)


def verifies(key: PublicKey, signature: bytes, message: bytes) -> bool:
    """Say whether the signature over the message was made by the key. ECDSA signatures are DER; s may be high.

    Raises:
        VerificationFailed: the key itself is unusable, or not of its scheme.
    """
    check_public_key(key)
    loaded = load_public_key(key.public)
    try:
        if isinstance(loaded, ed25519.Ed25519PublicKey):
            loaded.verify(signature, message)
        else:
            loaded.verify(signature, message, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True
