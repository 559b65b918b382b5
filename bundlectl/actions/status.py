"""status and history: what is live, verified, and how it came to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice

from bundlectl.actions.context import Context
from bundlectl.actions.opening import expect_trust, open_current_policy, open_trust, releases_of
from bundlectl.actions.releasing import current, former
from bundlectl.model.attestation import OVERRIDE, Override
from bundlectl.model.errors import BackendUnavailable, BundlectlError, NotFound, VerificationFailed
from bundlectl.model.reference import EnvironmentReference, parse_environment
from bundlectl.model.types import Strict, format_time
from bundlectl.registry.head import parse_head, place
from bundlectl.registry.located import Environment
from bundlectl.registry.releases import Entry
from bundlectl.registry.witness import Witness, check_witness, contradiction
from bundlectl.resolver.chain import verify_chain
from bundlectl.resolver.trusted import VerifiedRelease
from bundlectl.storage.parallel import in_parallel
from bundlectl.trust.envelope import open_statement
from bundlectl.trust.keyring import VerifiedKeyring


class EnvironmentStatus(Strict):
    """One environment: what is live, or why it does not verify. ``state``: live, empty or refused."""

    app: str
    environment: str
    state: str
    bundle: str | None = None
    epoch: int | None = None
    serial: int | None = None
    action: str | None = None
    since: str | None = None
    time: str | None = None
    expires: str | None = None
    actor: str | None = None
    reason: str | None = None
    disabled_models: list[str] = []
    rollback_target: str | None = None
    alarms: list[str] = []
    problem: str | None = None


class Status(Strict):
    """Every environment that the policies name."""

    registry: str
    keyring: int
    environments: list[EnvironmentStatus]


def status(ctx: Context, app: str | None = None) -> Status:
    """Say what is live in each environment of one app, or of all.

    Raises:
        NotFound: root does not know the app.
    """
    # Witnesses are read before heads; what they are of is known only after the policies.
    expect_trust(ctx)
    keyring = open_trust(ctx)
    apps = [app] if app is not None else sorted(keyring.document.apps)
    found: list[EnvironmentStatus] = []
    for name in apps:
        policy = open_current_policy(ctx, keyring, name)
        witnesses, doubts = _witnesses(ctx, [(name, environment) for environment in policy.document.environments])
        seen = in_parallel(partial(_environment, ctx, keyring, name, witnesses), list(policy.document.environments))
        found += [one.model_copy(update={"alarms": [*one.alarms, *doubts]}) if doubts else one for one in seen]
    return Status(registry=ctx.registry_url, keyring=keyring.version, environments=found)


def _witnesses(ctx: Context, environments: list[Environment]) -> tuple[dict[Environment, Witness | None], list[str]]:
    """Read what was witnessed; that it cannot be read, or is no witness, is an alarm."""
    try:
        return ctx.locate().witnesses(environments), []
    except (BackendUnavailable, VerificationFailed) as error:
        return {}, [f"whether heads were put back is not known: {_brief(error)}"]


def _environment(
    ctx: Context,
    keyring: VerifiedKeyring,
    app: str,
    witnesses: Mapping[Environment, Witness | None],
    environment: str,
) -> EnvironmentStatus:
    witness = witnesses.get((app, environment))
    releases = releases_of(ctx)
    try:
        state = releases.read_head(app, environment)
        if state is None:
            check_witness(witness, None, None, app, environment)
            return EnvironmentStatus(app=app, environment=environment, state="empty")
        live = current(state.data, app, environment, keyring, ctx.clock())
        releases.check_newest(app, environment, state)
    except VerificationFailed as error:
        # One environment that does not verify must not hide the others.
        return EnvironmentStatus(app=app, environment=environment, state="refused", problem=_brief(error))
    release = live.release
    return EnvironmentStatus(
        app=app,
        environment=environment,
        state="live",
        bundle=release.bundle,
        epoch=release.epoch,
        serial=release.serial,
        action=release.action,
        since=format_time(release.since),
        time=format_time(release.time),
        expires=format_time(release.expires) if release.expires else None,
        actor=release.actor,
        reason=release.reason,
        disabled_models=release.bindings.disabled_models,
        rollback_target=release.rollback_target.bundle if release.rollback_target else None,
        alarms=[*live.alarms, *_put_back(witness, live)],
    )


def _put_back(witness: Witness | None, live: VerifiedRelease) -> list[str]:
    why = contradiction(witness, place(live.release), live.digest)
    return [f"head was put back, or is lost: {why}"] if why else []


def _brief(error: BundlectlError) -> str:
    return f"{error.what} {error.why}".strip()


class HistoryEntry(Strict):
    """One release. ``verified`` is absent when the chain was not walked."""

    epoch: int
    serial: int
    action: str
    bundle: str
    release: str
    actor: str
    time: str
    reason: str
    live: bool
    verified: bool | None = None
    alarms: list[str] = []
    overrides: list[str] = []


class History(Strict):
    """An environment's releases, newest first."""

    app: str
    environment: str
    entries: list[HistoryEntry]
    verified: bool | None = None


