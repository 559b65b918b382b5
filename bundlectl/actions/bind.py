"""bind: change what an environment differs in, as a release of the same bundle. The switch for an outage at night."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bundlectl.actions.context import Context
from bundlectl.actions.releasing import (
    Released,
    check_servable,
    commit_release,
    lineage,
    next_release,
    reading_ahead,
    require_live,
    stand,
)
from bundlectl.insight.diff import Setting, diff_settings
from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Bundle
from bundlectl.model.errors import GateNotPassed, UsageError
from bundlectl.model.reference import parse_environment
from bundlectl.model.types import Strict


class Bound(Strict):
    """What bind returns: the release, and each binding that changed."""

    released: Released
    changes: list[Setting]


@reading_ahead
def bind(
    ctx: Context,
    reference: str,
    *,
    reason: str,
    file: Path | None = None,
    disable: Sequence[str] = (),
    enable: Sequence[str] = (),
    confirmed: str | None = None,
) -> Bound:
    """Release the live bundle anew with other bindings.

    Args:
        ctx: the context.
        reference: ``APP:ENV``.
        reason: why; part of the release for ever.
        file: a whole bindings file to use from now on.
        disable: models that are to be skipped.
        enable: models that are no longer to be skipped.
        confirmed: the environment's name, where its gate asks to confirm.

    Raises:
        UsageError: nothing would change, a release is named, or the bindings do not fit the bundle.
        SourceError: the file cannot be read, or does not fit the bundle.
        NotFound: nothing is live.
    """
    ref = parse_environment(reference)
    if ref.serial is not None:
        raise UsageError(
            f"{ref} names one release; bindings are of what is live.",
            fix=f"Name the environment: {ref.app}:{ref.environment}",
        )
    if both := sorted(set(disable) & set(enable)):
        raise UsageError(f"{', '.join(both)} cannot be switched off and on at once.", fix="Leave one of the two out.")
    standing = stand(ctx, ref.app, ref.environment)
    _, live = require_live(standing)
    if standing.gate.confirm and confirmed != ref.environment:
        raise GateNotPassed(
            f"{ref.app}:{ref.environment} asks to be confirmed; nothing was changed.",
            fix=f"Add --confirm {ref.environment}",
        )
    before = live.release.bindings
    after = before
    bundle = ctx.registry.get_bundle(ref.app, live.release.bundle)
    if file is not None:
        from bundlectl.bundling.bound import load_bindings

        after = load_bindings(file, ref.environment, bundle.components, off=disable)
    after = _switched(bundle, after, disable, enable)
    changes = diff_settings("bindings", before.form(), after.form())
    if not changes:
        raise UsageError(f"{reference} already has these bindings; nothing was changed.")
    check_servable(bundle, after, standing.keyring)
    release = next_release(
        ctx,
        standing,
        "promoter",
        action="rebind",
        bundle=live.release.bundle,
        bindings=after,
        reason=reason,
        since=live.release.since,
        rollback_target=live.release.rollback_target,
    )
    released = commit_release(
        ctx,
        standing,
        "promoter",
        release,
        origins=lineage(live),
        evidence=live.head.evidence,
        policies=[standing.policy.envelope, live.promotion_policy.envelope],
    )
    return Bound(released=released, changes=changes)


def _switched(bundle: Bundle, bindings: Bindings, disable: Sequence[str], enable: Sequence[str]) -> Bindings:
    """Switch models off and on, by their logical names."""
    if not disable and not enable:
        return bindings
    known = bundle.components.models
    for name in (*disable, *enable):
        if name not in known:
            raise UsageError(
                f"The live bundle has no model {name!r}.", fix=f"Its models are {', '.join(sorted(known))}."
            )
    disabled = (set(bindings.disabled_models) | set(disable)) - set(enable)
    return bindings.model_copy(update={"disabled_models": sorted(disabled)})
