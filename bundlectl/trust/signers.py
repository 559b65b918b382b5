"""Signers by URI. ``file:PATH`` holds a private key in PEM (PKCS 8), mode 0600, with or without a passphrase.

``awskms:NAME`` is a key in AWS KMS (``awskms.py``); boto3 is loaded for such a URI only. ``sigstore:`` signs as an OIDC
identity (``sigstore_signer.py``), which has no key of its own; sigstore-python is loaded for such a URI only.

Passphrases come from a callable that the caller provides (a file or a prompt), never from argv.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from bundlectl.model.errors import BackendUnavailable, MissingExtra, UsageError
from bundlectl.model.keyring import Oidc
from bundlectl.model.sigstore import SignatureExtension
from bundlectl.trust.keys import ED25519, P256, SCHEMES, AnyPrivateKey, key_id, public_pem_of, scheme_of

__all__ = [
    "AnySigner",
    "Endorsed",
    "IdentitySigner",
    "KeySigner",
    "Passphrase",
    "Signer",
    "generate_key",
    "key_id",
    "open_key",
    "open_signer",
]

MAX_KEY_FILE = 64 * 1024

Passphrase = Callable[[str], bytes]
"""Given the path of an encrypted key, gives its passphrase."""


class Signer(Protocol):
    """Something that signs as one key."""

    @property
    def uri(self) -> str:
        """Where the key is, as it was asked for. Never holds a secret."""

    @property
    def scheme(self) -> str:
        """``ed25519`` or ``ecdsa-p256-sha256``."""

    @property
    def public_pem(self) -> str:
        """The public key: SubjectPublicKeyInfo in PEM."""

    @property
    def key_id(self) -> str:
        """``sha256:<hex>`` of the public key's DER."""

    def sign(self, data: bytes) -> bytes:
        """Sign the bytes as they are (the scheme hashes them itself); ECDSA gives DER."""


@dataclass(frozen=True)
class Endorsed:
    """A signature of an identity: made by a key that lived for minutes, with what says whose it was."""

    key_id: str
    signature: bytes
    extension: SignatureExtension


class IdentitySigner(ABC):
    """Something that signs as an OIDC identity. ``uri`` says how it was asked for, and never holds a secret."""

    uri: str
    identity: Oidc

    @abstractmethod
    def endorse(self, data: bytes) -> Endorsed:
        """Sign the bytes as they are."""


AnySigner = Signer | IdentitySigner


class KeySigner:
    """A signer whose private key is held in memory."""

    def __init__(self, key: AnyPrivateKey, uri: str) -> None:
        scheme = scheme_of(key)
        if scheme is None:
            raise UsageError(
                f"{uri} holds a key of a kind that is not used here.",
                fix="Use an ed25519 key, or an ECDSA key on the curve P-256.",
            )
        self._key = key
        self.uri = uri
        self.scheme = scheme
        self.public_pem = public_pem_of(key.public_key())
        self.key_id = key_id(self.public_pem)

    def __repr__(self) -> str:
        return f"KeySigner({self.uri!r}, {self.key_id})"

    def sign(self, data: bytes) -> bytes:
        """Sign the bytes."""
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(data)
        return self._key.sign(data, ec.ECDSA(SHA256()))


def open_signer(uri: str, passphrase: Passphrase | None = None) -> AnySigner:
    """Open the signer that a URI names.

    Raises:
        UsageError: the scheme is unknown; the key is missing, readable by others, encrypted without a passphrase, or no
            key; there is no identity token, or an extra is not installed.
        BackendUnavailable: KMS or Sigstore denies, is throttled or cannot be reached.
    """
    scheme, colon, rest = uri.partition(":")
    opener = _OPENERS.get(scheme) if colon else None
    if opener is None:
        known = ", ".join(f"{name}:" for name in _OPENERS)
        raise UsageError(
            f"{uri!r} is no signer.", why=f"A signer starts with one of {known}.", fix=f"For a key file: file:{uri}"
        )
    return opener(uri, rest, passphrase)


def open_key(uri: str, passphrase: Passphrase | None = None) -> Signer:
    """Open a signer that is a key, for root and owners. An identity is refused before anything is asked for it.

    Raises:
        UsageError, BackendUnavailable: as :func:`open_signer`, and for ``sigstore:``.
    """
    signer = open_signer(uri, passphrase) if not uri.startswith("sigstore:") else None
    if signer is None or isinstance(signer, IdentitySigner):
        raise UsageError(
            f"A {uri.partition(':')[0]}: signer is an identity, and this takes a key.",
            why="Root and owners sign with keys: whoever takes over an identity provider must not change the rules.",
            fix="Use file:PATH, or awskms:alias/NAME with a P-256 key.",
        )
    return signer


