"""Where a gate asks for a soak: what is live there, and since when; or what a copy brought of another registry."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from bundlectl.actions.context import Context
from bundlectl.actions.opening import releases_of
from bundlectl.actions.releasing import Standing, current, head_place
from bundlectl.model.attestation import Envelope
from bundlectl.model.errors import VerificationFailed
from bundlectl.registry.releases import Entry, HeadState
from bundlectl.registry.witness import check_witness, contradiction
from bundlectl.resolver.keyrings import open_chain
from bundlectl.trust.abroad import Abroad

SOAKS_IN = "staging"
"""Where gates usually ask for a soak: its witness is asked for in the first call, because it costs none of its own."""


@dataclass(frozen=True)
class Soaking:
    """What is live, and since when, in the environment that the gate asks to have soaked in.

    ``live`` is None where that environment's head does not verify or was put back: then nothing is known of it, and
    only pass passes. ``bundle`` is what is live there, if that is known. ``carried`` is the evidence in its head,
    believed in nothing here.
    """

    live: dict[str, tuple[str, datetime]] | None
    bundle: str | None = None
    carried: Sequence[Envelope] = ()


def soaking_in(ctx: Context, standing: Standing, seen: Entry | None) -> Soaking:
    """Look where the gate asks for a soak; ``seen``: what is live in some environment, where that was read already."""
    soak = standing.gate.soak
    if soak is None or soak.registry is not None:
        return Soaking({})
    where = standing.app, soak.environment
    # As resolvers judge it: what they refuse to serve by now is not live there.
    judge = functools.partial(current, keyring=standing.keyring, now=standing.now, serving=True)
    try:
        if seen is not None and seen.release.environment == soak.environment:
            found = judge(seen.data, *where)
        else:
            head = _witnessed_head(ctx, *where)
            if head is None:
                return Soaking({})
            found = judge(head.data, *where)
            releases_of(ctx).check_newest(*where, head)
    except VerificationFailed as error:
        ctx.reporter.warn(f"{standing.app}:{soak.environment} does not verify: {error.what}")
        return Soaking(None)
    release = found.release
    return Soaking({soak.environment: (release.bundle, release.since)}, release.bundle, found.head.evidence)


def _witnessed_head(ctx: Context, app: str, environment: str) -> HeadState | None:
    """Read the head of another environment; None if nothing was ever released there.

    Raises:
        HeadPutBack: a later one was witnessed.
    """
    witness, releases = ctx.locate().witness(app, environment), releases_of(ctx)
    head = releases.read_head(app, environment)
    if contradiction(witness, *head_place(head, app, environment)) is not None:
        # It may have been read ahead, before its witness was, and be behind for that reason alone.
        head = releases.read_head(app, environment)
    check_witness(witness, *head_place(head, app, environment), app, environment)
    return head


def soak_abroad(ctx: Context, standing: Standing, releases: Sequence[Envelope]) -> Abroad | None:
    """Give what a copy brought of the registry in which the gate asks for a soak; None where it cannot count."""
    registry = standing.gate.soak.registry if standing.gate.soak else None
    if registry is None:
        return None
    chain = ctx.registry.source_keyrings(standing.app, registry.id)
    if not chain:
        return None
    try:
        keyring = open_chain(chain, registry.keyring)
    except VerificationFailed as error:
        ctx.reporter.warn(f"the keyrings that came with a copy from {registry.id} do not count: {error.what}")
        return None
    return Abroad(keyring, tuple(releases))
