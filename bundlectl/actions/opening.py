"""How every action comes to trust a registry: the pin, the keyring it names and its successors, the app's policy."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from bundlectl.actions.context import PIN_FILE, Context
from bundlectl.actions.keeping import keep_keyrings, kept_keyrings
from bundlectl.model.bundle import Bundle
from bundlectl.model.errors import NotFound, UsageError, VerificationFailed
from bundlectl.model.reference import (
    BundleReference,
    EnvironmentReference,
    Reference,
    SourceReference,
    parse_reference,
)
from bundlectl.registry.head import place
from bundlectl.registry.layout import keyring_key
from bundlectl.registry.registry import check_app
from bundlectl.registry.releases import Entry, Releases
from bundlectl.registry.witness import check_witness
from bundlectl.resolver.chain import verify_former
from bundlectl.resolver.keyrings import first_pin, keyring_chain, newer_pin, open_chain
from bundlectl.resolver.trusted import VerifiedRelease, verify_head
from bundlectl.trust.envelope import parse_envelope
from bundlectl.trust.keyring import VerifiedKeyring
from bundlectl.trust.policy import VerifiedPolicy, open_policy


def pin_file(ctx: Context) -> Path:
    """Give where the workspace keeps the pin: beside the registry's folder, never in it."""
    return ctx.workspace / PIN_FILE


def read_pin(ctx: Context) -> str:
    """Give the digest of the keyring version that this machine starts its trust from.

    Raises:
        UsageError: there is no pin, and first use was not allowed to make one.
        VerificationFailed: neither of the pins of Parameter Store and this machine leads to the other.
    """
    file = pin_file(ctx)
    named = ctx.environ.get("BUNDLECTL_PIN", "").strip()
    if not named and file.is_file():
        named = file.read_text(encoding="utf-8").strip()
    locator = ctx.locate().locator
    if locator is not None and named not in ("", locator.pin):
        try:
            return _newer(ctx, named, locator.pin)
        except VerificationFailed as error:
            raise VerificationFailed(
                f"{ctx.registry_url} names another pin than this machine.",
                why=f"Parameter Store has {locator.pin}; BUNDLECTL_PIN or {file} has {named}. {error.what}",
                fix="Ask whoever keeps the keyring which is right, and correct the other.",
            ) from error
    if locator is not None:
        return locator.pin
    if named:
        return named
    if ctx.trust_first_use and ctx.registry_folder is not None:
        pin = first_pin(ctx.registry)
        file.write_text(pin + "\n", encoding="utf-8")
        ctx.reporter.warn(f"trusting keyring 1 of {ctx.registry_url} on first use: {pin}")
        return pin
    _ = ctx.registry  # where there is none at all, that is what to say
    raise UsageError(
        "There is no pin, so nothing tells whether this registry is the one you mean.",
        why=f"Neither BUNDLECTL_PIN nor {file} holds the digest of a keyring.",
        fix="Get the pin from whoever keeps the keyring; for a folder of your own, add --trust-first-use once."
        if ctx.registry_folder is not None
        else "Get the pin from whoever keeps the keyring; a registry that has none yet: bundlectl keyring init --help",
    )


def _newer(ctx: Context, named: str, told: str) -> str:
    """Give the newer of two pins: keyrings have moved on since one of them was given, and both must be of one line."""
    for pin in (named, told):
        known = kept_keyrings(ctx, pin)
        if known:
            with suppress(VerificationFailed):
                return newer_pin(known, named, told)
    chain = keyring_chain(ctx.registry, named)
    newer = newer_pin(chain, named, told)
    keep_keyrings(ctx, newer, chain)
    return newer


def open_trust(ctx: Context) -> VerifiedKeyring:
    """Open the pinned keyring and every later version, each on the word of the one before.

    Raises:
        NotFound: the registry has no keyring.
        VerificationFailed: a version is missing, breaks a rule, or was rotated by too few.
    """
    keyring = _newest(ctx, read_pin(ctx))
    locator = ctx.locate().locator
    if locator is not None and keyring.registry not in (None, locator.registry):
        raise VerificationFailed(
            f"{ctx.registry_url} leads to another registry than it says.",
            why=f"It says {locator.registry}; the registry at {locator.url} is {keyring.registry}.",
            fix="Its administrator corrects it: bundlectl registry locate.",
        )
    return keyring


def expect_trust(ctx: Context) -> None:
    """Begin the reads that :func:`open_trust` will make."""
    known = len(kept_keyrings(ctx, read_pin(ctx)))
    ctx.registry.store.expect(*(keyring_key(version) for version in ([known + 1] if known else [1, 2])))


def _newest(ctx: Context, pin: str) -> VerifiedKeyring:
    """Open the chain from the pin: what this machine keeps of it, and what has followed since."""
    known = kept_keyrings(ctx, pin)
    if known:
        chain = [*known, *ctx.registry.latest_keyring(len(known))]
        try:
            keyring = open_chain(chain, pin)
        except VerificationFailed as error:
            ctx.reporter.warn(f"the kept keyrings are not used: {error.what}")
            known = []
    if not known:
        chain = keyring_chain(ctx.registry, pin)
        keyring = open_chain(chain, pin)
    if len(chain) > len(known):
        keep_keyrings(ctx, pin, chain)
    return keyring


