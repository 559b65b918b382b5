"""Where everything lies in a registry: one function per key (DESIGN 4).

Names are checked here, so that no app or environment can reach outside its own prefix.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bundlectl.model.canonical import hex_of
from bundlectl.model.errors import UsageError, VerificationFailed
from bundlectl.model.types import DIGEST, NAME, STORE_NAME

_HISTORY_NAME = re.compile(r"([1-9][0-9]{0,15})-([0-9]{16})\.json")
_VERSION_NAME = re.compile(r"([1-9][0-9]{0,15})\.json")

KEYRINGS = "keyring/"
APPS = "apps/"


def keyring_key(version: int) -> str:
    """Give the key of one version of the keyring."""
    return f"{KEYRINGS}{_version(version)}.json"


def app_prefix(app: str) -> str:
    """Give the prefix of everything of one app."""
    return f"{APPS}{_store_name(app, 'an app')}/"


def policy_prefix(app: str) -> str:
    """Give the prefix of every version of an app's policy."""
    return app_prefix(app) + "policy/"


def policy_key(app: str, version: int) -> str:
    """Give the key of one version of an app's policy."""
    return f"{policy_prefix(app)}{_version(version)}.json"


def blob_key(app: str, digest: str) -> str:
    """Give the key of one blob: component, file, manifest, report, snapshot."""
    return f"{app_prefix(app)}blobs/sha256/{_hex(digest)}"


def blobs_prefix(app: str) -> str:
    """Give the prefix of an app's blobs."""
    return app_prefix(app) + "blobs/"


def packs_prefix(app: str) -> str:
    """Give the prefix of an app's packs."""
    return app_prefix(app) + "packs/"


def pack_key(app: str, bundle: str) -> str:
    """Give the key of a bundle's manifest and layers in one object."""
    return packs_prefix(app) + _hex(bundle)


def all_referrers_prefix(app: str) -> str:
    """Give the prefix of everything that is attested about any bundle of an app."""
    return app_prefix(app) + "referrers/"


def referrers_prefix(app: str, bundle: str) -> str:
    """Give the prefix of everything that is attested about a bundle."""
    return f"{app_prefix(app)}referrers/{_hex(bundle)}/"


def referrer_key(app: str, bundle: str, kind: str, digest: str) -> str:
    """Give the key of one attestation; it is named by the digest of its envelope's bytes."""
    return f"{referrers_prefix(app, bundle)}{_store_name(kind, 'a kind of attestation')}/{_hex(digest)}"


def environments_prefix(app: str) -> str:
    """Give the prefix of an app's environments."""
    return app_prefix(app) + "environments/"


def environment_prefix(app: str, environment: str) -> str:
    """Give the prefix of one environment: its head and its history."""
    return f"{environments_prefix(app)}{_store_name(environment, 'an environment')}/"


def head_key(app: str, environment: str) -> str:
    """Give the key of the live release, whole: the one object whose swap makes a release."""
    return environment_prefix(app, environment) + "head.json"


def history_prefix(app: str, environment: str) -> str:
    """Give the prefix of an environment's former heads."""
    return environment_prefix(app, environment) + "history/"


def history_key(app: str, environment: str, epoch: int, serial: int) -> str:
    """Give the key of a former head, byte for byte."""
    return f"{history_prefix(app, environment)}{_version(epoch)}-{_version(serial):016d}.json"


def indexes_prefix(app: str) -> str:
    """Give the prefix of an app's indexes."""
    return app_prefix(app) + "indexes/"


def gc_key(app: str) -> str:
    """Give the key of what is marked for collection: one document, replaced by swap."""
    return app_prefix(app) + "gc/state.json"


def source_keyring_key(app: str, registry: str, version: int) -> str:
    """Give the key of a keyring of another registry, which came with a copied bundle; ``registry`` is its id."""
    return f"{app_prefix(app)}sources/{_hex(registry)}/keyring/{_version(version)}.json"


def index_folder(app: str, index: str) -> str:
    """Give the key under which an index's tables lie, a folder for each snapshot."""
    if NAME.fullmatch(index) is None:
        raise _unfit(index, "an index")
    return f"{app_prefix(app)}indexes/{index}"


def index_pointer_key(app: str, index: str) -> str:
    """Give the key of the signed pointer at an index's newest snapshot."""
    return f"{index_folder(app, index)}/latest.json"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A release's place in its environment; (epoch, serial) order is the order of releases."""

    epoch: int
    serial: int

    def __str__(self) -> str:
        return f"epoch {self.epoch}, serial {self.serial}"


def place_of(key: str) -> Place:
    """Read a history key back.

    Raises:
        VerificationFailed: it is no such key: someone put a file there.
    """
    found = _HISTORY_NAME.fullmatch(key.rsplit("/", 1)[-1])
    if found is None:
        raise VerificationFailed(
            f"{key} is not the name of a former release.",
            why="Only bundlectl writes here, and it names files <epoch>-<serial>.json.",
            fix="Find out who put it there, and remove it.",
        )
    return Place(int(found[1]), int(found[2]))


def version_of(key: str) -> int | None:
    """Read the version out of a keyring's or policy's key; None if it names none."""
    found = _VERSION_NAME.fullmatch(key.rsplit("/", 1)[-1])
    return int(found[1]) if found else None


def _store_name(value: str, what: str) -> str:
    if STORE_NAME.fullmatch(value) is None:
        raise _unfit(value, what)
    return value


def _unfit(value: str, what: str) -> UsageError:
    return UsageError(
        f"{value!r} cannot be the name of {what}.",
        fix="Use lower-case letters, digits and -, at most 40, starting with a letter or digit.",
    )


def _hex(digest: str) -> str:
    if DIGEST.fullmatch(digest) is None:
        raise UsageError(f"{digest!r} is no digest.", fix="Write it like sha256: and 64 lower-case hex digits.")
    return hex_of(digest)


def _version(number: int) -> int:
    if not 1 <= number < 10**16:
        raise UsageError(f"{number} is no version or serial.", fix="They count from 1.")
    return number