def history(ctx: Context, reference: str, *, verify: bool = False, limit: int | None = None) -> History:
    """List an environment's releases; with ``verify``, walk the whole chain and check each and every link.

    Raises:
        NotFound: nothing was ever live there.
        VerificationFailed: with ``verify``: a release or a link does not hold.
    """
    ref = parse_environment(reference)
    walked = releases_of(ctx).history(ref.app, ref.environment)
    if verify:
        entries = _verified(ctx, ref, walked)
    else:
        entries = [_entry(entry, None, []) for entry in (walked if limit is None else islice(walked, limit))]
    if not entries:
        raise NotFound(
            f"Nothing was ever live in {ref}.", fix=f"See which environments there are: bundlectl status {ref.app}"
        )
    return History(
        app=ref.app,
        environment=ref.environment,
        entries=entries[:limit] if limit is not None else entries,
        verified=True if verify else None,
    )


def _verified(ctx: Context, ref: EnvironmentReference, walked: Iterator[Entry]) -> list[HistoryEntry]:
    """Walk the chain: the live head by the resolver's rules, each former head as it was, and every link."""
    keyring = open_trust(ctx)
    read: list[Entry] = []

    def judged() -> Iterator[VerifiedRelease]:
        for entry in walked:
            read.append(entry)
            if entry.live:
                current(entry.data, ref.app, ref.environment, keyring, ctx.clock())
            yield former(entry.data, ref.app, ref.environment, keyring)

    return [_entry(entry, True, list(release.alarms)) for release, entry in _beside(verify_chain(judged()), read)]


def _beside(releases: Iterator[VerifiedRelease], read: list[Entry]) -> Iterator[tuple[VerifiedRelease, Entry]]:
    """Pair each verified release with the entry that it was read from."""
    for number, release in enumerate(releases):
        yield release, read[number]


def _entry(entry: Entry, verified: bool | None, alarms: list[str]) -> HistoryEntry:
    release = entry.release
    return HistoryEntry(
        epoch=release.epoch,
        serial=release.serial,
        action=release.action,
        bundle=release.bundle,
        release=entry.digest,
        actor=release.actor,
        time=format_time(release.time),
        reason=release.reason,
        live=entry.live,
        verified=verified,
        alarms=alarms,
        overrides=_overrides(entry) if release.action == "promotion" else [],
    )


def _overrides(entry: Entry) -> list[str]:
    """Say what a promotion's head carries as overridden. Whether it counted was judged when it was promoted."""
    said = []
    for envelope in parse_head(entry.data, f"release {entry.release.serial}")[0].evidence:
        statement = open_statement(envelope)
        if statement.predicateType == OVERRIDE:
            found = Override.model_validate(statement.predicate)
            said.append(f"{', '.join(found.checks)} overridden by {found.actor}: {found.reason}")
    return said
