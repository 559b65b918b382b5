"""registry gc: mark what nothing reaches, and 24 hours later delete what still nothing reaches. DESIGN 4.

Keyrings, policies, heads and histories are never collected: they are small, and the chain of releases must stay
verifiable to its first. What is collected are bundles, evidence about them, reports, snapshots and tables. The order
that makes it safe beside others is told in ``registry/collecting.py``.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Literal

from bundlectl.actions.context import Context
from bundlectl.actions.opening import open_trust, registry_id, resolve_bundle
from bundlectl.actions.retaining import Kept, Retention, kept_bundles, reach_of
from bundlectl.model.canonical import canonical
from bundlectl.model.collecting import GC_MARK_PAYLOAD_TYPE, MAX_MARKED, GcMark, GcState
from bundlectl.model.errors import BackendUnavailable, Conflict, NotFound, UsageError, VerificationFailed
from bundlectl.model.types import Strict, format_time
from bundlectl.registry import layout
from bundlectl.registry.collecting import Marks, Needs, needs_of, read_marks, spare, swap_marks
from bundlectl.storage.parallel import in_parallel
from bundlectl.storage.store import KeyMissing, OutcomeUnknown, SwapLost
from bundlectl.trust.envelope import seal, signed_by
from bundlectl.trust.keyring import VerifiedKeyring

GRACE = timedelta(hours=24)
LEASE = timedelta(hours=1)
"""After so long a sweep that did not end is taken to be dead; a living one stops at half of it."""
_BATCH = 64


class KeptBundle(Strict):
    """A bundle that stays, and why."""

    bundle: str
    why: str


class Collected(Strict):
    """What gc found, and did (``done``) or would do.

    ``mark``: ``objects`` are marked; nothing goes before ``due``. ``wait``: they are, and it is not yet ``due``.
    ``delete``: they go. ``nothing``: nothing is unreachable. ``spare``: the mark is lifted from them. ``left``: how
    many more are unreachable than one mark holds; ``reached_again`` were marked and are needed again.
    """

    app: str
    step: Literal["nothing", "mark", "wait", "delete", "spare"]
    done: bool
    objects: dict[str, int]
    bundles: list[str]
    due: str | None = None
    left: int = 0
    reached_again: int = 0
    kept: list[KeptBundle]


def gc(ctx: Context, app: str, *, retention: Retention | None = None, delete: bool = False) -> Collected:
    """Say what would be marked or deleted of an app, or do it.

    Args:
        ctx: the context; to mark or delete, its signer must hold the role gc.
        app: whose.
        retention: what is kept though nothing live needs it.
        delete: act. The first time that marks; 24 hours later it deletes.

    Raises:
        NotFound: root does not know the app.
        VerificationFailed: a head, a history or the mark does not verify: then nothing is unreachable for sure.
        Conflict: someone needs what was marked, or another gc is at work; repeat it.
        BackendUnavailable: not all was deleted, or it is not known; repeat it.
    """
    keyring = open_trust(ctx)
    if app not in keyring.document.apps:
        known = ", ".join(sorted(keyring.document.apps))
        raise NotFound(f"There is no app {app!r} in {ctx.registry_url}.", fix=f"Its apps are {known}.")
    marks = read_marks(ctx.registry.store, app)
    sweeping = marks.state.sweeping
    if delete and sweeping is not None and ctx.clock() < sweeping + LEASE:
        raise Conflict(
            f"Another gc of {app} is at work.",
            why=f"It has been deleting since {format_time(sweeping)}.",
            fix=f"If it died, repeat this after {format_time(sweeping + LEASE)}.",
        )
    kept = kept_bundles(ctx, keyring, app, retention or Retention())
    reached = reach_of(ctx.registry, app, kept)
    if marks.mark is None:
        return _mark(ctx, keyring, app, marks, kept, reached, delete=delete)
    return _sweep(ctx, keyring, app, marks, marks.mark, kept, reached, delete=delete)


def gc_spare(ctx: Context, app: str, reference: str) -> Collected:
    """Lift the mark from a stored bundle of an app and all that it needs.

    Raises:
        UsageError: it is another app's.
        Conflict: it is being deleted at this moment.
    """
    owner, bundle = resolve_bundle(ctx, reference)
    if owner != app:
        raise UsageError(f"{reference} is a bundle of {owner}, not of {app}.", fix=f"bundlectl registry gc {owner}")
    found = spare(ctx.registry.store, app, needs_of(ctx.registry.get_bundle(app, bundle)))
    why = KeptBundle(bundle=bundle, why="spared by hand")
    return _told(app, "spare" if found else "nothing", found, [], done=bool(found), kept_list=[why])


def _mark(
    ctx: Context,
    keyring: VerifiedKeyring,
    app: str,
    marks: Marks,
    kept: list[Kept],
    reached: Needs,
    *,
    delete: bool,
) -> Collected:
    now = ctx.clock().replace(microsecond=0)
    found = [key for key in _collectable(ctx, app) if key not in reached]
    if not found:
        return _told(app, "nothing", [], kept, done=False)
    # Packs first: a bundle that is not whole in one mark is refused by promote all the same.
    found.sort(key=lambda key: (not key.startswith("packs/"), key))
    marked, left = found[:MAX_MARKED], len(found[MAX_MARKED:])
    if delete:
        signer = ctx.signer("gc")
        actor = keyring.signing_principal(signer, "gc", app, None)
        mark = GcMark(registry=registry_id(keyring), app=app, time=now, actor=actor, keys=marked)
        state = GcState(mark=seal(canonical(mark.form()), GC_MARK_PAYLOAD_TYPE, [signer]))
        _swap(ctx, app, state, marks)
    due = format_time(now + GRACE)
    return _told(app, "mark", marked, kept, done=delete, due=due, left=left)


def _sweep(
    ctx: Context,
    keyring: VerifiedKeyring,
    app: str,
    marks: Marks,
    mark: GcMark,
    kept: list[Kept],
    reached: Needs,
    *,
    delete: bool,
) -> Collected:
    now = ctx.clock().replace(microsecond=0)
    _verify_mark(keyring, app, marks, mark)
    doomed = [key for key in marks.doomed() if key not in reached]
    due, again = format_time(mark.time + GRACE), len(mark.keys) - len(doomed)
    if now < mark.time + GRACE:
        return _told(app, "wait", doomed, kept, done=False, due=due, reached_again=again)
    if not delete:
        return _told(app, "delete", doomed, kept, done=False, due=due, reached_again=again)
    keyring.signing_principal(ctx.signer("gc"), "gc", app, None)
    # From this swap on nobody can lift the mark from what is left of it; whoever did before made it fail.
    alive = sorted(set(mark.keys) - set(doomed))
    sweeping = marks.state.model_copy(update={"spared": alive, "sweeping": now, "sweep": ctx.new_id()})
    tag = _swap(ctx, app, sweeping, marks)
    prefix = layout.app_prefix(app)
    for start in range(0, len(doomed), _BATCH):
        if ctx.clock() - now > LEASE / 2:
            raise _stopped(app, now, f"It took too long: {start} of {len(doomed)} objects were deleted.")
        try:
            in_parallel(lambda key: _delete(ctx, prefix + key), doomed[start : start + _BATCH])
        except BackendUnavailable as error:
            raise _stopped(app, now, f"{error.what} {error.why}".strip()) from error
    _lift(ctx, app, sweeping, tag, now)
    return _told(app, "delete", doomed, kept, done=True, due=due, reached_again=again)


def _verify_mark(keyring: VerifiedKeyring, app: str, marks: Marks, mark: GcMark) -> None:
    able = keyring.principals("gc", app, None)
    signed = signed_by(marks.state.mark, able, keyring.sigstore) if marks.state.mark else frozenset()
    if mark.actor not in signed or (mark.registry, mark.app) != (registry_id(keyring), app):
        raise VerificationFailed(
            f"The mark of {app} does not count, so nothing is deleted by it.",
            why=f"It says that {mark.actor} marked {mark.app} of registry {mark.registry}.",
            fix=f"Those who may: {', '.join(able) or 'nobody'}. Delete {layout.gc_key(app)} and mark anew.",
        )


def _swap(ctx: Context, app: str, state: GcState, before: Marks) -> str:
    """Replace the state; read back where no reply came, or where it lost: what it lost to may be itself, sent twice."""
    try:
        return swap_marks(ctx.registry.store, app, state, before.tag)
    except (SwapLost, OutcomeUnknown) as error:
        now = read_marks(ctx.registry.store, app)
        if now.state == state and now.tag is not None:
            return now.tag
        if isinstance(error, OutcomeUnknown):
            raise
        raise Conflict(
            f"The marks of {app} changed meanwhile; nothing was deleted.",
            why="Someone needs what was marked, or another gc is at work.",
            fix="Repeat the command.",
        ) from error


def _lift(ctx: Context, app: str, sweeping: GcState, tag: str, since: datetime) -> None:
    """Take the mark away, now that all of it is deleted."""
    try:
        swap_marks(ctx.registry.store, app, GcState(), tag)
    except (SwapLost, BackendUnavailable) as error:
        try:
            there = read_marks(ctx.registry.store, app).state
        except BackendUnavailable:
            there = sweeping
        if there == sweeping:
            raise _stopped(app, since, f"All is deleted; that it is, was not written down: {error.what}") from error


def _stopped(app: str, since: datetime, why: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"gc of {app} stopped while it was deleting what nothing reaches.",
        why=why,
        fix=f"Repeat it after {format_time(since + LEASE)}; it goes on where it stopped.",
    )


def _delete(ctx: Context, key: str) -> None:
    try:
        ctx.registry.store.delete(key)
    except KeyMissing:
        return  # a sweep that was cut off got so far
    except OutcomeUnknown:
        try:
            ctx.registry.store.delete(key)
        except KeyMissing:
            return


def _collectable(ctx: Context, app: str) -> list[str]:
    """List what gc may ever delete, as keys below the app's prefix."""
    own = layout.app_prefix(app)
    prefixes = (
        layout.packs_prefix(app),
        layout.blobs_prefix(app),
        layout.all_referrers_prefix(app),
        layout.indexes_prefix(app),
    )
    return [key.removeprefix(own) for prefix in prefixes for key in ctx.registry.store.list(prefix)]


def _told(
    app: str,
    step: Literal["nothing", "mark", "wait", "delete", "spare"],
    keys: list[str],
    kept: list[Kept],
    *,
    done: bool,
    due: str | None = None,
    left: int = 0,
    reached_again: int = 0,
    kept_list: list[KeptBundle] | None = None,
) -> Collected:
    return Collected(
        app=app,
        step=step,
        done=done,
        objects=dict(sorted(Counter(key.split("/", 1)[0] for key in keys).items())),
        bundles=sorted("sha256:" + key.removeprefix("packs/") for key in keys if key.startswith("packs/")),
        due=due,
        left=left,
        reached_again=reached_again,
        kept=kept_list or [KeptBundle(bundle=one.bundle, why=one.why) for one in kept],
    )
