"""renew: the same release with a later expiry, signed by a renewer. What a scheduled job does every day."""

from __future__ import annotations

from bundlectl.actions.context import Context
from bundlectl.actions.releasing import (
    Released,
    commit_release,
    expiry,
    next_release,
    reading_ahead,
    require_live,
    stand,
)
from bundlectl.model.reference import parse_environment


@reading_ahead
def renew(ctx: Context, reference: str, *, reason: str = "scheduled renewal") -> Released:
    """Renew what is live; only serial, time and expiry change.

    Raises:
        NotFound: nothing is live.
        Conflict: someone else released meanwhile; what they released is fresh.
    """
    ref = parse_environment(reference)
    standing = stand(ctx, ref.app, ref.environment, newest_policy=False)
    _, live = require_live(standing)
    renewed = live.release
    draft = next_release(
        ctx,
        standing,
        "renewer",
        action="renewal",
        bundle=renewed.bundle,
        bindings=renewed.bindings,
        reason=reason,
        since=renewed.since,
        rollback_target=renewed.rollback_target,
    )
    # A renewal stays under the policy and keyring of what it renews: it may change nothing else, and expires by
    # that policy's gate.
    release = draft.model_copy(
        update={"policy": renewed.policy, "keyring": renewed.keyring, "expires": expiry(live.gate, standing.now)}
    )
    origins = live.head.origins if renewed.action == "renewal" else [live.head.release, *live.head.origins]
    return commit_release(
        ctx,
        standing,
        "renewer",
        release,
        origins=origins,
        evidence=live.head.evidence,
        policies=live.head.policies,
    )