def _open_file(uri: str, rest: str, passphrase: Passphrase | None) -> Signer:
    path = _path_of(uri, rest)
    pem = _read_private(path)
    secret: bytes | None = None
    if b"ENCRYPTED" in pem:
        if passphrase is None:
            raise UsageError(
                f"The key {path} is encrypted and no passphrase was given.",
                fix="Set BUNDLECTL_PASSPHRASE_FILE to a file that holds it, or run in a terminal to be asked.",
            )
        secret = passphrase(str(path))
    try:
        key = load_pem_private_key(pem, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if secret is not None:
            raise UsageError(
                f"The key {path} does not open with this passphrase.", fix="Check the passphrase."
            ) from error
        raise UsageError(
            f"{path} is not a private key in PEM.", why=str(error), fix="Make one: bundlectl keyring generate PATH"
        ) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
        raise UsageError(
            f"{path} holds a key of a kind that is not used here: {type(key).__name__}.",
            fix="Use an ed25519 key, or an ECDSA key on the curve P-256.",
        )
    return KeySigner(key, uri)


def _path_of(uri: str, rest: str) -> Path:
    if rest.startswith("//"):
        if not rest.startswith("///"):
            raise UsageError(f"{uri!r} names a host.", fix="A key file is file:PATH or file:///absolute/path.")
        rest = rest[2:]
    if not rest or "\x00" in rest:
        raise UsageError(f"{uri!r} names no file.", fix="A key file is file:PATH.")
    return Path(rest).expanduser()


def _read_private(path: Path) -> bytes:
    # The mode is asked of the open file, so it is the file we read; O_NONBLOCK so that a FIFO cannot hang us.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise UsageError(f"There is no key {path}.", fix=f"Make one: bundlectl keyring generate {path}") from error
    except OSError as error:
        raise UsageError(f"The key {path} cannot be read.", why=error.strerror or str(error)) from error
    try:
        _check_private(fd, path)
        data = os.read(fd, MAX_KEY_FILE + 1)
    except OSError as error:
        raise UsageError(f"The key {path} cannot be read.", why=error.strerror or str(error)) from error
    finally:
        os.close(fd)
    if len(data) > MAX_KEY_FILE:
        raise UsageError(f"{path} is too large to be a key.", why=f"It has more than {MAX_KEY_FILE} bytes.")
    return data


def _check_private(fd: int, path: Path) -> None:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path} is not a regular file.", fix="Name the key file itself.")
    if found.st_mode & 0o077:
        raise UsageError(
            f"The key {path} can be read by others.",
            why=f"Its mode is {stat.S_IMODE(found.st_mode):04o}; a private key is for its owner alone.",
            fix=f"chmod 600 {path}",
        )


def _open_kms(uri: str, rest: str, passphrase: Passphrase | None) -> Signer:
    from bundlectl.trust.awskms import open_kms

    return open_kms(uri, rest)


def _open_sigstore(uri: str, rest: str, passphrase: Passphrase | None) -> AnySigner:
    try:
        from bundlectl.trust.sigstore_signer import open_sigstore
    except ImportError as error:
        raise MissingExtra("Signing through Sigstore", "sigstore") from error
    return open_sigstore(uri, rest)


_OPENERS: dict[str, Callable[[str, str, Passphrase | None], AnySigner]] = {
    "file": _open_file,
    "awskms": _open_kms,
    "sigstore": _open_sigstore,
}


def generate_key(path: Path, scheme: str = "ed25519", passphrase: bytes | None = None) -> Signer:
    """Make a private key and write it, mode 0600, to a path where nothing is yet.

    Folders that are missing are made, mode 0700. The public key is the signer's ``public_pem``.

    Raises:
        UsageError: something is at the path, the scheme is unknown, the passphrase is empty.
        BackendUnavailable: the file cannot be written.
    """
    key: AnyPrivateKey
    if scheme == ED25519:
        key = ed25519.Ed25519PrivateKey.generate()
    elif scheme == P256:
        key = ec.generate_private_key(ec.SECP256R1())
    else:
        raise UsageError(f"{scheme!r} is no scheme.", fix=f"Use one of {', '.join(SCHEMES)}.")
    if passphrase == b"":
        raise UsageError("The passphrase is empty.", fix="Give one of at least a few words, or none at all.")
    protection: KeySerializationEncryption = (
        NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    )
    _write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection))
    return KeySigner(key, f"file:{path}")


def _write_private(path: Path, pem: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError as error:
        raise UsageError(
            f"{path} is already there.", why="A key is never written over.", fix="Name another path, or move it away."
        ) from error
    except OSError as error:
        raise BackendUnavailable(f"The key {path} cannot be written.", why=error.strerror or str(error)) from error
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(fd)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise BackendUnavailable(f"The key {path} cannot be written.", why=error.strerror or str(error)) from error
