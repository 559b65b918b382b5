"""The registry's operations on what never changes: bundles, blobs, attestations, keyrings, policies.

Every read is checked against the digest that the caller named or the key carries. Signatures are not judged
here: keyrings, policies and attestations are given as bytes or envelopes for ``bundlectl.trust`` to open.
What does change, an environment's head, is in ``releases.py``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator

from bundlectl.model.attestation import Envelope
from bundlectl.model.bundle import EMPTY_BYTES, EMPTY_DIGEST, Bundle, component_type, open_bundle, open_manifest
from bundlectl.model.canonical import digest, parse_json
from bundlectl.model.errors import NotFound, UsageError, VerificationFailed
from bundlectl.registry import layout
from bundlectl.registry.objects import check_digest, put_immutable, read_or_none
from bundlectl.registry.pack import pack, unpack
from bundlectl.registry.releases import Releases
from bundlectl.storage.ahead import ReadAhead
from bundlectl.storage.parallel import in_parallel
from bundlectl.storage.store import KeyMissing, OutcomeUnknown, Store, Stored, SwapLost, Tag
from bundlectl.trust.envelope import envelope_bytes, parse_envelope

_PREFIX = re.compile(r"[0-9a-f]{8,64}")
_HEX = 64
_log = logging.getLogger(__name__)


class Registry:
    """A registry in a store. Every method may raise ``BackendUnavailable``.

    Args:
        store: where it is.
        on_warning: told, in one sentence, of damage that was got around; by default it is logged.
    """

    def __init__(self, store: Store, *, on_warning: Callable[[str], None] | None = None) -> None:
        self.store = ReadAhead(store)
        self.releases = Releases(self.store)
        self._warn = on_warning or _log.warning

    # ------------------------------------------------------------ bundles

    def put_bundle(self, app: str, bundle: Bundle) -> None:
        """Store a bundle: its layers, then its manifest, then its pack. Doing it again is harmless.

        Raises:
            VerificationFailed: the bundle is another app's, or the registry holds other bytes under a digest.
        """
        check_app(bundle, app)
        names = [name for name in sorted(bundle.blobs) if name != EMPTY_DIGEST]
        in_parallel(lambda name: put_immutable(self.store, layout.blob_key(app, name), bundle.blobs[name]), names)
        put_immutable(self.store, layout.blob_key(app, bundle.digest), bundle.manifest_bytes)
        put_immutable(self.store, layout.pack_key(app, bundle.digest), pack(bundle))

    def get_bundle(self, app: str, digest_: str) -> Bundle:
        """Read a bundle and check its every byte: from its pack, or from its blobs if the pack is lost or damaged.

        Raises:
            NotFound: there is no such bundle.
            VerificationFailed: neither the pack nor the blobs hold its bytes, or it is another app's.
        """
        key = layout.pack_key(app, digest_)
        packed = read_or_none(self.store, key)
        bundle = None
        if packed is not None:
            try:
                bundle = unpack(packed, digest_)
            except VerificationFailed as error:
                self._warn(f"{key} is damaged ({error.what}); the bundle's blobs are read instead.")
        if bundle is None:
            bundle = self._from_blobs(app, digest_, damaged_pack=packed is not None)
        check_app(bundle, app)
        return bundle

    def has_bundle(self, app: str, digest_: str) -> bool:
        """Say whether the bundle is there, whole.

        Raises:
            VerificationFailed: it is there and damaged.
        """
        try:
            self.get_bundle(app, digest_)
        except NotFound:
            return False
        return True

    def bundles(self, app: str) -> list[str]:
        """Give the digest of every stored bundle of an app, sorted."""
        names = (key.rsplit("/", 1)[-1] for key in self.store.list(layout.packs_prefix(app)))
        return [f"sha256:{name}" for name in names]

    def find(self, app: str, hex_prefix: str) -> str:
        """Give the one bundle whose digest begins so.

        Args:
            app: whose bundle.
            hex_prefix: 8 or more hex digits, with or without ``sha256:``.

        Raises:
            NotFound: none does; not asked for a whole digest, which reading it tells.
            UsageError: several do, or these are no 8 hex digits.
        """
        wanted = hex_prefix.removeprefix("sha256:")
        if _PREFIX.fullmatch(wanted) is None:
            raise UsageError(
                f"{hex_prefix!r} does not name a bundle.", fix="Give 8 to 64 lower-case hex digits of its digest."
            )
        if len(wanted) == _HEX:  # nothing to complete, so nothing to list: whether it is there, reading it tells
            return f"sha256:{wanted}"
        found = self._beginning(app, wanted)
        if not found:
            raise NotFound(
                f"App {app} has no bundle whose digest begins with {wanted}.",
                fix=f"See what is live: bundlectl status {app}",
            )
        if len(found) > 1:
            raise UsageError(
                f"{len(found)} bundles of app {app} begin with {wanted}.",
                why=", ".join(found),
                fix="Give more digits.",
                details={"bundles": found},
            )
        return found[0]

    def _beginning(self, app: str, wanted: str) -> list[str]:
        prefix = layout.packs_prefix(app)
        found: list[str] = []
        # Listed from there on, and no further: an app may have 100,000 bundles.
        for key in self.store.list(prefix, prefix + wanted):
            if not key.startswith(prefix + wanted):
                break
            found.append("sha256:" + key.removeprefix(prefix))
        return found

    # ------------------------------------------------------------ blobs

    def put_blob(self, app: str, data: bytes) -> str:
        """Store a blob of an app and give its digest."""
        name = digest(data)
        put_immutable(self.store, layout.blob_key(app, name), data)
        return name

    def get_blob(self, app: str, digest_: str) -> bytes:
        """Read a blob.

        Raises:
            NotFound: there is none.
            VerificationFailed: it holds other bytes.
        """
        key = layout.blob_key(app, digest_)
        data = read_or_none(self.store, key)
        if data is None:
            raise NotFound(f"App {app} has no blob {digest_}.", details={"key": key})
        return check_digest(data, digest_, key)

    # ------------------------------------------------------------ attestations

    def attach(self, app: str, bundle: str, kind: str, envelope: Envelope) -> str:
        """Store what is attested about a bundle and give the digest of the envelope's bytes.

        Args:
            app: whose bundle.
            bundle: its digest; whether it is stored is not asked.
            kind: ``provenance``, ``evaluation``, ``approval``, or another short name.
            envelope: the signed statement.
        """
        data = envelope_bytes(envelope)
        name = digest(data)
        put_immutable(self.store, layout.referrer_key(app, bundle, kind, name), data)
        return name

    def attestations(self, app: str, bundle: str, *, held: Iterable[Envelope] = ()) -> list[tuple[str, str, Envelope]]:
        """Give what is attested about a bundle, as (kind, digest, envelope), sorted by kind and digest.

        Signatures are not checked; the kind is only where it lies.

        Args:
            app: whose bundle.
            bundle: its digest.
            held: envelopes that were read before, from wherever. One whose bytes have the digest of what lies here
                is the same bytes, and is not read again; whether it lies here, the list says.

        Raises:
            VerificationFailed: one has other bytes than its name says, or is no envelope.
        """
        prefix = layout.referrers_prefix(app, bundle)
        found: list[tuple[str, str, Envelope]] = []
        keys = list(self.store.list(prefix))
        known = {digest(data): data for data in _bytes_of(held)}
        named = {key: "sha256:" + key.rpartition("/")[2] for key in keys}
        self.store.expect(*(key for key in keys if named[key] not in known))
        for key in keys:
            kind, _, name = key.removeprefix(prefix).partition("/")
            if re.fullmatch(r"[0-9a-f]{64}", name) is None:
                raise VerificationFailed(
                    f"{key} is not the name of an attestation.",
                    why="Only bundlectl writes here, and it names files by their digest.",
                    fix="Find out who put it there, and remove it.",
                )
            data = known.get(named[key]) or check_digest(self.store.get(key).data, named[key], key)
            found.append((kind, named[key], parse_envelope(data, key)))
        return found

    # ------------------------------------------------------------ keyrings and policies

    def keyring_bytes(self, version: int) -> bytes | None:
        """Read one version of the keyring as it is stored; None if there is none. Nothing about it is verified."""
        return read_or_none(self.store, layout.keyring_key(version))

    def put_keyring(self, version: int, data: bytes) -> None:
        """Store a version of the keyring; the same bytes again are fine."""
        put_immutable(self.store, layout.keyring_key(version), data)

    def latest_keyring(self, from_version: int) -> list[bytes]:
        """Give every later version in order, asked for one by one until one is missing.

        One read if there is none, which is the usual case.
        """
        return _following(self.keyring_bytes, from_version)

    def policy_bytes(self, app: str, version: int) -> bytes | None:
        """Read one version of an app's policy as it is stored; None if there is none. Nothing is verified."""
        return read_or_none(self.store, layout.policy_key(app, version))

    def put_policy(self, app: str, version: int, data: bytes) -> None:
        """Store a version of an app's policy; the same bytes again are fine."""
        put_immutable(self.store, layout.policy_key(app, version), data)

    def latest_policy(self, app: str, from_version: int) -> list[bytes]:
        """Give every later version of an app's policy in order (from 0: all of them)."""
        return _following(lambda version: self.policy_bytes(app, version), from_version)

    def source_keyrings(self, app: str, registry: str) -> list[bytes]:
        """Give the keyrings of another registry that came with copies, from version 1; nothing is verified."""

        def read(version: int) -> bytes | None:
            return read_or_none(self.store, layout.source_keyring_key(app, registry, version))

        return _following(read, 0)

    def put_source_keyring(self, app: str, registry: str, version: int, data: bytes) -> None:
        """Store a keyring of another registry; the same bytes again are fine."""
        put_immutable(self.store, layout.source_keyring_key(app, registry, version), data)

    # ------------------------------------------------------------ index pointers

    def index_pointer(self, app: str, index: str) -> Stored | None:
        """Read the signed pointer at an index's newest snapshot; None if there is none. Nothing is verified."""
        try:
            return self.store.get(layout.index_pointer_key(app, index))
        except KeyMissing:
            return None

    def swap_index_pointer(self, app: str, index: str, data: bytes, expected: Tag | None) -> Tag:
        """Put a newer pointer in place of the one with the tag ``expected``; None: there is none yet.

        Raises:
            SwapLost: someone else was first.
            OutcomeUnknown: it may have landed.
        """
        key = layout.index_pointer_key(app, index)
        try:
            return self.store.swap(key, data, expected)
        except (SwapLost, OutcomeUnknown):
            # Ours may be what is there: its reply was lost, or it was sent twice.
            try:
                found = self.store.get(key)
            except KeyMissing:
                found = None
            if found is None or found.data != data:
                raise
            return found.tag

    # ------------------------------------------------------------ names

    def apps(self) -> list[str]:
        """Give the apps that have anything stored. It lists the registry: where calls count, ask the keyring."""
        return _names(self.store, layout.APPS)

    def environments(self, app: str) -> list[str]:
        """Give the environments that have or had a release. It lists them: where calls count, ask the policy."""
        return _names(self.store, layout.environments_prefix(app))

    def _from_blobs(self, app: str, digest_: str, *, damaged_pack: bool) -> Bundle:
        manifest_bytes = read_or_none(self.store, layout.blob_key(app, digest_))
        if manifest_bytes is None:
            if damaged_pack:
                raise VerificationFailed(
                    f"The pack of bundle {digest_} is damaged, and its manifest is not stored apart.",
                    fix="Restore the pack from a backup, or build the bundle again from its source.",
                )
            raise NotFound(
                f"App {app} has no bundle {digest_}.", fix=f"Build or import it; what is live: bundlectl status {app}"
            )
        manifest = open_manifest(manifest_bytes, digest_)
        names = sorted({layer.digest for layer in manifest.layers} - {EMPTY_DIGEST})
        read = in_parallel(lambda name: read_or_none(self.store, layout.blob_key(app, name)), names)
        blobs = {name: data for name, data in zip(names, read, strict=True) if data is not None}
        blobs[EMPTY_DIGEST] = EMPTY_BYTES
        return open_bundle(manifest_bytes, blobs, digest_)


