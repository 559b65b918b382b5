"""registry doctor: look for what is missing or set wrongly in a registry, and say the fix."""

from __future__ import annotations

import os
import shutil
import stat
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from bundlectl.actions.context import Context
from bundlectl.actions.opening import pin_file, read_pin
from bundlectl.actions.promote import PlannedCheck, planned_checks
from bundlectl.model.errors import BackendUnavailable, BundlectlError, UsageError
from bundlectl.model.keyring import ROLES, Role
from bundlectl.model.types import Strict, format_time
from bundlectl.model.verdict import Verdict
from bundlectl.resolver.keyrings import open_trust
from bundlectl.storage.files import TEMPORARY_PREFIX
from bundlectl.trust.check import Check, verdict_of
from bundlectl.trust.instances import vouches
from bundlectl.trust.keyring import VerifiedKeyring
from bundlectl.trust.signers import IdentitySigner

Writer = Role | Literal["copier"]
"""Who writes to a bucket: those whom the keyring knows, and who only carries what others signed."""
KEYRING_SOON = timedelta(days=30)
LEFTOVER_SECONDS = 3600
"""A temporary file older than this is nobody's any more."""
LEAST_FREE = 256 * 1024 * 1024


class Examined(Strict):
    """What the doctor found. Only pass passes: what could not be looked at is inconclusive."""

    registry: str
    verdict: Verdict
    checks: list[PlannedCheck]


def examine(ctx: Context, *, role: Writer | None = None, app: str | None = None, env: str | None = None) -> Examined:
    """Examine a registry; nothing is changed.

    Args:
        ctx: the context. With a signer named, its key is examined too.
        role: in S3, also try whether the credentials may write what this role writes. Nothing is written: each
            trial names a version that is not there, or an object that is.
        app: of the role.
        env: of the role.

    Raises:
        BackendUnavailable: the registry cannot be reached at all.
        UsageError: there is no such registry.
    """
    folder = ctx.registry_folder
    if folder is not None:
        _ = ctx.registry  # says that there is none, where there is none
        checks = examine_folder(folder, ctx.workspace / "keys", pin_file(ctx), ctx.clock().timestamp())
    else:
        from bundlectl.actions.doctor_bucket import examine_bucket

        checks = examine_bucket(ctx, role=role, app=app, env=env)
    trust, keyring = _trust(ctx)
    checks += trust
    if ctx.signer_uri is not None and keyring is not None:
        checks.append(_signer(ctx, keyring))
    return Examined(registry=ctx.registry_url, verdict=verdict_of(checks), checks=planned_checks(checks))


def role_of(name: str | None) -> Writer | None:
    """Read a role's name.

    Raises:
        UsageError: it is none.
    """
    writers: tuple[Writer, ...] = (*ROLES, "copier")
    for role in writers:
        if role == name:
            return role
    if name is not None:
        raise UsageError(f"{name!r} is no role.", fix=f"Use one of {', '.join(writers)}.")
    return None


def _trust(ctx: Context) -> tuple[list[Check], VerifiedKeyring | None]:
    """Look at the pin, and at how long the keyring that it leads to still holds."""
    try:
        # The registry's own, from the first: what this machine keeps of them is not the registry's health.
        keyring = open_trust(ctx.registry, read_pin(ctx))
    except BackendUnavailable as error:
        return [Check("keyring", "error", error.what, error.fix)], None
    except BundlectlError as error:
        return [Check("keyring", "fail", " ".join(filter(None, (error.what, error.why))), error.fix)], None
    found = [Check("keyring", "pass", f"the pin {read_pin(ctx)} leads to version {keyring.version}")]
    expires = keyring.document.expires
    if expires is None:
        found.append(Check("keyring expiry", "pass", "it does not expire"))
    else:
        verdict: Verdict = "pass" if expires - ctx.clock() > KEYRING_SOON else "fail"
        when = "expired" if keyring.expired(ctx.clock()) else "expires"
        fix = "" if verdict == "pass" else "Root signs the next version: bundlectl keyring --help"
        found.append(Check("keyring expiry", verdict, f"it {when} {format_time(expires)}", fix))
    return found + _identities(keyring), keyring


