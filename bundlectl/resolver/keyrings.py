"""From a pin to the newest keyring of a registry: version by version, each on the word of the one before."""

from __future__ import annotations

from bundlectl.model.canonical import digest
from bundlectl.model.errors import NotFound, VerificationFailed
from bundlectl.model.keyring import Keyring
from bundlectl.registry.registry import Registry
from bundlectl.trust.envelope import open_document, parse_envelope, payload_of
from bundlectl.trust.keyring import VerifiedKeyring, next_keyring, open_keyring


def open_trust(registry: Registry, pin: str) -> VerifiedKeyring:
    """Give the newest keyring that follows from the pinned one; it knows the registry's id.

    Raises:
        NotFound: the registry has no keyring at all.
        VerificationFailed: none is the pinned one, or one on the way does not follow.
    """
    return open_chain(keyring_chain(registry, pin), pin)


def open_chain(chain: list[bytes], pin: str, *, registry_id: str | None = None) -> VerifiedKeyring:
    """Judge keyrings in order of version; the pinned one is among them, and those before it only lead to the id.

    Args:
        chain: the stored bytes, from version 1; or from any other, where ``registry_id`` is known.
        pin: the digest of the one that is trusted outright.
        registry_id: the registry's id, where it is known already.

    Raises:
        VerificationFailed: the pinned one is not there, or one does not follow from the one before.
    """
    digests = [_payload_digest(data) for data in chain]
    if pin not in digests:
        raise VerificationFailed(
            "The registry does not hold the keyring that is pinned.",
            why=f"The pin is {pin}.",
            fix="Check the registry's address and the pin; the administrator of the registry has both.",
        )
    at = digests.index(pin)
    keyring = open_keyring(chain[at], pin, registry=_first(chain, digests, at) or registry_id)
    for data in chain[at + 1 :]:
        keyring = next_keyring(keyring, data)
    return keyring


def newer_pin(chain: list[bytes], one: str, other: str) -> str:
    """Give the newer of two pins, where it follows from the older one.

    Raises:
        VerificationFailed: one of them is not there, or the newer does not follow from the older.
    """
    digests = [_payload_digest(data) for data in chain]
    older, newer = sorted((one, other), key=lambda pin: digests.index(pin) if pin in digests else -1)
    open_chain(chain, older)
    return newer


def keyring_chain(registry: Registry, pin: str) -> list[bytes]:
    """Read every keyring of a registry in order; nothing is verified.

    Raises:
        NotFound: there is none.
    """
    chain = registry.latest_keyring(0)
    if not chain:
        raise NotFound(
            f"There is no registry at {registry.store.url}: it holds no keyring.",
            why=f"The pinned keyring {pin} was to be read there.",
            fix="Check the address, or make a registry: bundlectl init DIR --app NAME",
        )
    return chain


def first_pin(registry: Registry) -> str:
    """Give the digest of keyring 1 as the registry itself tells it: trust on first use, for local folders only.

    Raises:
        NotFound: there is no keyring.
        VerificationFailed: it is no keyring.
    """
    return _payload_digest(keyring_chain(registry, "that is to be trusted on first use")[0])


def _first(chain: list[bytes], digests: list[str], at: int) -> str | None:
    """Walk from the pinned keyring back to version 1 by the digests that they name; give the registry's id."""
    for n in range(at, -1, -1):
        envelope = parse_envelope(chain[n], f"keyring {n + 1}")
        document = open_document(envelope, envelope.payloadType, Keyring, f"keyring {n + 1}")
        if document.version == 1:
            return digests[n]
        if n and document.previous != digests[n - 1]:
            raise VerificationFailed(
                f"Keyring {document.version} does not follow the stored keyring {document.version - 1}.",
                why=f"It names {document.previous}; the stored one is {digests[n - 1]}.",
                fix="Restore the keyrings from a backup.",
            )
    return None


def _payload_digest(data: bytes) -> str:
    return digest(payload_of(parse_envelope(data, "a keyring")))