def check_app(bundle: Bundle, app: str) -> None:
    """Refuse a bundle that another app owns; its application component says whose it is.

    Raises:
        VerificationFailed: it is another app's, or does not say.
    """
    layer = next((d for d in bundle.manifest.layers if d.mediaType == component_type("application")), None)
    document = parse_json(bundle.blobs[layer.digest], what=f"application of {bundle.digest}") if layer else None
    owner = document.get("app") if isinstance(document, dict) else None
    if owner != app:
        raise VerificationFailed(
            f"Bundle {bundle.digest} is not a bundle of app {app}.",
            why=f"Its application component says {owner!r}." if owner else "It does not say whose it is.",
            fix=f"Use it as {owner}@{bundle.digest}." if owner else "",
        )


def _following(read: Callable[[int], bytes | None], version: int) -> list[bytes]:
    found: list[bytes] = []
    while (data := read(version + len(found) + 1)) is not None:
        found.append(data)
    return found


def _bytes_of(envelopes: Iterable[Envelope]) -> Iterator[bytes]:
    for envelope in envelopes:
        try:
            yield envelope_bytes(envelope)
        except VerificationFailed:
            continue  # not canonical, so nothing is stored that is it


def _names(store: Store, prefix: str) -> list[str]:
    return sorted({key.removeprefix(prefix).split("/", 1)[0] for key in store.list(prefix)})
