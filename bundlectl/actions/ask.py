"""ask: one request through the real router, in this process, against what is live."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pydantic import ValidationError

from bundlectl.actions.context import Context
from bundlectl.actions.opening import load_bundle, open_trust, releases_of
from bundlectl.actions.releasing import current
from bundlectl.actions.routing import receipts_folder, router_of, without_addresses
from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Bundle
from bundlectl.model.contract import Answer, ReleaseRef, Request
from bundlectl.model.errors import BundlectlError, NotFound, UsageError
from bundlectl.model.receipt import Receipt
from bundlectl.model.reference import EnvironmentReference, parse_reference
from bundlectl.model.types import Strict
from bundlectl.receipts.writer import ReceiptLog
from bundlectl.resolver.trusted import verify_bundle
from bundlectl.router.identity import LOCAL
from bundlectl.router.record import Outcome


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

    Raises:
        BundlectlError: the request does not fit the contract, or nothing could answer.
    """
    app, bundle, bindings, ref = served_by(ctx, reference)
    request = request_for(bundle, question, task=task, tenant=tenant, role=role, scopes=scopes, profile=profile)
    outcome = asyncio.run(_ask(ctx, app, bundle, bindings, ref, request))
    if ref is not None:
        with ReceiptLog(receipts_folder(ctx, app), on_loss=ctx.reporter.warn) as log:
            log.write(outcome.receipt)
    if outcome.answer is None:
        if ref is not None:
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


def served_by(ctx: Context, reference: str) -> tuple[str, Bundle, Bindings, ReleaseRef | None]:
    """Find what is to answer."""
    ref = parse_reference(reference)
    if not isinstance(ref, EnvironmentReference) or ref.serial is not None:
        app, bundle = load_bundle(ctx, ref)
        return app, bundle, without_addresses(bundle), None
    keyring = open_trust(ctx)
    releases = releases_of(ctx)
    head = releases.read_head(ref.app, ref.environment)
    if head is None:
        raise NotFound(f"Nothing is live in {ref}.", fix=f"bundlectl promote REF --to {ref.environment} --reason TEXT")
    release = current(head.data, ref.app, ref.environment, keyring, ctx.clock(), serving=True)
    releases.check_newest(ref.app, ref.environment, head)
    for alarm in release.alarms:
        ctx.reporter.warn(alarm)
    bundle = ctx.registry.get_bundle(ref.app, release.release.bundle)
    verified = verify_bundle(bundle, release, keyring)
    return ref.app, bundle, verified.bindings, verified.ref


async def _ask(
    ctx: Context, app: str, bundle: Bundle, bindings: Bindings, ref: ReleaseRef | None, request: Request
) -> Outcome:
    async with router_of(ctx, app, bundle, bindings, ref=ref) as (router, _):
        return await router.handle(request, LOCAL)
