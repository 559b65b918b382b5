"""What gc must keep: which bundles, and every object that one of them reaches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from bundlectl.actions.context import Context
from bundlectl.actions.opening import open_current_policy, releases_of
from bundlectl.actions.releasing import former
from bundlectl.model.attestation import EVALUATION, Envelope
from bundlectl.model.canonical import hex_of
from bundlectl.model.errors import NotFound, UsageError, VerificationFailed
from bundlectl.model.release import Release
from bundlectl.model.types import format_time, seconds
from bundlectl.registry.collecting import Needs, needs_of
from bundlectl.registry.head import parse_head, place
from bundlectl.registry.layout import indexes_prefix
from bundlectl.registry.pointers import parse_pointer
from bundlectl.registry.registry import Registry
from bundlectl.registry.releases import Entry
from bundlectl.registry.witness import check_witness
from bundlectl.trust.envelope import open_statement
from bundlectl.trust.keyring import VerifiedKeyring

_TIMES = ("finished", "time", "startedOn", "finishedOn")
"""Fields of predicates that say when something was attested."""


LEAST = timedelta(days=1)
"""What was live within it is kept whatever is asked for: promote relies on it, and reads no mark of what is live."""


@dataclass(frozen=True)
class Retention:
    """What is kept of each environment's past: the newest ``releases``, and what was live within ``window``.

    The window is a day at least. Renewals are not counted. The window is also that of receipts: what answered
    within it can be explained and replayed. A bundle that was never released is kept for as long after it was last
    built, evaluated or approved.
    """

    releases: int = 10
    window: str = "90d"

    def since(self, now: datetime) -> datetime:
        """Give when the window begins."""
        try:
            return now - max(timedelta(seconds=seconds(self.window)), LEAST)
        except (ValueError, OverflowError) as error:
            raise UsageError(f"{self.window!r} is no time to keep.", why=str(error), fix="--keep-for 90d") from error

    def __post_init__(self) -> None:
        """Refuse to keep nothing: what is live stays."""
        if self.releases < 1:
            raise UsageError("At least one release of each environment is kept.", fix="--keep-releases 10")


@dataclass(frozen=True)
class Kept:
    """A bundle that stays and why; ``reports`` are those that heads name beside what is attached to it."""

    bundle: str
    why: str
    reports: frozenset[str] = frozenset()


def kept_bundles(ctx: Context, keyring: VerifiedKeyring, app: str, retention: Retention) -> list[Kept]:
    """Give the bundles that stay, sorted by digest.

    Raises:
        VerificationFailed: a head does not verify, was put back, or the history behind it has a gap: what is
            unreachable can then not be known.
    """
    kept: dict[str, Kept] = {}
    policy = open_current_policy(ctx, keyring, app).document
    environments = sorted({*ctx.registry.environments(app), *policy.environments})
    since = retention.since(ctx.clock())
    for environment in environments:
        for entry, why in _kept_releases(ctx, keyring, app, environment, retention.releases, since):
            reports = frozenset(_reports(parse_head(entry.data, why)[0].evidence))
            for bundle in _named(entry.release):
                before = kept.get(bundle)
                own, told = (reports, why) if bundle == entry.release.bundle else (frozenset(), f"named by {why}")
                kept[bundle] = Kept(bundle, before.why if before else told, own | (before.reports if before else own))
    for environment, gate in sorted(policy.environments.items()):
        for anchor in (requirement.anchor for requirement in gate.evaluations):
            if anchor is not None:
                kept.setdefault(anchor, Kept(anchor, f"the anchor of {app}:{environment}"))
    for bundle in ctx.registry.bundles(app):
        if bundle not in kept:
            newest = _last_attested(ctx.registry, app, bundle)
            if newest is not None and newest >= since:
                kept[bundle] = Kept(bundle, f"attested {format_time(newest)}, and not released for long")
    return [kept[bundle] for bundle in sorted(kept)]


def reach_of(registry: Registry, app: str, kept: list[Kept]) -> Needs:
    """Give every object that is reached: by a kept bundle, or by an index's pointer.

    Raises:
        VerificationFailed: a kept bundle or a pointer is damaged: mend that first.
    """
    keys: set[str] = set()
    folders: set[str] = set()
    for one in kept:
        try:
            needs = needs_of(registry.get_bundle(app, one.bundle))
            keys |= needs.keys
            folders |= needs.folders
        except NotFound:
            # Collected when less was kept. What is left of it stays.
            folders.add(f"referrers/{hex_of(one.bundle)}")
        attached = (envelope for _, _, envelope in registry.attestations(app, one.bundle))
        keys |= {_blob(report) for report in (*one.reports, *_reports(attached))}
    for index in sorted(_indexes(registry, app)):
        keys.add(f"indexes/{index}/latest.json")
        pointer = registry.index_pointer(app, index)
        if pointer is not None:
            snapshot = parse_pointer(pointer.data).snapshot
            keys.add(_blob(snapshot))
            folders.add(f"indexes/{index}/{hex_of(snapshot)}")
    return Needs(frozenset(keys), frozenset(folders))


def _blob(name: str) -> str:
    return f"blobs/sha256/{name.removeprefix('sha256:')}"


def _kept_releases(
    ctx: Context, keyring: VerifiedKeyring, app: str, environment: str, releases: int, since: datetime
) -> Iterator[tuple[Entry, str]]:
    """Walk back from the head as far as retention reaches, each release on the word of the newer one."""
    witness = ctx.locate((app, environment)).witness(app, environment)
    newer: Entry | None = None
    count = 0
    for entry in releases_of(ctx).history(app, environment):
        where = f"release {entry.release.serial} of {app}:{environment}"
        if newer is None:
            check_witness(witness, place(entry.release), entry.digest, app, environment)
            former(entry.data, app, environment, keyring)
        elif newer.release.previous != entry.digest:
            raise VerificationFailed(
                f"The history of {app}:{environment} does not lead from release {newer.release.serial} to {where}.",
                why="One is missing or was replaced, so nobody knows what it needs; nothing is collected.",
                fix=f"bundlectl history {app}:{environment} --verify",
            )
        until = newer.release.time if newer is not None else None
        if newer is not None and entry.release.action != "renewal":
            count += 1
        if until is not None and count >= releases and until < since:
            return
        yield entry, f"{where}, {'which is live' if until is None else 'which is kept'}"
        newer = entry
    if newer is None:
        check_witness(witness, None, None, app, environment)
    elif newer.release.previous is not None:
        raise VerificationFailed(
            f"The history of {app}:{environment} is cut off before release {newer.release.serial}.",
            fix=f"bundlectl history {app}:{environment} --verify",
        )


def _named(release: Release) -> list[str]:
    named = [release.bundle, *(release.tenant_pins or {}).values()]
    if release.rollback_target is not None:
        named.append(release.rollback_target.bundle)
    if release.candidate is not None:
        named.append(release.candidate.bundle)
    return named


def _reports(envelopes: Iterator[Envelope] | list[Envelope]) -> Iterator[str]:
    """Give the reports that evaluations name; nothing is verified, because to keep too much does no harm."""
    for envelope in envelopes:
        statement = open_statement(envelope)
        if statement.predicateType == EVALUATION:
            named = [statement.predicate.get("report"), *(statement.predicate.get("pooled") or [])]
            yield from (report for report in named if isinstance(report, str))


def _last_attested(registry: Registry, app: str, bundle: str) -> datetime | None:
    try:
        attested = registry.attestations(app, bundle)
    except NotFound:
        return None  # one that was listed is gone: another gc is deleting it
    times = [when for _, _, envelope in attested for when in _times(open_statement(envelope).predicate)]
    return max(times, default=None)


def _times(value: object) -> Iterator[datetime]:
    if not isinstance(value, dict):
        return
    for key, child in value.items():
        if key in _TIMES and isinstance(child, str):
            try:
                found = datetime.fromisoformat(child)
            except ValueError:
                continue
            if found.tzinfo is not None:
                yield found
        else:
            yield from _times(child)


def _indexes(registry: Registry, app: str) -> set[str]:
    prefix = indexes_prefix(app)
    return {key.removeprefix(prefix).split("/", 1)[0] for key in registry.store.list(prefix)}
