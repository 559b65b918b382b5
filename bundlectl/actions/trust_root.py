"""keyring trust-root: say which Sigstore instance vouches for which issuers' identities, in the keyring's next version.

A machine that verifies asks nobody for a trusted root; so root has to renew it here when the instance gets a new key. A
trusted root keeps what is over, with its end, and so do signatures from before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bundlectl.actions.context import Context
from bundlectl.actions.opening import open_trust
from bundlectl.actions.signing import read_file
from bundlectl.actions.succession import KeyringChanged, change
from bundlectl.model.canonical import canonical, parse_json
from bundlectl.model.errors import MissingExtra, UsageError, VerificationFailed
from bundlectl.model.sigstore import SigstoreInstance
from bundlectl.trust import succession
from bundlectl.trust.instances import MAX_TRUSTED_ROOT, TRUSTED_ROOT_TYPE

MAX_FILE = 4 * MAX_TRUSTED_ROOT


def trust_root(
    ctx: Context,
    name: str,
    file: Path | None = None,
    *,
    issuers: Sequence[str] = (),
    remove: bool = False,
    reason: str | None = None,
    signers: Sequence[str] = (),
    request: Path | None = None,
) -> KeyringChanged:
    """Trust a Sigstore instance, renew its trusted root, or trust it no more.

    Args:
        ctx: the context.
        name: what the keyring calls the instance.
        file: its trusted root, or a client trust config that holds it; without one, the public instance's is fetched.
        issuers: whose identities it vouches for; without any, as before.
        remove: trust it no more.
        reason: why.
        signers: root's keys.
        request: sign nothing, write what is to be signed.

    Raises:
        UsageError: no issuer is known, the file holds no trusted root, or nothing would change.
        VerificationFailed: another instance vouches for one of the issuers.
        MissingExtra: what a trusted root is worth can only be judged with the extra ``sigstore``.
        BackendUnavailable: the public instance cannot be reached.
    """
    if remove:
        if file is not None or issuers:
            raise UsageError("--remove takes a name alone.", fix=f"bundlectl keyring trust-root {name} --remove")
        return change(ctx, lambda n: succession.drop_instance(n, name, reason=reason), signers, request)
    before = next((one for one in open_trust(ctx).sigstore if one.name == name), None)
    named = list(dict.fromkeys(issuers)) or (before.issuers if before else [])
    if not named:
        raise UsageError(
            f"It is not said whose identities {name!r} vouches for.",
            fix="Name each issuer, e.g. --issuer https://token.actions.githubusercontent.com",
        )
    root = _usable(_read(file) if file is not None else _public(), str(file or "The public instance"))
    instance = SigstoreInstance(name=name, issuers=named, trusted_root=root)
    return change(ctx, lambda n: succession.set_instance(n, instance, reason=reason), signers, request)


def _read(file: Path) -> dict[str, Any]:
    try:
        value = parse_json(read_file(file, MAX_FILE), what=str(file))
    except VerificationFailed as error:
        raise UsageError(f"{file} is not JSON.", why=error.why) from error
    found = value.get("trustedRoot", value) if isinstance(value, dict) else None
    if not isinstance(found, dict) or found.get("mediaType") != TRUSTED_ROOT_TYPE:
        raise UsageError(
            f"{file} holds no trusted root.",
            why=f"Its mediaType is not {TRUSTED_ROOT_TYPE}.",
            fix="Give the instance's trusted_root.json, or its client trust config.",
        )
    return found


def _public() -> dict[str, Any]:
    try:
        from bundlectl.trust.sigstore_signer import public_root
    except ImportError as error:
        raise MissingExtra("A trusted root", "sigstore") from error
    return public_root()


def _usable(root: dict[str, Any], where: str) -> dict[str, Any]:
    """Check a trusted root with the code that will use it."""
    try:
        from bundlectl.trust.sigstore_verifier import check_root
    except ImportError as error:
        raise MissingExtra("A trusted root", "sigstore") from error
    try:
        check_root(canonical(root))
    except ValueError as error:
        why = str(error).splitlines()[0]
        raise UsageError(f"{where} holds a trusted root that cannot be used.", why=why) from error
    return root
