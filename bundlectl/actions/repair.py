"""registry repair: put an environment right whose witness is ahead of its head, by a person's word and reason."""

from __future__ import annotations

from typing import Literal

from bundlectl.actions.context import Context
from bundlectl.actions.opening import open_trust
from bundlectl.actions.releasing import current
from bundlectl.model.canonical import digest
from bundlectl.model.errors import GateNotPassed, UsageError, VerificationFailed
from bundlectl.model.reference import EnvironmentReference, parse_environment
from bundlectl.model.types import Strict
from bundlectl.registry.head import parse_head, place
from bundlectl.registry.layout import Place, head_key, history_key, history_prefix, place_of
from bundlectl.registry.objects import read_or_none
from bundlectl.registry.releases import HeadState
from bundlectl.registry.witness import HeadPutBack, Witness, contradiction
from bundlectl.resolver.trusted import VerifiedRelease
from bundlectl.storage.store import KeyMissing, OutcomeUnknown, SwapLost
from bundlectl.trust.keyring import VerifiedKeyring

Step = Literal["none", "restore-head", "accept-head"]


class Repaired(Strict):
    """What was seen, and what was done about it (``done``) or would be.

    ``restore-head``: the history holds a release that is newer than head, and the newest becomes head again.
    ``accept-head``: it holds none, so the head that is there is taken as it is. Then the witness is written from head.
    """

    app: str
    environment: str
    head: str | None
    witness: str | None
    contradiction: str | None
    step: Step
    why: str
    done: bool
    reason: str


def repair(ctx: Context, reference: str, *, reason: str, confirmed: str | None = None) -> Repaired:
    """Say what head and witness contradict each other in, and put it right once confirmed.

    Args:
        ctx: the context; its registry is found by ``ssm:/bundlectl/<name>``: others have no witness.
        reference: ``APP:ENV``.
        reason: why; it is kept in the witness.
        confirmed: the environment's name: without it nothing is changed.

    Raises:
        UsageError: the registry has no witness.
        GateNotPassed: there is something to repair, and it was not confirmed.
        VerificationFailed: head does not verify, or it is lost and nothing in the registry can stand in for it.
        Conflict: someone released meanwhile.
    """
    ref = parse_environment(reference)
    app, environment = ref.app, ref.environment
    located = ctx.locate((app, environment))
    if located.name is None:
        raise UsageError(
            f"{ctx.registry_url} has no witness, so there is nothing to repair by it.",
            fix="Name the registry as machines find it: --registry ssm:/bundlectl/NAME",
        )
    try:
        witness = located.witness(app, environment)
        problem = None
    except HeadPutBack as error:
        witness, problem = None, f"{error.what} {error.why}"
    keyring = open_trust(ctx)
    head = _head(ctx, app, environment)
    at = place(parse_head(head.data, f"the head of {ref}")[1]) if head else None
    problem = problem or contradiction(witness, at, head.digest if head else None)
    seen = Repaired(
        app=app,
        environment=environment,
        head=f"{at}, {head.digest}" if head else None,
        witness=f"{witness.place}, {witness.digest}" if witness else None,
        contradiction=problem,
        step="none",
        why="Head and witness agree." if witness else "Nothing was witnessed.",
        done=False,
        reason=reason,
    )
    if problem is None:
        return seen
    lost = _newer_former(ctx, keyring, ref, at)
    if lost is not None:
        step: Step = "restore-head"
        why = f"The history holds a newer release ({place(lost.release)}, {lost.digest}), and it becomes head again."
        if witness is not None and witness.place > place(lost.release):
            why += " The witnessed release itself is not there."
    elif head is not None:
        step = "accept-head"
        why = (
            "The witnessed release is nowhere in the registry. The head that is there verifies, and is taken as it is. "
            "A version of head.json that the bucket kept would be better: restore it instead, if there is one. "
            "Resolvers that saw the lost release refuse this head, until root raises the epoch."
        )
        current(head.data, app, environment, keyring, ctx.clock())
    else:
        raise VerificationFailed(
            f"{ref} has no head, and its witnessed release is not in its history.",
            why=problem,
            fix="Restore head.json from a version that the bucket kept, or from a backup.",
        )
    seen = seen.model_copy(update={"step": step, "why": why})
    if confirmed != environment:
        raise GateNotPassed(
            f"{problem} Nothing was changed.",
            why=why,
            fix=f"To do that: bundlectl registry repair {ref} --reason TEXT --confirm {environment}",
            details=seen.form(),
        )
    if lost is not None:
        _restore(ctx, ref, head, lost.data)
    kept = _head(ctx, app, environment)
    if kept is None:
        raise VerificationFailed(f"{ref} lost its head again.", fix="Find out who can write to the registry.")
    release = parse_head(kept.data, f"the head of {ref}")[1]
    note = f"repaired: {reason}"[:500]
    located.bear_witness(
        app, environment, Witness(epoch=release.epoch, serial=release.serial, digest=kept.digest, note=note)
    )
    return seen.model_copy(update={"done": True})


def _head(ctx: Context, app: str, environment: str) -> HeadState | None:
    """Read head; none at all is what repair is there for."""
    try:
        stored = ctx.registry.store.get(head_key(app, environment))
    except KeyMissing:
        return None
    return HeadState(stored.data, stored.tag, digest(stored.data))


def _newer_former(
    ctx: Context, keyring: VerifiedKeyring, ref: EnvironmentReference, head: Place | None
) -> VerifiedRelease | None:
    """Give the newest former release, verified, if it is newer than head; None if it is not.

    Raises:
        VerificationFailed: it does not verify.
    """
    store = ctx.registry.store
    places = [place_of(key) for key in store.list(history_prefix(ref.app, ref.environment))]
    newest = max(places, default=None)
    if newest is None or (head is not None and newest <= head):
        return None
    data = store.get(history_key(ref.app, ref.environment, newest.epoch, newest.serial)).data
    found = current(data, ref.app, ref.environment, keyring, ctx.clock())
    if place(found.release) != newest:
        raise VerificationFailed(f"The history of {ref} holds another release at {newest}.")
    return found


def _restore(ctx: Context, ref: EnvironmentReference, head: HeadState | None, data: bytes) -> None:
    key = head_key(ref.app, ref.environment)
    try:
        ctx.registry.store.swap(key, data, head.tag if head else None)
    except (SwapLost, OutcomeUnknown):
        if read_or_none(ctx.registry.store, key) != data:
            raise
