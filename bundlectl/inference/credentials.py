"""Credential references to values: ``env:NAME`` and ``file:/path``. Values reach no error, log or receipt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bundlectl.model.errors import NotFound, UsageError

MAX_CREDENTIAL = 64 * 1024


def resolve_credential(reference: str, environ: Mapping[str, str]) -> str:
    """Fetch the value that a binding refers to; white space around it is dropped.

    Args:
        reference: ``env:NAME`` or ``file:/path``.
        environ: the process's environment variables.

    Raises:
        NotFound: the variable or file is missing or empty.
        UsageError: the scheme is not supported in this version.
    """
    scheme, _, rest = reference.partition(":")
    if scheme == "env":
        value = environ.get(rest, "").strip()
        if not value:
            raise NotFound(
                f"The environment variable {rest} is not set.",
                why=f"A model's credential is bound to {reference}.",
                fix=f"Set {rest} for this process, or bind another credential.",
            )
        return value
    if scheme == "file":
        return _from_file(Path(rest), reference)
    raise UsageError(
        f"The credential {reference} cannot be fetched: {scheme}: is not in this version.",
        fix="Bind env:NAME or file:/path.",
    )


def _from_file(path: Path, reference: str) -> str:
    try:
        if path.stat().st_size > MAX_CREDENTIAL:
            raise UsageError(f"The file of the credential {reference} is too large to be a credential.")
        value = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(
            f"The credential {reference} cannot be read.",
            why=error.strerror or "" if isinstance(error, OSError) else "It is not UTF-8 text.",
            fix="Check that the file is there and that this process may read it.",
        ) from error
    if not value:
        raise NotFound(f"The file of the credential {reference} is empty.")
    if "\n" in value or "\r" in value:
        raise UsageError(f"The credential {reference} holds more than one line.", fix="Keep only the value in it.")
    return value
