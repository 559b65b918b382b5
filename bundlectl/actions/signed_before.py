"""What this machine has signed for root and owners before, so that nobody gets it to sign a second line of versions.

Who carries requests could leave out the newest keyrings and have another version N+1 signed on top of an older N: a
fork in which a revoked key was never revoked. The machine that signs sees no registry, so it remembers.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from bundlectl.actions.context import Context
from bundlectl.model.errors import BackendUnavailable, UsageError
from bundlectl.model.signing import LastSigned, SignedBefore

FILE = "signed.json"


def check_signed_before(ctx: Context, line: str, version: int, digest: str, *, again: bool) -> None:
    """Refuse to sign what another signature of this machine contradicts.

    Args:
        ctx: the context.
        line: of which document.
        version: what is to be signed.
        digest: of its payload.
        again: whoever asks says that the other one was given up.

    Raises:
        UsageError: a later version was signed here before, or the same one with other bytes.
    """
    before = _read(ctx).lines.get(line)
    if again or before is None or (before.version, before.digest) == (version, digest) or before.version < version:
        return
    raise UsageError(
        f"This machine has signed version {before.version} before, and is now asked for version {version}.",
        why=f"It signed {before.digest}; this is {digest}. Two lines of versions let a revoked key live on.",
        fix="Find out why. If the other one was given up and never stored: --again",
        details={"signed": before.form()},
    )


def remember_signed(ctx: Context, line: str, version: int, digest: str) -> None:
    """Remember what is signed, before the signature leaves.

    Raises:
        BackendUnavailable: it cannot be written.
    """
    found = _read(ctx)
    path = _path(ctx)
    text = SignedBefore(lines={**found.lines, line: LastSigned(version=version, digest=digest)}).model_dump_json()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = path.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise BackendUnavailable(
            f"What was signed cannot be remembered in {path}; no signature was given out.", why=str(error)
        ) from error


def _read(ctx: Context) -> SignedBefore:
    path = _path(ctx)
    try:
        return SignedBefore.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return SignedBefore()
    except (OSError, ValidationError) as error:
        raise UsageError(
            f"{path} cannot be read: it says what this machine signed before.",
            why=str(error),
            fix="Restore it; or move it away, once you know the newest version that was signed.",
        ) from error


def _path(ctx: Context) -> Path:
    return ctx.workspace / FILE