def registry_id(keyring: VerifiedKeyring) -> str:
    """Give the registry's id: the digest of keyring 1."""
    if keyring.registry is None:
        raise VerificationFailed("The registry's id is not known: its first keyring was not read.")
    return keyring.registry


def open_current_policy(
    ctx: Context, keyring: VerifiedKeyring, app: str, live: VerifiedRelease | None = None, *, newest: bool = True
) -> VerifiedPolicy:
    """Open the newest policy of an app; or, where that will do, the one that a live release is under.

    Args:
        ctx: the context.
        keyring: root's newest word.
        app: whose.
        live: what is live somewhere of that app: it carries its policy, so that only a newer one is asked for.
        newest: whether a newer one is asked for at all; it is where root demands one.

    Raises:
        NotFound: the app has none, or root does not know the app.
    """
    if app not in keyring.document.apps:
        known = ", ".join(sorted(keyring.document.apps))
        raise NotFound(f"There is no app {app!r} in {ctx.registry_url}.", fix=f"Its apps are {known}.")
    floor = keyring.app(app).policy
    if live is not None and live.policy.version >= floor:
        newer = ctx.registry.latest_policy(app, live.policy.version) if newest else []
        envelope = parse_envelope(newer[-1], f"policy of {app}") if newer else live.policy.envelope
        return open_policy(envelope, keyring, app)
    found = ctx.registry.latest_policy(app, floor - 1)
    if not found:
        raise NotFound(
            f"{app} has no policy in {ctx.registry_url}.",
            fix="Its owners write one: bundlectl init does for a new app.",
        )
    return open_policy(parse_envelope(found[-1], f"policy of {app}"), keyring, app)


def releases_of(ctx: Context) -> Releases:
    """Give the registry's releases."""
    return ctx.registry.releases


def resolve_bundle(ctx: Context, reference: str | Reference) -> tuple[str, str]:
    """Give (app, bundle digest) of a reference to something stored.

    Raises:
        NotFound: nothing is stored under it.
        UsageError: it is a source path whose bundle was not built into this registry.
        VerificationFailed: the release that it names does not verify.
    """
    ref = parse_reference(reference) if isinstance(reference, str) else reference
    if isinstance(ref, BundleReference):
        return ref.app, ctx.registry.find(ref.app, ref.hex_prefix)
    if isinstance(ref, EnvironmentReference):
        return ref.app, live_or_former(ctx, ref).release.bundle
    bundle = _built(ref)
    app = bundle.components.application.app
    if not ctx.registry.has_bundle(app, bundle.digest):
        raise UsageError(
            f"{ref.path} builds to {app}@{bundle.digest}, which is not in the registry.",
            fix=f"Build it first: bundlectl build {ref.path}",
        )
    return app, bundle.digest


def live_or_former(ctx: Context, ref: EnvironmentReference, keyring: VerifiedKeyring | None = None) -> Entry:
    """Give the release an environment reference names, verified: people approve and promote what it names.

    What is live is judged by the resolver's rules, past its expiry or not; a former release as of when it was live.
    ``keyring`` is root's newest word, where it was opened already.

    Raises:
        NotFound: nothing is live there, or the serial never was.
        VerificationFailed: the release does not verify, or an older head was put back.
    """
    witness = ctx.locate().witness(ref.app, ref.environment) if ref.serial is None else None
    releases, keyring = releases_of(ctx), keyring or open_trust(ctx)
    where = {"app": ref.app, "environment": ref.environment, "registry_id": registry_id(keyring)}
    if ref.serial is not None:
        entry = releases.release_at(ref.app, ref.environment, ref.serial)
        for alarm in verify_former(entry.data, keyring=keyring, **where).alarms:
            ctx.reporter.warn(alarm)
        return entry
    state = releases.read_head(ref.app, ref.environment)
    if state is None:
        check_witness(witness, None, None, ref.app, ref.environment)
        raise NotFound(
            f"Nothing is live in {ref}.",
            fix=f"bundlectl promote {ref.app}@sha256:… --to {ref.environment} --reason TEXT",
        )
    live = verify_head(state.data, keyring=keyring, state=None, now=ctx.clock(), serving=False, **where)
    releases.check_newest(ref.app, ref.environment, state)
    check_witness(witness, place(live.release), state.digest, ref.app, ref.environment)
    return Entry(place(live.release), state.data, state.digest, live.release, live=True)


def load_bundle(ctx: Context, reference: str | Reference) -> tuple[str, Bundle]:
    """Read a bundle by any reference; a source path is built in memory and needs no registry.

    Raises:
        VerificationFailed: stored bytes are not what their digests say.
    """
    ref = parse_reference(reference) if isinstance(reference, str) else reference
    if isinstance(ref, SourceReference):
        bundle = _built(ref)
        return bundle.components.application.app, bundle
    app, found = resolve_bundle(ctx, ref)
    bundle = ctx.registry.get_bundle(app, found)
    check_app(bundle, app)
    return app, bundle


def _built(ref: SourceReference) -> Bundle:
    from bundlectl.bundling.build import build
    from bundlectl.bundling.source import read_source

    return build(read_source(ref.path))
