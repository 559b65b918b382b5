"""ask: one request through the real router, in this process, against what is live."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from bundlectl.actions.context import Context
from bundlectl.actions.opening import load_bundle, open_trust, releases_of
from bundlectl.actions.releasing import current
from bundlectl.actions.routing import receipts_folder, router_of, without_addresses
from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Bundle
from bundlectl.model.contract import Answer, Pinned, ReleaseRef, Request
from bundlectl.model.errors import BundlectlError, NotFound, UsageError
from bundlectl.model.receipt import Receipt
from bundlectl.model.reference import EnvironmentReference, parse_reference
from bundlectl.model.types import Strict
from bundlectl.receipts.writer import ReceiptLog
from bundlectl.resolver.target import read_target
from bundlectl.resolver.trusted import VerifiedBundle, verify_bundle
from bundlectl.router.identity import LOCAL
from bundlectl.router.record import Outcome
from bundlectl.trust.keyring import VerifiedKeyring


class Asked(Strict):
    """An answer and how it came."""

    question: str
    answer: Answer
    receipt: Receipt


def ask(
    ctx: Context,
    reference: str,
    question: str,
    *,
    task: str | None = None,
    tenant: str,
    role: str,
    scopes: Sequence[str] = (),
    profile: str | None = None,
    rollback_target: bool = False,
) -> Asked:
    """Ask what is live in an environment, verified as a resolver would; or a bundle, without a release.

    Args:
        ctx: the context.
        reference: ``APP:ENV``, a stored bundle, or a source path.
        question: the text of the input that the task searches with.
        task: which task; may be left out when the bundle has one.
        tenant: on whose behalf.
        role: the user's role.
        scopes: the scopes to draw on; all of the task's by default.
        profile: the policy profile; may be left out when the task has one.
        rollback_target: ask what ``rollback`` would return to, with the bindings that it would give it.

    Raises:
        NotFound: nothing is live there; or it has no rollback target.
        BundlectlError: the request does not fit the contract, or nothing could answer.
    """
    answering = served_by(ctx, reference, rollback_target=rollback_target)
    request = request_for(
        answering.bundle, question, task=task, tenant=tenant, role=role, scopes=scopes, profile=profile
    )
    outcome = asyncio.run(_ask(ctx, answering, request))
    if answering.ref is not None:
        with ReceiptLog(receipts_folder(ctx, answering.app), on_loss=ctx.reporter.warn) as log:
            log.write(outcome.receipt)
    if outcome.answer is None:
        if answering.ref is not None:
            ctx.reporter.say(f"receipt {outcome.receipt.id}")
        raise outcome.error or BundlectlError("Nothing could answer.")
    return Asked(question=question, answer=outcome.answer, receipt=outcome.receipt)


def request_for(
    bundle: Bundle,
    question: str,
    *,
    task: str | None,
    tenant: str,
    role: str,
    scopes: Sequence[str],
    profile: str | None,
) -> Request:
    """Write the contract's request for a question, filling in what the bundle leaves no choice about.

    Raises:
        UsageError: the bundle leaves a choice that was not made, or a name is none.
    """
    tasks = bundle.components.application.tasks
    name = task or _only("task", "--task", sorted(tasks))
    if name not in tasks:
        raise UsageError(f"The bundle has no task {name!r}.", fix=f"Its tasks are {', '.join(sorted(tasks))}.")
    chosen = tasks[name]
    inputs = bundle.components.prompts[chosen.prompt].inputs
    searched = "question" if "question" in inputs or not inputs else inputs[0]
    profile = profile or _only("profile", "--profile", list(chosen.profiles))
    try:
        return Request(
            task=name,
            tenant_id=tenant,
            user_role=role,
            data_scope=list(scopes) or list(chosen.scopes),
            policy_profile=profile,
            input={searched: question},
        )
    except ValidationError as error:
        raise UsageError(
            "The request does not fit the contract.",
            why="; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()),
            fix="Names of tenants, roles and scopes are letters, digits and . _ -, and start with a letter or digit.",
        ) from error


def _only(what: str, flag: str, names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    raise UsageError(f"There is more than one {what}.", fix=f"Choose with {flag}: {', '.join(names)}.")


@dataclass(frozen=True)
class Answering:
    """What is to answer; without ``ref`` it is not released."""

    app: str
    bundle: Bundle
    bindings: Bindings
    ref: ReleaseRef | None = None
    pinned: Pinned | None = None


def served_by(ctx: Context, reference: str, *, rollback_target: bool = False) -> Answering:
    """Find what is to answer."""
    ref = parse_reference(reference)
    if not isinstance(ref, EnvironmentReference) or ref.serial is not None:
        if rollback_target:
            raise UsageError(f"{reference} has no rollback target.", fix="Name an environment: APP:ENV")
        app, bundle = load_bundle(ctx, ref)
        return Answering(app, bundle, without_addresses(bundle))
    keyring = open_trust(ctx)
    live = _live(ctx, ref, keyring)
    if not rollback_target:
        return Answering(ref.app, live.bundle, live.bindings, live.ref)
    target = read_target(ctx.registry, live, keyring)
    pinned = Pinned(to="rollback_target", epoch=live.ref.epoch, serial=live.ref.serial)
    return Answering(ref.app, target.bundle, target.bindings, target.ref, pinned)


def _live(ctx: Context, ref: EnvironmentReference, keyring: VerifiedKeyring) -> VerifiedBundle:
    releases = releases_of(ctx)
    head = releases.read_head(ref.app, ref.environment)
    if head is None:
        raise NotFound(f"Nothing is live in {ref}.", fix=f"bundlectl promote REF --to {ref.environment} --reason TEXT")
    release = current(head.data, ref.app, ref.environment, keyring, ctx.clock(), serving=True)
    releases.check_newest(ref.app, ref.environment, head)
    for alarm in release.alarms:
        ctx.reporter.warn(alarm)
    return verify_bundle(ctx.registry.get_bundle(ref.app, release.release.bundle), release, keyring)


async def _ask(ctx: Context, answering: Answering, request: Request) -> Outcome:
    one = answering
    async with router_of(ctx, one.app, one.bundle, one.bindings, ref=one.ref) as (router, compiled):
        return await router.handle(request, LOCAL, compiled, pinned=one.pinned)
