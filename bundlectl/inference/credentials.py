"""Credential references to values, which reach no error, log or receipt.

``env:NAME``, ``file:/path``, ``aws-sm:SECRET`` (``#FIELD`` behind it: one field of a JSON object), ``ssm:/PARAMETER``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bundlectl.model.errors import NotFound, UsageError

MAX_CREDENTIAL = 64 * 1024


def resolve_credential(reference: str, environ: Mapping[str, str]) -> str:
    """Fetch the value that a binding refers to; white space around it is dropped. It may wait for AWS.

    Args:
        reference: ``env:``, ``file:``, ``aws-sm:`` or ``ssm:``.
        environ: the process's environment variables.

    Raises:
        NotFound: what it names is missing or empty.
        UsageError: it may not be read, or is no value of one line.
        BackendUnavailable: AWS cannot be reached.
    """
    scheme, _, rest = reference.partition(":")
    if scheme == "env":
        value = environ.get(rest, "").strip()
        if not value:
            raise NotFound(
                f"The environment variable {rest} is not set.",
                why=f"A credential is to be found at {reference}.",
                fix=f"Set {rest} for this process, or bind another credential.",
            )
        return _one_line(value, reference)
    if scheme == "file":
        return _one_line(_from_file(Path(rest), reference), reference)
    if scheme in ("aws-sm", "ssm"):
        from bundlectl.inference.aws_secrets import fetch_secret

        return _one_line(fetch_secret(reference, environ), reference)
    raise UsageError(
        f"The credential {reference} has no known scheme.", fix="Bind env:NAME, file:/path, aws-sm:NAME or ssm:/NAME."
    )


def _from_file(path: Path, reference: str) -> str:
    try:
        if path.stat().st_size > MAX_CREDENTIAL:
            raise UsageError(f"The file of the credential {reference} is too large to be a credential.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(
            f"The credential {reference} cannot be read.",
            why=error.strerror or "" if isinstance(error, OSError) else "It is not UTF-8 text.",
            fix="Check that the file is there and that this process may read it.",
        ) from error


def _one_line(text: str, reference: str) -> str:
    value = text.strip()
    if not value:
        raise NotFound(f"The credential {reference} is empty.")
    if "\n" in value or "\r" in value:
        raise UsageError(f"The credential {reference} holds more than one line.", fix="Keep only the value in it.")
    return value
