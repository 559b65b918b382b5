"""copy: carry a bundle from one registry into another, with all that is attested and what was released there.

Nothing is signed again. What was attested counts in the target as far as the target's own keyring knows the keys; the
source's releases count where the target's policy names the source as a place to soak in.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from bundlectl.actions.context import Context
from bundlectl.actions.opening import open_trust, read_pin, registry_id, releases_of, resolve_bundle
from bundlectl.actions.promote import pinned_snapshots
from bundlectl.model.attestation import Envelope
from bundlectl.model.bundle import Bundle
from bundlectl.model.canonical import hex_of
from bundlectl.model.errors import NotFound, UsageError
from bundlectl.model.types import Strict
from bundlectl.registry.collecting import needs_of, spare
from bundlectl.registry.head import parse_head
from bundlectl.registry.tables import fetch_tables, put_tables
from bundlectl.resolver.chain import verify_former
from bundlectl.resolver.keyrings import keyring_chain, open_chain
from bundlectl.trust.evidence import gather_evidence
from bundlectl.trust.keyring import VerifiedKeyring

LOOK_BACK = 1_000
"""Releases of an environment that are searched for the newest one of the bundle."""


class CopiedRelease(Strict):
    """The newest release of the bundle in one environment of the source; ``live``: it was live when it was copied."""

    environment: str
    serial: int
    live: bool
    since: str
    time: str


class Copied(Strict):
    """What was carried. ``counts``: how many of the attestations the target's keyring knows the signers of.

    ``registry`` and ``keyring`` are what the target's policy names to accept the source's releases as a soak.
    """

    reference: str
    app: str
    bundle: str
    source: str
    target: str
    registry: str
    keyring: str
    attestations: int
    counts: int
    releases: list[CopiedRelease]
    snapshots: list[str]
    missing: list[str]


def contexts(ctx: Context, source: str, target: str, pin: str | None) -> tuple[Context, Context]:
    """Give the contexts of two registries: keys, clock and talk of ``ctx``; each registry's own pin.

    ``pin`` is the source's. ``BUNDLECTL_PIN`` is the target's, as in every command that writes.
    """
    environ = {key: value for key, value in ctx.environ.items() if key != "BUNDLECTL_PIN"}
    theirs, ours = replace(ctx, registry_url=source), replace(ctx, registry_url=target)
    locator = theirs.locate().locator if pin is None and theirs.workspace == ours.workspace else None
    if locator is not None:
        pin = locator.pin  # the pin that lies in the workspace of both is the target's
    if pin is not None:
        environ["BUNDLECTL_PIN"] = pin
    return replace(theirs, environ=environ), ours


def copy(source: Context, target: Context, reference: str) -> Copied:
    """Copy a bundle; doing it again brings what is new since.

    Args:
        source: the context of the registry to read; nothing is written there.
        target: the context of the registry to write.
        reference: the bundle, as the source knows it.

    Raises:
        NotFound: the source has no such bundle, or the target does not know the app.
        VerificationFailed: something of the source is not what it must be, or the target holds other bytes.
        BackendUnavailable: not all of it was written; repeating it is safe.
    """
    theirs, ours = open_trust(source), open_trust(target)
    if registry_id(theirs) == registry_id(ours):
        raise UsageError(
            f"{source.registry_url} and {target.registry_url} are one registry.",
            why=f"Both are {registry_id(ours)}.",
            fix="Promote from environment to environment; to move a registry, copy its files.",
        )
    app, digest_ = resolve_bundle(source, reference)
    if app not in ours.document.apps:
        known = ", ".join(sorted(ours.document.apps))
        raise NotFound(f"There is no app {app!r} in {target.registry_url}.", fix=f"Its apps are {known}.")
    bundle = source.registry.get_bundle(app, digest_)
    attested = source.registry.attestations(app, digest_)
    released = list(_released(source, theirs, app, digest_))
    chain = keyring_chain(source.registry, read_pin(source))
    # What is carried was read anew, and lies in the target for ever.
    theirs = open_chain(chain, read_pin(source))

    spare(target.registry.store, app, needs_of(bundle))
    missing = _copy_snapshots(source, target, app, bundle)
    target.registry.put_bundle(app, bundle)
    for kind, _, envelope in attested:
        target.registry.attach(app, digest_, kind, envelope)
    for version, data in enumerate(chain, 1):
        target.registry.put_source_keyring(app, registry_id(theirs), version, data)
    for _, envelopes in released:
        for envelope in envelopes:
            target.registry.attach(app, digest_, "release", envelope)
    counted, _ = gather_evidence([envelope for _, _, envelope in attested], digest_, app, None, ours)
    return Copied(
        reference=f"{app}@{digest_}",
        app=app,
        bundle=digest_,
        source=source.registry_url,
        target=target.registry_url,
        registry=registry_id(theirs),
        keyring=theirs.digest,
        attestations=len(attested),
        counts=len(counted),
        releases=[release for release, _ in released],
        snapshots=sorted(set(pinned_snapshots(bundle).values())),
        missing=missing,
    )


def _released(
    source: Context, keyring: VerifiedKeyring, app: str, bundle: str
) -> Iterator[tuple[CopiedRelease, list[Envelope]]]:
    """Give each environment's newest release of the bundle, verified, with the releases that it descends from."""
    releases = releases_of(source)
    for environment in source.registry.environments(app):
        for entry in islice(releases.history(app, environment), LOOK_BACK):
            if entry.release.bundle != bundle:
                continue
            verify_former(
                entry.data, app=app, environment=environment, registry_id=registry_id(keyring), keyring=keyring
            )
            head = parse_head(entry.data, f"a release of {app}:{environment}")[0]
            form = entry.release.form()
            told = CopiedRelease(
                environment=environment,
                serial=entry.release.serial,
                live=entry.live,
                since=form["since"],
                time=form["time"],
            )
            yield told, [head.release, *head.origins]
            break


def _copy_snapshots(source: Context, target: Context, app: str, bundle: Bundle) -> list[str]:
    """Copy the snapshots that the bundle pins, and their tables; say what the source does not have."""
    missing = []
    for use, snapshot in sorted(pinned_snapshots(bundle).items()):
        index = bundle.components.retrieval[use].index
        try:
            target.registry.put_blob(app, source.registry.get_blob(app, snapshot))
            with tempfile.TemporaryDirectory(prefix="bundlectl-copy-") as folder:
                fetch_tables(source.registry.store, app, index, hex_of(snapshot), Path(folder))
                put_tables(target.registry.store, app, index, hex_of(snapshot), Path(folder) / hex_of(snapshot))
        except NotFound as error:
            source.reporter.warn(f"{error.what} The bundle is copied without.")
            missing.append(snapshot)
    return missing