def _identities(keyring: VerifiedKeyring) -> list[Check]:
    """Look whether what identities sign can be judged on this machine; nothing where the keyring names none."""
    named = {name: entry.oidc for name, entry in keyring.document.principals.items() if entry.oidc is not None}
    if not named:
        return []
    if find_spec("sigstore") is None:
        why, fix = "the extra 'sigstore' is not installed here", "pip install 'bundlectl[sigstore]'"
        return [Check("identities", "fail", why, fix)]
    strange = sorted({oidc.issuer for oidc in named.values() if vouches(keyring.sigstore, oidc.issuer) is None})
    if strange:
        fix = f"bundlectl keyring trust-root NAME FILE --issuer {strange[0]}"
        return [Check("identities", "fail", f"no Sigstore instance vouches for {', '.join(strange)}", fix)]
    instances = ", ".join(one.name for one in keyring.sigstore)
    return [Check("identities", "pass", f"{len(named)} of them, vouched for by {instances}")]


def _signer(ctx: Context, keyring: VerifiedKeyring) -> Check:
    """Look whether the named key can be opened and who it is."""
    fix = "Root adds its public key: bundlectl keyring add --help"
    try:
        signer = ctx.signer("any")
    except BackendUnavailable as error:
        return Check("signer", "error", error.what, error.fix)
    except BundlectlError as error:
        return Check("signer", "fail", " ".join(filter(None, (error.what, error.why))), error.fix)
    principal = keyring.principal_as(signer)
    if principal is None:
        what = signer.identity.subject if isinstance(signer, IdentitySigner) else signer.scheme
        return Check("signer", "fail", f"{signer.uri} ({what}) is nobody in the keyring", fix)
    state = keyring.entry(principal).state
    roles = ", ".join(sorted(keyring.roles_of(principal))) or "no role"
    return Check("signer", "pass" if state == "active" else "fail", f"{principal}, {state}: {roles}", fix)


def examine_folder(folder: Path, keys: Path, pin: Path, now: float) -> list[Check]:
    """Examine a registry that is a folder.

    Args:
        folder: the registry.
        keys: where the workspace keeps private keys.
        pin: the file with the pin.
        now: seconds since the epoch.
    """
    return [
        _writable(folder),
        _others(folder),
        _key_modes(keys),
        _pin_outside(folder, pin),
        _leftovers(folder, now),
        _free(folder),
    ]


def _writable(folder: Path) -> Check:
    if os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return Check("access", "pass", f"{folder} can be read and written")
    if os.access(folder, os.R_OK | os.X_OK):
        return Check("access", "pass", f"{folder} can be read, and not written: enough to serve")
    return Check("access", "fail", f"{folder} cannot be read", f"chmod u+rx {folder}, as its owner")


def _others(folder: Path) -> Check:
    open_ = [path for path in (folder, *_folders(folder)) if path.stat().st_mode & stat.S_IWOTH]
    if open_:
        return Check("others", "fail", f"everybody may write to {open_[0]}", f"chmod -R o-w {folder}")
    return Check("others", "pass", "only its owner and group may write")


def _folders(folder: Path) -> list[Path]:
    return [Path(at) / name for at, names, _ in os.walk(folder) for name in names]


def _key_modes(keys: Path) -> Check:
    found = sorted(keys.glob("*.pem")) if keys.is_dir() else []
    loose = [path.name for path in found if stat.S_IMODE(path.stat().st_mode) & 0o077]
    if loose:
        return Check("keys", "fail", f"others may read {', '.join(loose)}", f"chmod 600 {keys}/*.pem")
    return Check("keys", "pass", f"{len(found)} private keys, each its owner's alone")


def _pin_outside(folder: Path, pin: Path) -> Check:
    if pin.resolve().is_relative_to(folder.resolve()):
        return Check("pin", "fail", f"{pin} lies in the registry that it vouches for", "Keep it elsewhere.")
    return Check("pin", "pass", "it is kept outside the registry")


def _leftovers(folder: Path, now: float) -> Check:
    old = [
        path
        for at, _, names in os.walk(folder)
        for path in (Path(at) / name for name in names if name.startswith(TEMPORARY_PREFIX))
        if now - path.stat().st_mtime > LEFTOVER_SECONDS
    ]
    if old:
        fix = f"find {folder} -name '{TEMPORARY_PREFIX}*' -mmin +60 -delete"
        return Check("leftovers", "fail", f"{len(old)} temporary files of writes that were cut off", fix)
    return Check("leftovers", "pass", "no temporary files of writes that were cut off")


def _free(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    verdict: Verdict = "pass" if free >= LEAST_FREE else "fail"
    return Check("disk", verdict, f"{free // (1024 * 1024)} MiB free", "Free some: a release writes a few MiB.")
