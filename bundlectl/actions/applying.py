"""keyring apply: a request and the signatures that came back become version N+1; and keyring export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bundlectl.actions.context import Context
from bundlectl.actions.opening import open_trust
from bundlectl.actions.policy import store_policy
from bundlectl.actions.signing import collect, open_request, write_new
from bundlectl.actions.succession import consequences, store_keyring
from bundlectl.model.canonical import digest
from bundlectl.model.errors import Conflict, NotFound, VerificationFailed
from bundlectl.model.keyring import Keyring
from bundlectl.model.types import Strict
from bundlectl.trust.envelope import envelope_bytes, parse_envelope, payload_of


class Applied(Strict):
    """What was stored. ``consequences`` as for the keyring's verbs."""

    document: str
    app: str | None
    version: int
    digest: str
    changes: list[str]
    consequences: list[str] = []


class KeyringExported(Strict):
    """One version of the keyring, byte for byte as it is signed; ``digest`` can be a machine's pin."""

    version: int
    digest: str
    file: str


def apply(ctx: Context, request: Path, signatures: Sequence[Path]) -> Applied:
    """Join signatures to a request and store what they sign, if they are enough. Applying twice changes nothing.

    Raises:
        VerificationFailed: thresholds are not met, a file signs something else, or a rule is broken.
        UsageError: a key would be retired that a live release depends on by now.
        Conflict: another version has been stored since the request was written.
    """
    opened = open_request(ctx, request)
    envelope = collect(opened, signatures)
    present = open_trust(ctx)
    told: list[str] = []
    if isinstance(opened.document, Keyring):
        if present.digest != opened.request.digest:
            _check_present(opened.document.previous == present.digest, f"keyring {present.version}")
            told = consequences(ctx, present, opened.document)
            store_keyring(ctx, present, envelope_bytes(envelope))
    else:
        app = opened.document.app
        newest = ctx.registry.latest_policy(app, 0)
        there = digest(payload_of(parse_envelope(newest[-1], "a policy"))) if newest else None
        if there != opened.request.digest:
            _check_present(opened.document.previous == there, f"policy {len(newest)} of {app}")
            store_policy(ctx, present, envelope, app)
    return Applied(
        document=opened.request.document,
        app=opened.request.app,
        version=opened.document.version,
        digest=opened.request.digest,
        changes=opened.shown.changes,
        consequences=told,
    )


def export_keyring(ctx: Context, file: Path, *, version: int | None = None) -> KeyringExported:
    """Write one version of the keyring as it is stored; by default the newest that the pin leads to.

    Raises:
        NotFound: there is no such version.
        UsageError: the file exists.
    """
    present = open_trust(ctx)
    wanted = version if version is not None else present.version
    data = ctx.registry.keyring_bytes(wanted) if wanted <= present.version else None
    if data is None:
        raise NotFound(f"There is no keyring {wanted}; the newest is {present.version}.")
    found = digest(payload_of(parse_envelope(data, f"keyring {wanted}")))
    if wanted == present.version and found != present.digest:
        raise VerificationFailed(f"Keyring {wanted} changed while it was read.", fix="Repeat the command.")
    write_new(file, data)
    return KeyringExported(version=wanted, digest=found, file=str(file))


def _check_present(follows: bool, present: str) -> None:
    if not follows:
        raise Conflict(
            f"The request does not follow {present}: another version was stored since it was written.",
            why="Nothing was changed.",
            fix="Make the change again on top of it, and have that signed.",
        )
